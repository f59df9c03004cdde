"""A wheel, installed where nothing else of Graft is: it finds its configurations, and needs no more than it says."""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DESCRIPTION = ("pyproject.toml", "setup.py", "README.md", "LICENSE")
pytestmark = pytest.mark.heavy


class Installation:
    """A virtual environment with a wheel of the given folders of the source tree; what Graft needs is borrowed."""

    def __init__(self, folder: Path, copied: Sequence[str]) -> None:
        source, self._bin, self._elsewhere = folder / "source", folder / "venv" / "bin", folder / "elsewhere"
        self._elsewhere.mkdir()
        for name in copied:
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in DESCRIPTION:
            shutil.copy(ROOT / name, source / name)
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
        self._done(*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(folder), str(source))
        self._done(sys.executable, "-m", "venv", "--without-pip", str(self._bin.parent))
        python = str(self._bin / "python")
        (wheel,) = folder.glob("*.whl")
        self._done(*pip, "--python", python, "install", "--no-deps", "--no-index", str(wheel))
        # Of a folder that a .pth file adds, .pth files are not read: an editable Graft there stays out of sight.
        (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
        (packages / "borrowed.pth").write_text("\n".join(site.getsitepackages()))

    def graft(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._run(str(self._bin / "graft"), *arguments)

    def python(self, code: str) -> str:
        return self._done(str(self._bin / "python"), "-c", code)

    def _done(self, *command: str) -> str:
        done = self._run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(
            command, cwd=self._elsewhere, env=environment, capture_output=True, text=True, check=False
        )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    packages = [path.parent.name for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests"]
    return Installation(tmp_path_factory.mktemp("whole"), [*packages, "cfgs"])


@pytest.fixture(scope="module")
def of_router(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """What the image of the shell router is made of."""
    (stage,) = (
        stage
        for stage in re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
        if " AS shell-router-build" in stage
    )
    copied = re.findall(r"^COPY (\w+) \1$", stage, re.MULTILINE)
    return Installation(tmp_path_factory.mktemp("of_router"), copied)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("plan", "cpu_tiny"), "cluster cpu_tiny runs nothing on GPUs"),
        (("plan", "cpu_tiny", "--commands"), "launch/cfgs/trees/tree_9_3_1.json"),
        (("questions", "list"), "gsm8k"),
        (("questions", "show", "gsm8k_sample"), "?"),
        (("schema", "--check"), ""),
        (("run", "--help"), "four_settings"),
        (("bench", "overlap", "--help"), "cpu_smollm2"),
    ],
)
def test_commands_find_what_ships(whole: Installation, arguments: tuple[str, ...], told: str) -> None:
    done = whole.graft(*arguments)
    assert done.returncode == 0, done.stderr
    assert told in done.stdout


def test_check_judges_the_machine_not_the_configuration(whole: Installation) -> None:
    done = whole.graft("check", "cpu_tiny")
    # Beside other tests' workers memory may be short, which is for others to test.
    assert "cluster cpu_tiny can" in done.stdout + done.stderr
    assert "trees" not in done.stderr


def test_an_unknown_name_is_answered_with_those_there_are(whole: Installation) -> None:
    done = whole.graft("up", "cpu_smol")
    assert done.returncode == 2
    assert "cpu_smollm2" in done.stderr


def test_nothing_comes_from_the_source_tree(whole: Installation) -> None:
    files = whole.python(
        "import graft, experiments, launch.shipped, shell_router, sglang_ext\n"
        "print(*(module.__file__ for module in (graft, experiments, launch, shell_router, sglang_ext)),"
        " launch.shipped.folder('trees'), sep='\\n')"
    )
    assert all("/venv/lib/" in file for file in files.splitlines()), files


def test_the_routers_installation_serves_without_the_experiments(of_router: Installation) -> None:
    loaded = of_router.python(
        "import graft.cli, shell_router.app, sys; print(*sys.modules.keys() & {'experiments', 'matplotlib', 'scipy'})"
    )
    assert loaded == ""
    assert of_router.graft("--help").returncode == 0
    page = of_router.python("from shell_router.ui import FOLDER; print(*(each.name for each in FOLDER.iterdir()))")
    assert {"index.html", "main.js", "style.css", "icon.svg"} <= set(page.split())
    assert of_router.graft("plan", "cpu_tiny").returncode == 0


@pytest.mark.parametrize("command", [("run", "demo"), ("report", "."), ("bench", "load", "--help")])
def test_a_command_that_is_not_installed_says_what_to_install(
    of_router: Installation, command: tuple[str, ...]
) -> None:
    done = of_router.graft(*command)
    assert done.returncode == 2
    assert "[experiments]'" in done.stderr
    assert "Traceback" not in done.stderr
