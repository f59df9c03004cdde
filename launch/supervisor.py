"""What one launcher does about another: start one that stays in the background, and end one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO

from launch import process, state
from launch.cluster import GRACE_S, ClusterError
from launch.state import ClusterState, ProcessId

_POLL_S = 0.2
_STOP_S = 60.0
"""How long a launcher may take to stop its cluster before it is stopped over its head."""


def detach(cfg: Path, name: str, run_dir: Path, messages: TextIO) -> ClusterState:
    """Start `graft up cfg` in the background and wait until the cluster is ready.

    Its messages are relayed to `messages`. Raises `ClusterError` when it does not come up.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    log = run_dir / "launcher.log"
    with log.open("wb") as sink, log.open() as source:
        launcher = subprocess.Popen(
            [sys.executable, "-m", "launch", "up", str(cfg), "--run-dir", str(run_dir)],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while True:
                exit_code = launcher.poll()
                found = state.read(name)
                messages.write(source.read())
                if exit_code is not None:
                    raise ClusterError(f"cluster {name} did not come up (exit code {exit_code}); logs are in {run_dir}")
                if found is not None and found.launcher.pid == launcher.pid and found.url is not None:
                    # It goes on without us: not a child whose end somebody still has to see.
                    launcher.returncode = 0
                    return found
                time.sleep(_POLL_S)
        except KeyboardInterrupt:
            launcher.terminate()
            launcher.wait()
            raise


def take_down(cluster: ClusterState) -> None:
    """Stop all processes of `cluster`, and wait for their end, whether or not its launcher still lives."""
    if cluster.running():
        _signal(cluster.launcher, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_S
        while cluster.running() and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        if cluster.running():
            _signal(cluster.launcher, signal.SIGKILL)
    left = (state.read(cluster.name) or cluster).leftovers()
    process.stop_groups([one.id.pid for one in left], GRACE_S)
    state.remove(cluster.name)


def _signal(target: ProcessId, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(target.pid, number)
