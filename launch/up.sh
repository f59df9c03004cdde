#!/usr/bin/env bash
# Start a whole cluster and stay with it; Ctrl-C stops it.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
    cat <<'TEXT'
usage: [VARIABLE=value ...] launch/up.sh [CLUSTER_JSON] [--detach] [--run-dir DIR]

  CLUSTER_JSON  what to start                             (cfgs/cluster/cpu_smollm2.json)
  --detach      return when it is ready; stop it with launch/down.sh
  --run-dir     folder for the logs
  GRAFT_HOME    where models, logs and state are kept     (.graft)
  PYTHON        interpreter with Graft                    (.venv/bin/python)
TEXT
}
if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then usage; exit 0; fi
if [[ $# -eq 0 || $1 == -* ]]; then set -- "$root/cfgs/cluster/cpu_smollm2.json" "$@"; fi

export GRAFT_HOME=${GRAFT_HOME:-$root/.graft}
exec "${PYTHON:-$root/.venv/bin/python}" -m launch up "$@"
