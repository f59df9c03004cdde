"""IFBench's checks run in a child process; some cannot be made without data that is not there."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from experiments.questions import BenchmarkError, Item, ScorerPool, score

_NEEDED = ("if_verifiable", "nltk", "punkt", "emoji", "syllapy")


def item(*instructions: tuple[str, dict[str, Any]]) -> Item:
    return Item(
        benchmark="ifbench",
        id="x",
        prompt="Say something.",
        answer="",
        meta={
            "question": "Say something.",
            "instruction_id_list": [name for name, _ in instructions],
            "kwargs": [arguments for _, arguments in instructions],
        },
    )


_KEYWORDS = ("count:keywords_multiple", {f"keyword{number}": word for number, word in enumerate("abcde", 1)})
_STOP_WORDS = ("ratio:stop_words", {"percentage": 10})


def test_what_is_followed_and_what_cannot_be_told() -> None:
    missing = [module for module in _NEEDED if importlib.util.find_spec(module) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)}: not installed (requirements/benchmarks.txt)")
    right = "a b b c c c d d d d d e e e e e e e"
    with ScorerPool(workers=1) as pool:
        followed = pool.score(item(_KEYWORDS), right)
        assert (followed.correct, followed.detail) == (True, "1 of 1 followed, 1 strictly")
        assert not pool.score(item(_KEYWORDS), "a b c d e").correct
        malformed = pool.score(item(_KEYWORDS), "")
        assert (malformed.correct, malformed.extracted) == (False, None)
        unknown = pool.score(item(_KEYWORDS, _STOP_WORDS), right)
        assert (unknown.correct, unknown.unverifiable) == (False, True)
        assert unknown.detail == "1 of 2 followed, 1 strictly, 1 unverifiable"
        # One that is known not to be followed decides.
        wrong = pool.score(item(_KEYWORDS, _STOP_WORDS), "a b")
        assert (wrong.correct, wrong.unverifiable) == (False, False)


def test_without_its_packages_the_scorer_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.questions.pool._NEEDED", {"ifbench_worker": ("no_such_module",)})
    with pytest.raises(BenchmarkError, match=r"no_such_module.*requirements/benchmarks\.txt"):
        score(item(_KEYWORDS), "a b c d e")
