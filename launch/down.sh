#!/usr/bin/env bash
# Stop a cluster, whether or not its launcher still lives.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
    cat <<'TEXT'
usage: [VARIABLE=value ...] launch/down.sh [CLUSTER_NAME]

  CLUSTER_NAME  which one, if there are several
  GRAFT_HOME    where the state is kept        (.graft)
  PYTHON        interpreter with Graft         (.venv/bin/python)
TEXT
}
if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then usage; exit 0; fi

export GRAFT_HOME=${GRAFT_HOME:-$root/.graft}
exec "${PYTHON:-$root/.venv/bin/python}" -m launch down "$@"
