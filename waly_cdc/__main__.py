"""`python -m waly_cdc` is `waly`."""

from waly_cdc.cli.main import main

if __name__ == "__main__":
    main()
