#!/usr/bin/env bash
# Start the shell router for one model by hand.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
    cat <<'TEXT'
usage: [VARIABLE=value ...] launch/shell_router.sh

  MODEL        the model its workers serve                (builtin:smollm2-135m-instruct)
  NAME         what trees call it                         (smollm2)
  ROUTER_URL   of sglang-router                           (http://127.0.0.1:30301)
  PREFILL_URL  of the prefill worker                      (http://127.0.0.1:30101)
  DECODE_URL   of the decode worker                       (http://127.0.0.1:30201)
  PORT         where it serves                            (30401)
  TREES        tree files, separated by spaces            (cfgs/trees/chain_2.json cfgs/trees/tree_3_1.json)
  PYTHON       interpreter with Graft                     (.venv/bin/python)

A second one before the same workers: another PORT, or
  python -m shell_router --config LOGS/shell_router.json --port PORT    from the configuration of a running cluster

Then: graft ask --url http://127.0.0.1:30401 --tree chain_2 'What is 17 times 3?'
TEXT
}
if [[ $# -gt 0 ]]; then usage; if [[ $1 == -h || $1 == --help ]]; then exit 0; else exit 2; fi; fi

PYTHON=${PYTHON:-.venv/bin/python}
export GRAFT_HOME=${GRAFT_HOME:-$PWD/.graft}
tokenizer=$("$PYTHON" -m launch.checkpoint "${MODEL:-builtin:smollm2-135m-instruct}")
read -ra trees <<<"${TREES:-cfgs/trees/chain_2.json cfgs/trees/tree_3_1.json}"
listed=$(printf '"%s", ' "${trees[@]}")

config=$GRAFT_HOME/shell_router-${PORT:-30401}.json
cat >"$config" <<JSON
{
  "port": ${PORT:-30401},
  "trees": [${listed%, }],
  "models": [
    {
      "name": "${NAME:-smollm2}",
      "tokenizer": "$tokenizer",
      "router_url": "${ROUTER_URL:-http://127.0.0.1:30301}",
      "pairs": [
        {
          "prefill": "${PREFILL_URL:-http://127.0.0.1:30101}",
          "decode": "${DECODE_URL:-http://127.0.0.1:30201}"
        }
      ],
      "context_length": 8192,
      "page_size": 16
    }
  ]
}
JSON
exec "$PYTHON" -m shell_router --config "$config"
