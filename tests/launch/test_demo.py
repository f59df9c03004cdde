"""`make demo KEEP=1`: what it leaves, on a stand-in for `graft` that writes down how it is called."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
URL = "http://127.0.0.1:8000/ui/"
GRAFT = f"""#!{sys.executable}
import pathlib, sys, time
folder = pathlib.Path(__file__).parent
up = folder / "up"
with (folder / "calls").open("a") as calls:
    print(*sys.argv[1:], file=calls, flush=True)
command = sys.argv[1]
if command == (folder / "fails").read_text():
    sys.exit(3)
if command == "status":
    sys.exit(not up.exists())
if command == "up":
    up.touch()
if command == (folder / "hangs").read_text():
    time.sleep(60)
if command == "ui":
    print("{URL}")
if command == "down":
    up.unlink()
"""


class Demo:
    """The script, on the stand-in."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.hangs = self.fails = ""
        path = folder / "graft"
        path.write_text(GRAFT)
        path.chmod(0o755)
        self._environment = {**os.environ, "GRAFT": str(path), "GRAFT_HOME": str(folder)}

    @property
    def is_up(self) -> bool:
        return (self._folder / "up").exists()

    @is_up.setter
    def is_up(self, _: bool) -> None:
        (self._folder / "up").touch()

    @property
    def calls(self) -> list[str]:
        """The names of the commands, in turn."""
        path = self._folder / "calls"
        return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []

    def start(self) -> subprocess.Popen[str]:
        """In a process group of its own, as a terminal has it."""
        for name in ("hangs", "fails"):
            (self._folder / name).write_text(getattr(self, name))
        return subprocess.Popen(
            ["bash", str(ROOT / "launch" / "demo.sh")],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


@pytest.fixture
def demo(tmp_path: Path) -> Demo:
    return Demo(tmp_path)


def test_it_leaves_the_cluster_up_and_ends_with_the_address_of_the_page(demo: Demo) -> None:
    with demo.start() as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert demo.calls == ["status", "up", "run", "ui"]
    assert demo.is_up
    *_, how_to_stop, address = out.splitlines()
    assert how_to_stop.endswith("graft down cpu_smollm2")
    assert address == URL


def test_a_cluster_that_is_up_is_used(demo: Demo) -> None:
    demo.is_up = True
    with demo.start() as process:
        process.communicate(timeout=60)
    assert (process.returncode, demo.calls, demo.is_up) == (0, ["status", "run", "ui"], True)


def ctrl_c(process: subprocess.Popen[str]) -> None:
    """A terminal sends it to all in its foreground."""
    os.killpg(process.pid, signal.SIGINT)


@pytest.mark.parametrize(("end", "code"), [(ctrl_c, 130), (subprocess.Popen.terminate, 143)], ids=["Ctrl-C", "TERM"])
@pytest.mark.parametrize("during", ["up", "run"])
def test_an_interrupt_ends_it_all(
    demo: Demo, during: str, end: Callable[[subprocess.Popen[str]], None], code: int
) -> None:
    demo.hangs = during
    with demo.start() as process:
        wait_until(lambda: demo.calls[-1:] == [during])
        end(process)
        process.communicate(timeout=60)
    assert process.returncode == code
    assert demo.calls[-1] == "down"
    assert not demo.is_up


def test_an_interrupt_leaves_a_cluster_that_was_up_before(demo: Demo) -> None:
    demo.is_up = True
    demo.hangs = "run"
    with demo.start() as process:
        wait_until(lambda: demo.calls[-1:] == ["run"])
        process.terminate()
        process.communicate(timeout=60)
    assert (process.returncode, demo.calls, demo.is_up) == (143, ["status", "run"], True)


@pytest.mark.parametrize(
    ("fails", "calls"), [("run", ["status", "up", "run", "down"]), ("up", ["status", "up", "down"])]
)
def test_a_failure_is_told_and_leaves_nothing(demo: Demo, fails: str, calls: list[str]) -> None:
    demo.fails = fails
    with demo.start() as process:
        process.communicate(timeout=60)
    assert (process.returncode, demo.calls, demo.is_up) == (3, calls, False)


def test_make_calls_it() -> None:
    told = subprocess.run(
        ["make", "--dry-run", "demo", "KEEP=1"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert "GRAFT=.venv/bin/graft bash launch/demo.sh" in told.stdout
