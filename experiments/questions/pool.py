"""Score answers, some of them in child processes: mathematics, code and instructions are checked by programs.

`ScorerPool` keeps its children for many answers. Every verdict comes within a bounded time; a child that takes longer
is ended, and the answer counts as wrong.
"""

from __future__ import annotations

import asyncio
import importlib.util
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from experiments.questions.catalog import Scorer
from experiments.questions.code import reference_outputs, score_code
from experiments.questions.question import Question
from experiments.questions.sandbox import Limits
from experiments.questions.scores import Score, score_exact, score_letter, score_number
from experiments.questions.worker import Worker, WorkerError
from shell_router.config import ConfigError
from shell_router.core.thinking import split
from shell_router.reading.announced import boxes
from shell_router.reading.formula import formula

_NEEDED: dict[Scorer, tuple[str, ...]] = {
    "math": ("math_verify",),
    "instructions": ("if_verifiable", "nltk", "punkt", "emoji", "syllapy"),
}
_INSTALL: dict[Scorer, str] = {
    "math": "pip install math-verify==0.9.0",
    "instructions": "pip install --no-deps -r requirements/benchmarks.txt",
}


class ScorerPool:
    """Verdicts of one scorer, up to `workers` at a time, from any thread or coroutine."""

    def __init__(
        self, scorer: Scorer, *, workers: int = 2, time_limit_s: float = 20.0, code_limits: Limits | None = None
    ) -> None:
        """Raises `ConfigError` when what the scorer needs is not installed."""
        missing = [module for module in _NEEDED.get(scorer, ()) if importlib.util.find_spec(module) is None]
        if missing:
            raise ConfigError(f"this scorer needs {', '.join(missing)}: {_INSTALL[scorer]}")
        self._scorer = scorer
        self._time_limit_s = time_limit_s
        self._code_limits = code_limits or Limits()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="scorer")
        self._turns = threading.BoundedSemaphore(workers)
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
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
        while not self._idle.empty():
            self._idle.get().close()

    async def score_async(self, question: Question, text: str) -> Score:
        """As `score`, without blocking the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.score, question, text)

    def score(self, question: Question, text: str) -> Score:
        """Whether `text` answers `question`. Raises `ConfigError` when the scorer's process cannot be started."""
        _, text, unfinished = split(text)
        if unfinished:
            return Score(correct=False, extracted=None, detail="it ends in the midst of thinking")
        match self._scorer:
            case "number":
                return self._score_number(question, text)
            case "letter":
                return score_letter(question, text)
            case "exact":
                return score_exact(question, text)
            case "math":
                return self._score_math(question, text)
            case "instructions":
                return self._score_instructions(question, text)
            case "code":
                return self._score_code(question, text)

    def _score_number(self, question: Question, text: str) -> Score:
        score = score_number(question, text)
        # A formula (`\\sqrt{16}`): math-verify tells, where it is installed.
        formula_alone = score.unverifiable and score.extracted is not None and "\\" in score.extracted
        if not formula_alone or importlib.util.find_spec("math_verify") is None:
            return score
        return self._score_math(question, f"\\boxed{{{score.extracted}}}")

    def _score_math(self, question: Question, text: str) -> Score:
        request = {"answer": formula(f"\\boxed{{{question.answer}}}"), "text": formula(text)}
        contents = ", ".join(boxes(text)) or None
        try:
            verdict = self._ask("math_worker", request)
        except WorkerError as error:
            return Score(correct=False, extracted=contents, detail=str(error))
        extracted = verdict["extracted"]
        if extracted is None:
            return Score(correct=False, extracted=None, detail="no answer that can be read")
        detail = "equal" if verdict["correct"] else "another value"
        return Score(correct=verdict["correct"], extracted=contents or extracted, detail=detail)

    def _score_instructions(self, question: Question, text: str) -> Score:
        request = {
            "prompt": question.meta["question"],
            "text": text,
            "instructions": question.meta["instruction_id_list"],
            "arguments": question.meta["kwargs"],
        }
        try:
            checks = self._ask("ifbench_worker", request)["checks"]
        except WorkerError as error:
            return Score(correct=False, extracted=None, detail=str(error))
        return _instructions_score(checks, text)

    def _score_code(self, question: Question, text: str) -> Score:
        with self._turns:
            # Twice at worst: two threads may meet the same new question.
            if question.id not in self._expected:
                self._expected[question.id] = reference_outputs(question)
            return score_code(question, text, self._expected[question.id], self._code_limits)

    def _ask(self, program: str, request: dict[str, Any]) -> dict[str, Any]:
        with self._turns:
            try:
                worker = self._idle.get_nowait()
            except queue.Empty:
                worker = self._start(program)
            answer = worker.ask(request, self._time_limit_s)
            # One that raised has ended itself.
            self._idle.put(worker)
            return answer

    def _start(self, program: str) -> Worker:
        try:
            return Worker(program)
        except WorkerError as error:
            # No verdict on the answer: it would be wrong to count it as wrong.
            raise ConfigError(f"{program}.py does not start: {error}; {_INSTALL[self._scorer]}") from error


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
