"""The shell scripts: they parse, explain themselves, and start workers as the launcher does."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from launch.command import plan
from launch.config import load_cluster

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
# Stands in for Python: resolves a model to a path, and prints any other command line instead of running it.
PRINTER = """#!/usr/bin/env bash
if [[ $2 == launch.checkpoint ]]; then echo /models/m; else printf '%s\\n' "$@"; fi
"""


def bash(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", *arguments], env={**os.environ, **environment}, capture_output=True, text=True, timeout=30, check=False
    )


@pytest.fixture
def printer(tmp_path: Path) -> str:
    path = tmp_path / "python"
    path.write_text(PRINTER)
    path.chmod(0o755)
    return str(path)


def test_there_is_one_for_each_process() -> None:
    assert {script.stem for script in SCRIPTS} == {"prefill", "decode", "router", "shell_router"}


@pytest.mark.parametrize(
    "script", [*SCRIPTS, ROOT / "requirements" / "install.sh", ROOT / ".ci" / "run"], ids=lambda path: path.stem
)
def test_scripts_parse_and_can_be_run(script: Path) -> None:
    assert bash("-n", str(script)).returncode == 0
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_explain_themselves(script: Path) -> None:
    for flag in ("-h", "--help"):
        done = bash(str(script), flag)
        assert done.returncode == 0
        assert done.stdout.startswith("usage: ")
        assert f"launch/{script.name}" in done.stdout


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_workers_start_as_the_launcher_starts_them(role: str, printer: str) -> None:
    config = load_cluster(ROOT / "cfgs" / "cluster" / "cpu_smollm2.json")
    workers = plan(
        config, dict.fromkeys((path for _, path in config.paths()), "/models/m"), lambda: 1, Path("r.json")
    ).workers
    (argv,) = (worker.command.argv for worker in workers if worker.role == role)
    done = bash(str(LAUNCH / f"{role}.sh"), PYTHON=printer, CORES="0", PORT="1", BOOTSTRAP_PORT="1")
    assert done.returncode == 0, done.stderr
    mine = done.stdout.split()
    # The dtype is the checkpoint's own in both cases: the launcher writes it out.
    theirs = list(argv[1:])
    position = theirs.index("--dtype")
    del theirs[position : position + 2]
    assert sorted(mine) == sorted(theirs)


def test_more_flags_are_passed_on(printer: str) -> None:
    done = bash(str(LAUNCH / "decode.sh"), "--log-level", "debug", PYTHON=printer, DEVICE="cuda", GPUS="2,3")
    assert done.stdout.split()[-4:] == ["--tp-size", "2", "--log-level", "debug"]
    assert bash(str(LAUNCH / "decode.sh"), PYTHON=printer, DEVICE="tpu").returncode == 2
