"""The assessing process and the one that starts it, from outside."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.waiting import is_gone, wait_until

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).resolve().parents[3]


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_child_goes_with_a_killed_parent() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-m", "tests.shell_router.assess.parent_process"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "[0, 0]\n"
        (child,) = psutil.Process(parent.pid).children()
        # What Ctrl-C sends to all processes of a terminal is for the router alone.
        child.send_signal(signal.SIGINT)
        parent.send_signal(signal.SIGUSR1)
        assert parent.stdout.readline() == "[0, 1]\n"
        parent.kill()
        wait_until(lambda: is_gone(child.pid))
    finally:
        parent.kill()
        parent.communicate()


def test_the_router_loads_no_models() -> None:
    done = _python(
        "import sys, shell_router.assess.client as _\n"
        "print({'torch', 'sentence_transformers', 'math_verify'} & sys.modules.keys())"
    )
    assert done.stdout == "set()\n"


def test_what_no_alarm_interrupts_ends_the_process() -> None:
    done = _python(
        "import time\n"
        "from shell_router.assess import ballots\n"
        "ballots._STUCK_S = 0.2\n"
        "with ballots._bounded(time.monotonic() + 60):\n"
        "    print((3 ** 10**9).bit_length())"
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Timeout" in done.stderr
