"""Score answers, some of them in child processes: mathematics, code and instructions are checked by programs.

`ScorerPool` keeps its children for many answers. Every verdict comes within a bounded time; a child that takes longer
is ended, and the answer counts as wrong.
"""

from __future__ import annotations

import asyncio
import importlib.util
import queue
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from experiments.questions.catalog import entry
from experiments.questions.code import reference_outputs, score_code
from experiments.questions.item import BenchmarkError, Item
from experiments.questions.sandbox import Limits
from experiments.questions.scores import Score, after_thinking, boxed, score_exact, score_letter, score_number
from experiments.questions.worker import Worker, WorkerError, WorkerStartError

_NEEDED = {
    "math_worker": ("math_verify",),
    "ifbench_worker": ("if_verifiable", "nltk", "punkt", "emoji", "syllapy"),
}
_INSTALL = {
    "math_worker": "pip install math-verify==0.9.0",
    "ifbench_worker": "pip install --no-deps -r requirements/benchmarks.txt",
}


class ScorerPool:
    """Up to `workers` verdicts at a time, from any thread or coroutine."""

    def __init__(self, *, workers: int = 2, time_limit_s: float = 20.0, code_limits: Limits | None = None) -> None:
        self._time_limit_s = time_limit_s
        self._code_limits = code_limits or Limits()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="scorer")
        self._turns = threading.BoundedSemaphore(workers)
        self._idle: dict[str, queue.SimpleQueue[Worker]] = {program: queue.SimpleQueue() for program in _NEEDED}
        self._expected: dict[str, tuple[Any, ...]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Wait for verdicts under way and end the children."""
        self._threads.shutdown(cancel_futures=True)
        for workers in self._idle.values():
            while not workers.empty():
                workers.get().close()

    async def score_async(self, item: Item, text: str) -> Score:
        """As `score`, without blocking the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.score, item, text)

    def score(self, item: Item, text: str) -> Score:
        """Whether `text` answers `item`. Raises `BenchmarkError` when what its scorer needs is not installed."""
        text = after_thinking(text)
        match entry(item.benchmark).scorer:
            case "number":
                return score_number(item, text)
            case "letter":
                return score_letter(item, text)
            case "exact":
                return score_exact(item, text)
            case "math":
                return self._score_math(item, text)
            case "instructions":
                return self._score_instructions(item, text)
            case "code":
                with self._turns:
                    # Twice at worst: two threads may meet the same new item.
                    if item.id not in self._expected:
                        self._expected[item.id] = reference_outputs(item)
                    return score_code(item, text, self._expected[item.id], self._code_limits)

    def _score_math(self, item: Item, text: str) -> Score:
        if (content := boxed(text)) is not None:
            # What else the text holds is not the answer.
            text = f"\\boxed{{{content}}}"
        try:
            verdict = self._ask("math_worker", {"answer": item.answer, "text": text})
        except WorkerError as error:
            return Score(correct=False, extracted=content, detail=str(error))
        extracted = verdict["extracted"]
        if extracted is None:
            return Score(correct=False, extracted=None, detail="no answer that can be read")
        detail = "equal" if verdict["correct"] else "another value"
        return Score(correct=verdict["correct"], extracted=content or extracted, detail=detail)

    def _score_instructions(self, item: Item, text: str) -> Score:
        request = {
            "prompt": item.meta["question"],
            "text": text,
            "instructions": item.meta["instruction_id_list"],
            "arguments": item.meta["kwargs"],
        }
        try:
            checks = self._ask("ifbench_worker", request)["checks"]
        except WorkerError as error:
            return Score(correct=False, extracted=None, detail=str(error))
        return _instructions_score(checks, text)

    def _ask(self, program: str, request: Mapping[str, Any]) -> dict[str, Any]:
        missing = [module for module in _NEEDED[program] if importlib.util.find_spec(module) is None]
        if missing:
            raise BenchmarkError(f"this scorer needs {', '.join(missing)}: {_INSTALL[program]}")
        with self._turns:
            try:
                worker = self._idle[program].get_nowait()
            except queue.Empty:
                worker = Worker(program)
            try:
                answer = worker.ask(dict(request), self._time_limit_s)
            except WorkerStartError as error:
                # No verdict on the answer: it would be wrong to count it as wrong.
                raise BenchmarkError(f"{error}; {_INSTALL[program]}") from error
            # One that raised has ended itself.
            self._idle[program].put(worker)
            return answer


def _instructions_score(checks: list[dict[str, bool] | None], text: str) -> Score:
    """IFBench counts prompts all of whose instructions are followed, in the loose reading."""
    known = [check for check in checks if check is not None]
    unknown = len(checks) - len(known)
    loose, strict = (sum(check[reading] for check in known) for reading in ("loose", "strict"))
    detail = f"{loose} of {len(checks)} followed, {strict} strictly" + (f", {unknown} unverifiable" if unknown else "")
    extracted = text.strip() or None
    if loose == len(known) and unknown:
        return Score(correct=False, extracted=extracted, detail=detail, unverifiable=True)
    return Score(correct=loose == len(checks), extracted=extracted, detail=detail)


def score(item: Item, text: str) -> Score:
    """Whether `text` answers `item`. For many answers use a `ScorerPool`: it starts its processes once."""
    with ScorerPool(workers=1) as pool:
        return pool.score(item, text)
