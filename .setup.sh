#!/bin/sh
# Make the virtual environment that the Makefile uses. One sentence per thing that can be wrong with a machine.
set -u

fail() {
    printf '%s\n' "$1" >&2
    exit 1
}

fits() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' >/dev/null 2>&1
}

wanted="install Python 3.11, 3.12 or 3.13, or name one as in 'make PYTHON=/path/to/python3.12 test'."
if [ -n "${PYTHON:-}" ]; then
    command -v "$PYTHON" >/dev/null 2>&1 || fail "There is no $PYTHON: $wanted"
    fits "$PYTHON" || fail "$PYTHON is $("$PYTHON" -V 2>&1 | head -n 1), and 3.11, 3.12 or 3.13 is needed: $wanted"
else
    for PYTHON in python3 python3.13 python3.12 python3.11 python; do
        fits "$PYTHON" && break
    done
    fits "$PYTHON" || fail "No Python from 3.11 to 3.13 was found: $wanted"
fi
"$PYTHON" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$PYTHON has no venv module: install it (on Debian and Ubuntu the package python3-venv), then run make again."

log="$VENV/setup.log"
{ mkdir -p "$VENV" && : >"$log"; } 2>/dev/null ||
    fail "Cannot write to $VENV: free space or change its permissions, or name another folder as in 'make VENV=/tmp/venv test'."

ready() {
    [ -f "$VENV/.ready" ] && [ "$VENV/.ready" -nt pyproject.toml ] && [ "$VENV/.ready" -nt constraints.txt ] &&
        [ "$VENV/.ready" -nt .setup.sh ]
}

# A second make in another terminal waits for the first and then finds everything done.
if command -v flock >/dev/null 2>&1; then
    exec 9>"$VENV/.lock"
    flock -n 9 || { echo "Waiting for another set-up of $VENV to end."; flock 9; }
    ready && exit 0
fi

rm -f "$VENV/.ready"
echo "Setting up $VENV with $("$PYTHON" -V) (once; a minute or two) ..."
"$PYTHON" -m venv "$VENV" >>"$log" 2>&1 || fail "The virtual environment could not be made: $(tail -n 1 "$log")"

# PIP_CONSTRAINT, not -c: it also pins what builds the package.
PIP_CONSTRAINT=constraints.txt "$VENV/bin/python" -m pip install --disable-pip-version-check --no-input \
    -e '.[dev]' >>"$log" 2>&1 9>&- &
pip=$!
trap 'kill "$pip" 2>/dev/null; wait "$pip" 2>/dev/null; echo; echo "Interrupted. Run make again to go on." >&2; exit 130' INT TERM
if [ -t 1 ]; then
    while kill -0 "$pip" 2>/dev/null; do
        printf '\r  %s packages found' "$(grep -c '^Collecting' "$log")"
        grep -q '^Installing collected' "$log" && printf ', installing '
        sleep 1
    done
    printf '\r%40s\r' ''
fi
if ! wait "$pip"; then
    if grep -qiE 'No space left|Errno 28' "$log"; then
        fail "The disk is full: free about 1 GB, then run make again."
    elif grep -qiE 'Retrying|connection|resolve host|unreachable|timed out' "$log"; then
        fail "The packages could not be downloaded: connect to the network once, then run make again (details in $log)."
    fi
    fail "The packages could not be installed: $(grep -i '^error' "$log" | tail -n 1) (details in $log)."
fi
touch "$VENV/.ready"
echo "Ready."
