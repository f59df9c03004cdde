#!/usr/bin/env bash
# Start one decode worker by hand. `graft up` does the same for a whole cluster.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
    cat <<'TEXT'
usage: [VARIABLE=value ...] launch/decode.sh [more SGLang flags]

  MODEL           builtin:<name>, checkpoint directory or hub id   (builtin:smollm2-135m-instruct)
  NAME            what trees call it                               (smollm2)
  DEVICE          cpu or cuda                                      (cpu)
  CORES           with cpu: cores it is pinned to, e.g. 0 or 0,1   (1)
  GPUS            with cuda: GPUs, e.g. 0 or 0,1                   (1)
  PORT            where it serves                                  (30201)
  PYTHON          interpreter with SGLang                          (.venv/bin/python)
TEXT
}
if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then usage; exit 0; fi

PYTHON=${PYTHON:-.venv/bin/python}
DEVICE=${DEVICE:-cpu}
export GRAFT_HOME=${GRAFT_HOME:-$PWD/.graft}
model=$("$PYTHON" -m launch.checkpoint "${MODEL:-builtin:smollm2-135m-instruct}")

flags=(
    --model-path "$model" --served-model-name "${NAME:-smollm2}"
    --host 127.0.0.1 --port "${PORT:-30201}" --device "$DEVICE" --page-size 16
    --disaggregation-mode decode --disaggregation-transfer-backend nixl
    --disaggregation-decode-enable-radix-cache
    --incremental-streaming-output --enable-metrics
)
case $DEVICE in
cpu)
    # A worker that shares its core with another that polls is ten times slower: pin it, let it sleep when idle.
    cores=${CORES:-1}
    IFS=, read -ra listed <<<"$cores"
    export SGLANG_CPU_OMP_THREADS_BIND=$cores OMP_NUM_THREADS=${#listed[@]}
    exec taskset -c "$cores" "$PYTHON" -m sglang_ext.cpu.serve "${flags[@]}" \
        --context-length 8192 --max-total-tokens 20000 --mem-fraction-static 0.3 \
        --attention-backend torch_native --skip-server-warmup --disable-overlap-schedule --sleep-on-idle \
        --disaggregation-decode-retraction-backup cpu_tensor "$@"
    ;;
cuda)
    export CUDA_VISIBLE_DEVICES=${GPUS:-1}
    IFS=, read -ra listed <<<"$CUDA_VISIBLE_DEVICES"
    exec "$PYTHON" -m sglang.launch_server "${flags[@]}" --tp-size "${#listed[@]}" "$@"
    ;;
*)
    echo "DEVICE is cpu or cuda, not $DEVICE" >&2
    exit 2
    ;;
esac
