"""What child processes judge, mathematics and instructions: right, wrong and malformed answers; children that fail."""

from __future__ import annotations

import asyncio
import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.questions import Question, ScorerPool
from experiments.questions.worker import Worker, WorkerError
from shell_router.config import ConfigError


def need(*modules: str) -> None:
    if missing := [module for module in modules if importlib.util.find_spec(module) is None]:
        pytest.skip(f"{', '.join(missing)}: not installed")


@pytest.fixture(scope="module")
def pool() -> Iterator[ScorerPool]:
    need("math_verify")
    with ScorerPool("math", workers=1) as pool:
        yield pool


def formula(answer: str) -> Question:
    return Question(id="x", prompt="?", answer=answer)


@pytest.mark.parametrize(
    ("answer", "text", "correct", "extracted"),
    [
        (r"\frac{1}{576}", r"so it is \boxed{\dfrac{1}{576}}.", True, r"\dfrac{1}{576}"),
        (r"\frac{1}{2}", r"\boxed{0.5}", True, "0.5"),
        (r"8\sqrt{10}", r"\boxed{8 \sqrt{10}}", True, r"8 \sqrt{10}"),
        (r"2^{25} \cdot 26!", r"\boxed{26! \cdot 2^{25}}", True, r"26! \cdot 2^{25}"),
        (
            r"\frac{-1+\sqrt{17}}{2}, \frac{-1-\sqrt{17}}{2}",
            r"\boxed{\frac{-1-\sqrt{17}}{2}, \frac{-1+\sqrt{17}}{2}}",
            True,
            r"\frac{-1-\sqrt{17}}{2}, \frac{-1+\sqrt{17}}{2}",
        ),
        ("70", r"\boxed{12}, no: \boxed{70}", True, "70"),
        ("70", r"\boxed{71}", False, "71"),
        ("70", r"70 or \boxed{", True, "70"),
        ("70", "no idea", False, None),
        ("70", "", False, None),
    ],
)
def test_verdicts(pool: ScorerPool, answer: str, text: str, correct: bool, extracted: str | None) -> None:
    verdict = pool.score(formula(answer), text)
    assert (verdict.correct, verdict.extracted) == (correct, extracted)


async def test_verdicts_do_not_block_the_loop(pool: ScorerPool) -> None:
    verdicts = await asyncio.gather(*(pool.score_async(formula("4"), rf"\boxed{{{number}}}") for number in (3, 4, 5)))
    assert [verdict.correct for verdict in verdicts] == [False, True, False]


def test_a_verdict_comes_within_its_time() -> None:
    need("math_verify")
    with ScorerPool("math", workers=1, time_limit_s=0.0) as pool:
        verdict = pool.score(formula("70"), r"\boxed{70}")
    assert not verdict.correct
    assert verdict.detail == "no verdict within 0 s"


def test_a_child_that_has_ended_is_said_to_have() -> None:
    need("math_verify")
    worker = Worker("math_worker")
    assert worker.ask({"answer": "1", "text": "$1$"}, 20.0)["correct"]
    begin = time.monotonic()
    with pytest.raises(WorkerError, match="ended"):
        # It is not what the program understands.
        worker.ask({}, 20.0)
    assert time.monotonic() - begin < 10


def test_a_scorer_that_cannot_start_gives_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    need("math_verify")
    monkeypatch.setattr("experiments.questions.worker._PROGRAMS", Path("/nowhere"))
    with ScorerPool("math") as pool, pytest.raises(ConfigError, match=r"math_worker.py does not start.*math-verify"):
        pool.score(formula("1"), "1")


@pytest.mark.parametrize(
    ("scorer", "install"), [("math", "math-verify"), ("instructions", r"requirements/benchmarks\.txt")]
)
def test_what_a_scorer_needs_is_asked_for_before_any_answer(
    scorer: Any, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.questions.pool._NEEDED", {scorer: ("no_such_module",)})
    with pytest.raises(ConfigError, match=f"no_such_module.*{install}"):
        ScorerPool(scorer)


def instructions(*wanted: tuple[str, dict[str, Any]]) -> Question:
    return Question(
        id="x",
        prompt="Say something.",
        answer="",
        meta={
            "question": "Say something.",
            "instruction_id_list": [name for name, _ in wanted],
            "kwargs": [arguments for _, arguments in wanted],
        },
    )


_KEYWORDS = ("count:keywords_multiple", {f"keyword{number}": word for number, word in enumerate("abcde", 1)})
_STOP_WORDS = ("ratio:stop_words", {"percentage": 10})


def test_what_is_followed_and_what_cannot_be_told() -> None:
    need("if_verifiable", "nltk", "punkt", "emoji", "syllapy")
    right = "a b b c c c d d d d d e e e e e e e"
    with ScorerPool("instructions", workers=1) as pool:
        followed = pool.score(instructions(_KEYWORDS), right)
        assert (followed.correct, followed.detail) == (True, "1 of 1 followed, 1 strictly")
        assert not pool.score(instructions(_KEYWORDS), "a b c d e").correct
        malformed = pool.score(instructions(_KEYWORDS), "")
        assert (malformed.correct, malformed.extracted) == (False, None)
        unknown = pool.score(instructions(_KEYWORDS, _STOP_WORDS), right)
        assert (unknown.correct, unknown.unverifiable) == (False, True)
        assert unknown.detail == "1 of 2 followed, 1 strictly, 1 unverifiable"
        # One that is known not to be followed decides.
        wrong = pool.score(instructions(_KEYWORDS, _STOP_WORDS), "a b")
        assert (wrong.correct, wrong.unverifiable) == (False, False)
