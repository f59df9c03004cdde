"""Mathematics is judged in a child process: right, wrong and malformed answers, and children that fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from experiments.questions import BenchmarkError, Item, ScorerPool
from experiments.questions.worker import Worker, WorkerError, WorkerStartError

pytest.importorskip("math_verify", reason="math-verify is not installed")


@pytest.fixture(scope="module")
def pool() -> Iterator[ScorerPool]:
    with ScorerPool(workers=1) as pool:
        yield pool


def item(answer: str) -> Item:
    return Item(benchmark="math500", id="x", prompt="?", answer=answer)


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
    verdict = pool.score(item(answer), text)
    assert (verdict.correct, verdict.extracted) == (correct, extracted)


async def test_verdicts_do_not_block_the_loop(pool: ScorerPool) -> None:
    verdicts = await asyncio.gather(*(pool.score_async(item("4"), rf"\boxed{{{number}}}") for number in (3, 4, 5)))
    assert [verdict.correct for verdict in verdicts] == [False, True, False]


def test_a_verdict_comes_within_its_time() -> None:
    with ScorerPool(workers=1, time_limit_s=0.0) as pool:
        verdict = pool.score(item("70"), r"\boxed{70}")
    assert not verdict.correct
    assert verdict.detail == "no verdict within 0 s"


def test_a_child_that_has_ended_is_said_to_have() -> None:
    worker = Worker("math_worker")
    assert worker.ask({"answer": "1", "text": "$1$"}, 20.0)["correct"]
    begin = time.monotonic()
    with pytest.raises(WorkerError, match="ended"):
        # It is not what the program understands.
        worker.ask({}, 20.0)
    assert time.monotonic() - begin < 10


def test_a_scorer_that_cannot_start_gives_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WorkerStartError, match="does not start"):
        Worker("no_such_program").ask({}, 1.0)
    monkeypatch.setattr("experiments.questions.pool._NEEDED", {"math_worker": ("no_such_module",)})
    with ScorerPool() as pool, pytest.raises(BenchmarkError, match=r"no_such_module.*math-verify"):
        pool.score(item("1"), "1")
