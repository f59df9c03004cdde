#!/usr/bin/env bash
# `make demo KEEP=1`: the demo on a cluster that stays up, and the address of its page. What interrupts it or fails
# before its end ends the cluster as well, unless that was up before.
#
#   GRAFT  the command (default: .venv/bin/graft)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly GRAFT=${GRAFT:-.venv/bin/graft} CLUSTER=cpu_smollm2
at_work="" started=""

# In the background and waited for: while something runs in front, a shell takes up no signal.
graft() {
    "$GRAFT" "$@" &
    at_work=$!
    wait "$at_work"
    at_work=""
}

finish() {
    local code=$?
    trap - EXIT INT TERM
    if [[ -n $at_work ]]; then
        kill -TERM "$at_work" 2>/dev/null || true
        wait "$at_work" || true
    fi
    # It may not have come up, which has been said.
    [[ -z $started ]] || "$GRAFT" down "$CLUSTER" || true
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if ! "$GRAFT" status "$CLUSTER" >/dev/null 2>&1; then
    started=1
    graft up --detach "$CLUSTER"
fi
graft run cfgs/experiments/demo.json --cluster "$CLUSTER"
echo "The cluster stays up, with these runs on its page. To stop it:" \
    "${GRAFT_HOME:+GRAFT_HOME=$GRAFT_HOME }$GRAFT down $CLUSTER"
graft ui --cluster "$CLUSTER" --print
started=""
