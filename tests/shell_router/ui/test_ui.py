"""The page's modules in Node, on a stand-in for a browser's document. What wants a real browser is in tests/browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from shell_router.ui import FOLDER

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
NODE = shutil.which("node")
OLDEST = 20
"""Of Node's versions, the first with a test runner as these tests use it."""


def why_not() -> str | None:
    if NODE is None:
        return "node is not installed (Debian: apt-get install nodejs)"
    version = subprocess.run([NODE, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return f"node is {version}; {OLDEST} is needed" if int(version[1:].partition(".")[0]) < OLDEST else None


@pytest.mark.heavy
@pytest.mark.parametrize("tests", sorted(path.name for path in HERE.glob("*.test.mjs")))
def test_in_node(tests: str, tmp_path: Path) -> None:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    # Node takes a `.js` for a module where a package says so; a browser needs none.
    (tmp_path / "package.json").write_text(json.dumps({"type": "module"}))
    for folder, pattern in ((FOLDER, "*.js"), (HERE, "*.mjs")):
        copy = tmp_path / folder.relative_to(ROOT)
        copy.mkdir(parents=True)
        for path in folder.glob(pattern):
            shutil.copy(path, copy)
    command = [str(NODE), "--test", str(tmp_path / HERE.relative_to(ROOT) / tests)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=250, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr
    assert "\n# tests 0\n" not in done.stdout
