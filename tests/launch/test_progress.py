"""What is told on stderr while something is measured."""

from __future__ import annotations

import re

import pytest

from launch.progress import Progress


def test_a_line_for_each_that_has_ended(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("sample", 2) as progress:
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
    with Progress("sample", 2) as progress:
        progress.start()
        progress.begin("a")
        progress.end("a: 3 ms")
    told = capsys.readouterr().err
    assert "a: 3 ms" in told
    assert "1/2" in told
    assert "left]" in told


def test_things_that_are_not_alike_tell_no_time_left_and_nothing_is_told_unasked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Progress("starting c", 2, alike=False) as progress:
        progress.tell("waiting for a")
        progress.begin("waiting for a")
        progress.end("a is ready")
    assert re.fullmatch(r"starting c: waiting for a\nstarting c 1/2 a is ready \[\d+ s\]\n", capsys.readouterr().err)
    with Progress("starting c", 2, shown=False) as progress:
        progress.tell("waiting for a")
        progress.end("a is ready")
    assert capsys.readouterr() == ("", "")


def test_the_number_may_turn_out_another(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("block", 2) as progress:
        progress.expect(5)
        progress.end("a")
    assert capsys.readouterr().err.startswith("block 1/5 a; ")
