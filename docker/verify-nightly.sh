#!/bin/sh
# Verifies the archive every night at VERIFY_AT (HH:MM in UTC, default 03:00): every file and the
# chain, then a restore into a scratch PostgreSQL that is compared with the archive. Arguments are
# options for `waly verify`, in place of --drill.
#
# Reports go to VERIFY_REPORTS (default /reports), a file for each night, and the last exit code to
# `last-exit` there. Scratch servers are made in VERIFY_SCRATCH, a folder for nothing else: what a
# killed verification left there is removed. `verify-nightly --healthy` is for the healthcheck: it
# fails when the last verification did, or when there was none for 26 hours.
set -u

at=${VERIFY_AT:-03:00}
reports=${VERIFY_REPORTS:-/reports}
last=$reports/last-exit

if [ "${1:-}" = --healthy ]; then
    # None yet: the first night is still to come.
    [ -e "$last" ] || exit 0
    [ -n "$(find "$last" -mmin -1560)" ] || { echo "no verification for 26 hours" >&2; exit 1; }
    read -r code <"$last"
    [ "$code" = 0 ] || { echo "the last verification ended with exit code $code" >&2; exit 1; }
    exit 0
fi

case $at in
    [01][0-9]:[0-5][0-9] | 2[0-3]:[0-5][0-9]) ;;
    *)
        echo "error: VERIFY_AT is '$at'" >&2
        echo "hint: hours and minutes in UTC, such as 03:00" >&2
        exit 2
        ;;
esac

[ $# -gt 0 ] || set -- --drill
child=

stop() {
    trap - TERM INT
    [ -z "$child" ] || { kill -TERM "$child" && wait "$child"; } 2>/dev/null
    exit 0
}
trap stop TERM INT

# In the background, because a shell takes a signal only when what it waits for has ended.
run() {
    "$@" &
    child=$!
    wait "$child"
    code=$?
    child=
    return "$code"
}

# Seconds since 1970 of the next time that clocks show VERIFY_AT. The 1 keeps 08 from being octal.
next_time() {
    now=$(date -u +%s)
    next=$((now - now % 86400 + (1${at%:*} - 100) * 3600 + (1${at#*:} - 100) * 60))
    [ "$next" -gt "$now" ] || next=$((next + 86400))
}

while :; do
    next_time
    echo "next verification: $(date -u -d "@$next" +%Y-%m-%dT%H:%MZ)" >&2
    # In short steps: a host that slept for hours is not hours late.
    while left=$((next - $(date -u +%s))) && [ "$left" -gt 0 ]; do
        run sleep "$((left < 60 ? left : 60))"
    done
    if [ -n "${VERIFY_SCRATCH:-}" ]; then
        find "$VERIFY_SCRATCH" -mindepth 1 -delete
        export TMPDIR="$VERIFY_SCRATCH"
    fi
    run waly verify "$@" --report "$reports"
    code=$?
    echo "verification ended with exit code $code" >&2
    echo "$code" >"$last"
done
