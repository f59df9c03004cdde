"""What is told on stderr while something is measured."""

from __future__ import annotations

import re

import pytest

from experiments.kernel.progress import Progress


def test_a_line_for_each_that_has_ended(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(2, "sample") as progress:
        progress.start()
        progress.begin("a")
        progress.end("a: 3 ms")
        progress.say("half of it")
        progress.end("b: FAILED")
    told = capsys.readouterr()
    first, second = told.err.splitlines()
    assert re.fullmatch(r"sample 1/2 a: 3 ms; [\d:]+ left", first)
    assert second == "sample 2/2 b: FAILED; 00:00 left"
    assert told.out == "half of it\n"


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Progress(2, "sample") as progress:
        progress.start()
        progress.begin("a")
        progress.end("a: 3 ms")
    told = capsys.readouterr().err
    assert "a: 3 ms" in told
    assert "1/2" in told
    assert "left]" in told
