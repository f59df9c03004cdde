#!/usr/bin/env bash
# Install Graft and the wheels that wheels.sh fetched, without a network, into a virtual environment of its own.
#
#   experiments/gpu/install.sh DIR VENV
#
#   DIR    what wheels.sh filled
#   VENV   the environment to make; it sees the machine's own packages where DIR came without torch
#
# PYTHON names the interpreter (default: python3); it must be of the version the wheels are for.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

fail() {
    printf 'install: %s\n' "$@" >&2
    exit 2
}

(($# == 2)) || fail "two folders are wanted: install.sh DIR VENV"
wheels=$1 venv=$2
python=${PYTHON:-python3}
[[ -f $wheels/pinned.txt ]] || fail "$wheels has no pinned.txt: it was not filled by wheels.sh"
[[ ! -e $venv ]] || fail "$venv is there already"

options=()
if ! grep -q '^torch==' "$wheels/pinned.txt"; then
    options+=(--system-site-packages)
    wanted=$(sed -n 's/^torch==//p' "$wheels/requirements.txt")
    found=$("$python" -c 'import importlib.metadata as m; print(m.version("torch"))' 2>/dev/null || echo none)
    # A build may add its CUDA version, as in 2.14.1+cu130.
    [[ ${found%%+*} == "$wanted" ]] ||
        fail "the wheels are for torch $wanted, which this Python is to have; it has ${found}." \
            "SGLang's kernels link against torch's C++ symbols: fetch the wheels without --without-torch"
fi
"$python" -m venv "${options[@]}" "$venv"
"$venv/bin/python" -m pip install --no-index --no-deps --find-links "$wheels" -r "$wheels/pinned.txt"
# Graft's own entry points make SGLang find its plugin.
"$venv/bin/python" -m pip install --no-index --no-deps --no-build-isolation --editable .
"$venv/bin/python" - <<'PYTHON'
import importlib.metadata

import torch

print(f"install: torch {torch.__version__}, CUDA {torch.version.cuda}, device there: {torch.cuda.is_available()}")
print(f"install: SGLang {importlib.metadata.version('sglang')}, Graft {importlib.metadata.version('graft-moa')}")
PYTHON
echo "install: done; $venv/bin/graft gpu --quick"
