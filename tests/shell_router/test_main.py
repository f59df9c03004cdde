"""The command line of a shell router: it may listen elsewhere than its configuration says."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from shell_router.config import RouterConfig
from tests.waiting import wait_until


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "shell_router.json"
    path.write_bytes(msgspec.json.encode(RouterConfig(host="192.0.2.1", port=1, models=(), trees=())))
    return path


def command(file: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "shell_router", "--config", str(file), *flags]


def test_flags_win_over_the_configuration(file: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with socket.create_server(("127.0.0.1", 0)) as taken, log.open("wb") as sink:
        port = taken.getsockname()[1]
        # The same port on another address of this machine.
        router = subprocess.Popen(command(file, "--host", "127.0.0.2", "--port", str(port)), stdout=sink, stderr=sink)
        try:
            wait_until(lambda: f"listening on http://127.0.0.2:{port}" in log.read_text())
        finally:
            router.terminate()
            assert router.wait(timeout=20) == 0


def test_a_flag_that_is_wrong_is_named(file: Path) -> None:
    done = subprocess.run(command(file, "--port", "70000"), capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 2
    assert done.stderr == "shell_router: --port: Expected `int` <= 65535 - at `$.port`\n"


def test_flags_say_what_is_logged(file: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    flags = ("--host", "127.0.0.2", "--port", "0", "--log-format", "json", "--log-level", "info", "--access-log")
    with log.open("wb") as sink:
        router = subprocess.Popen(command(file, *flags), stdout=sink, stderr=sink)
        try:
            wait_until(lambda: "listening on" in log.read_text())
        finally:
            router.terminate()
            assert router.wait(timeout=20) == 0
    records = [msgspec.json.decode(line) for line in log.read_text().splitlines()]
    assert any(each["message"].startswith("listening on http://127.0.0.2:") for each in records)
    assert all(each["level"] == "info" for each in records)
