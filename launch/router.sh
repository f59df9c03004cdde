#!/usr/bin/env bash
# Start sglang-router in front of one prefill and one decode worker by hand.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
    cat <<'TEXT'
usage: [VARIABLE=value ...] launch/router.sh [more sglang-router flags]

  PREFILL_URL     of the prefill worker                  (http://127.0.0.1:30101)
  BOOTSTRAP_PORT  of the prefill worker                  (30102)
  DECODE_URL      of the decode worker                   (http://127.0.0.1:30201)
  PORT            where it serves                        (30301)
  METRICS_PORT    where Prometheus finds its metrics     (30302)
  PYTHON          interpreter with sglang-router         (.venv/bin/python)

It is ready when GET /readiness answers 200. More workers: --prefill URL BOOTSTRAP_PORT, --decode URL.
TEXT
}
if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then usage; exit 0; fi

exec "${PYTHON:-.venv/bin/python}" -m sglang_router.launch_router --pd-disaggregation \
    --host 127.0.0.1 --port "${PORT:-30301}" \
    --prometheus-host 127.0.0.1 --prometheus-port "${METRICS_PORT:-30302}" \
    --worker-startup-check-interval 1 --request-timeout-secs 86400 --shutdown-grace-period-secs 2 --disable-retries \
    --prefill "${PREFILL_URL:-http://127.0.0.1:30101}" "${BOOTSTRAP_PORT:-30102}" \
    --decode "${DECODE_URL:-http://127.0.0.1:30201}" "$@"
