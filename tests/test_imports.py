"""Who may import whom: the contracts in pyproject.toml hold, and the light parts are light."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_import_contracts_hold() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_of_ours_is_imported_by_a_string() -> None:
    """The contracts see import statements only."""
    ours = ("graft", "experiments", "launch", "shell_router", "sglang_ext")
    hidden = re.compile(rf"""(?:import_module|resolve_name|__import__)\(\s*f?["'](?:{"|".join(ours)})\b""")
    files = [file for package in ours for file in (ROOT / package).rglob("*.py")]
    assert [str(file) for file in files if hidden.search(file.read_text())] == []


@pytest.mark.parametrize(
    "module", ["shell_router.app", "graft.cli.clusters", "experiments.settings.command", "sglang_ext.protocol"]
)
def test_neither_torch_nor_sglang_is_loaded(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'sglang'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
