#!/bin/sh
# Hands the password in the file WALY_PASSWORD_FILE to libpq, then becomes `waly`.
#
# A mounted secret is readable for everybody, and libpq ignores such a passfile: so one is made at
# PGPASSFILE, mode 0600, on a tmpfs. WALY_PASSWORD_FOR says whom the password is meant for, as
# host:port:database:user; nobody else is offered it. It is in no argument and no environment.
set -eu

fail() {
    echo "error: $1" >&2
    echo "hint: $2" >&2
    exit 2
}

if [ -n "${WALY_PASSWORD_FILE:-}" ]; then
    : "${PGPASSFILE:?where to write the passfile}"
    : "${WALY_PASSWORD_FOR:?host:port:database:user that the password is for}"
    [ -r "$WALY_PASSWORD_FILE" ] ||
        fail "the secret $WALY_PASSWORD_FILE cannot be read" \
            "make it as docker/secrets/README.md says, readable for all in a folder that is not"
    # Trailing line ends are no part of a password, as for PostgreSQL's own image.
    password=$(cat "$WALY_PASSWORD_FILE")
    case $password in
        "") fail "the secret $WALY_PASSWORD_FILE is empty" "write the password into it" ;;
        *"
"*) fail "the secret $WALY_PASSWORD_FILE has several lines" "write the password alone into it" ;;
    esac
    rm -f "$PGPASSFILE"
    # printf is built into the shell: no process has the password among its arguments.
    (
        umask 077
        printf '%s:%s\n' "$WALY_PASSWORD_FOR" \
            "$(printf '%s\n' "$password" | sed 's/[\\:]/\\&/g')" >"$PGPASSFILE"
    )
    unset password
fi

exec waly "$@"
