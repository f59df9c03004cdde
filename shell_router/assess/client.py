"""`Assessor` by a child process that is started anew when it dies. What was embedded is lost then: those runs cannot
be compared any more, and do not exit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import count

from shell_router.assess.base import AssessError
from shell_router.assess.child import Child
from shell_router.assess.wire import (
    Answer,
    Classes,
    Compare,
    Embedded,
    Forget,
    Found,
    Likeness,
    Look,
    Refused,
    Request,
    Sort,
    Window,
)
from shell_router.config import ConfigError, EmbeddingConfig
from shell_router.core.early_exit import BallotKind
from shell_router.core.routing import Evidence
from shell_router.core.windows import Windows
from shell_router.scores import ScoreTable

logger = logging.getLogger(__name__)

_TIMEOUT_S = 30.0
"""Longest wait for one check without an `EmbeddingConfig`."""
_EVIDENCE_S = 1.0
"""Longest wait for what a scorer knows: a run begins after it."""
_FIRST_RETRY_S = 0.5
_LAST_RETRY_S = 60.0
_WAITING_CHARACTERS = 4 * 1024 * 1024
"""That wait to be embedded, in the pipe and in the child; beyond these, windows are dropped and their runs are lost."""
_UNSENT_BYTES = 8 * 1024 * 1024
"""Beyond these the child does not read, and takes no more checks."""


def check_ballots(kind: BallotKind) -> None:
    """Raises `ConfigError` when what ballots of this kind need is not installed."""
    if kind == "math" and find_spec("math_verify") is None:
        raise ConfigError('votes on mathematics need the package "math-verify" (extra "early-exit")')


@asynccontextmanager
async def open_assessor(
    config: EmbeddingConfig | None, scores: Sequence[ScoreTable] = ()
) -> AsyncIterator[AssessClient]:
    """An assessor with the model of `config`, for ballots alone without one, that knows `scores`. Its process is gone
    at the end.

    Raises `ConfigError` when the model cannot be loaded.
    """
    if config is not None and find_spec("sentence_transformers") is None:
        raise ConfigError('embedding: needs the package "sentence-transformers" (extra "early-exit")')
    client = AssessClient(config, await Child.start(config, scores), scores)
    keeper = asyncio.create_task(client.keep())
    try:
        yield client
    finally:
        keeper.cancel()
        await asyncio.wait([keeper])
        if not keeper.cancelled():
            keeper.result()


@dataclass
class _Run:
    """What has come of a run."""

    open: dict[str, Windows] = field(default_factory=dict)
    """Answers that have not ended."""
    ended: set[str] = field(default_factory=set)
    sent: bool = False
    """Whether the child has something of it."""
    lost: str | None = None
    """Why it cannot be compared any more."""


@dataclass(eq=False)
class _Check:
    """Who waits for an answer of the child."""

    answer: asyncio.Future[Likeness | Classes | Found]
    run: str | None = None
    agents: Collection[str] = ()

    def fail(self, message: str) -> None:
        if not self.answer.done():
            self.answer.set_exception(AssessError(message))


class AssessClient:
    """`Assessor` over one child process at a time. `keep` must run; see `open_assessor`."""

    def __init__(self, config: EmbeddingConfig | None, child: Child, scores: Sequence[ScoreTable] = ()) -> None:
        self._config = config
        self._scores = scores
        self._timeout_s = config.timeout_s if config is not None else _TIMEOUT_S
        self._child: Child | None = child
        self._waiting_characters = 0
        self._runs: dict[str, _Run] = {}
        self._checks: dict[int, _Check] = {}
        self._numbers = count()

    def extend(self, run: str, agent: str, text: str) -> None:
        if self._config is None:
            return
        known = self._runs.setdefault(run, _Run())
        if known.lost is not None:
            return
        if agent not in known.open:
            known.open[agent] = Windows(self._config.window_chars)
        self._embed(run, known, agent, known.open[agent].extend(text))

    def end(self, run: str, agent: str) -> None:
        if self._config is None:
            return
        known = self._runs.setdefault(run, _Run())
        known.ended.add(agent)
        windows = known.open.pop(agent, None)
        if windows is not None:
            self._embed(run, known, agent, windows.end())

    async def similarities(self, run: str, agents: Sequence[str]) -> list[float]:
        if self._config is None:
            raise AssessError("there is no embedding model")
        known = self._runs.get(run, _Run())
        if known.lost is not None:
            raise AssessError(known.lost)
        unended = [agent for agent in agents if agent not in known.ended]
        if unended:
            raise AssessError(f"run {run}: not ended: {', '.join(unended)}")
        answer = await self._ask(lambda number: Compare(number, run, tuple(agents)), run, agents)
        assert isinstance(answer, Likeness)
        return list(answer.values)

    async def ballots(self, answers: Sequence[str], kind: BallotKind) -> list[int | None]:
        # Half of the time: the child is not taken for stuck then, and others who wait have a chance.
        seconds = self._timeout_s / 2
        answer = await self._ask(lambda number: Sort(number, tuple(answers), kind, seconds))
        assert isinstance(answer, Classes)
        return list(answer.classes)

    async def evidence(self, tree: str, question: str) -> Mapping[str, Evidence]:
        try:
            async with asyncio.timeout(_EVIDENCE_S):
                answer = await self._ask(lambda number: Look(number, tree, question))
        except TimeoutError:
            raise AssessError(f"nothing was told of the question within {_EVIDENCE_S:g} s") from None
        assert isinstance(answer, Found)
        return answer.evidence

    def forget(self, run: str, agent: str | None = None) -> None:
        known = self._runs.get(run)
        if known is None:
            return
        if agent is None:
            del self._runs[run]
        else:
            known.open.pop(agent, None)
            known.ended.discard(agent)
        if known.sent and self._child is not None:
            self._child.send(Forget(run, agent))
        for check in self._checks.values():
            if check.run == run and (agent is None or agent in check.agents):
                check.fail(f"run {run} was forgotten")

    async def keep(self) -> None:
        """Take the child's answers, and start another when it has ended. Ends the child when cancelled."""
        failures = 0
        while True:
            assert self._child is not None
            child = self._child
            answered = False
            try:
                while (answer := await child.receive()) is not None:
                    answered = self._take(answer) or answered
            except Exception:
                logger.exception("the assessing process cannot be listened to")
            finally:
                self._child = None
                self._lose("the assessing process ended")
                status = await child.close()
            failures = 0 if answered else failures + 1
            logger.warning("the assessing process ended (status %d), another is started", status)
            self._child = await self._restart(failures)

    async def _restart(self, failures: int) -> Child:
        """A new child, after a pause that doubles with each failure."""
        while True:
            await asyncio.sleep(min(_FIRST_RETRY_S * 2.0 ** min(failures, 10), _LAST_RETRY_S))
            try:
                return await Child.start(self._config, self._scores)
            except ConfigError as error:
                failures += 1
                logger.warning("%s", error)

    def _take(self, answer: Answer) -> bool:
        """Pass `answer` to who waits for it. Whether it was an answer to a check."""
        match answer:
            case Embedded():
                self._waiting_characters -= answer.characters
                return False
            case Likeness() | Classes() | Found():
                # Who asked may have given up.
                if (check := self._checks.get(answer.number)) is not None and not check.answer.done():
                    check.answer.set_result(answer)
            case Refused():
                if (check := self._checks.get(answer.number)) is not None:
                    check.fail(answer.message)
            case _:
                raise AssertionError(f"{answer} comes once, at the start")
        return True

    def _lose(self, why: str) -> None:
        """All that the child knew is gone."""
        self._waiting_characters = 0
        for check in self._checks.values():
            check.fail(why)
        for run, known in self._runs.items():
            if known.sent:
                self._lose_run(run, known, why)

    def _lose_run(self, run: str, known: _Run, why: str) -> None:
        known.lost = f"run {run}: windows were lost: {why}"
        known.open.clear()

    def _embed(self, run: str, known: _Run, agent: str, windows: Sequence[str]) -> None:
        """Send `windows`; the run is lost when that cannot be."""
        for window in windows:
            if known.lost is not None:
                return
            if self._child is None:
                self._lose_run(run, known, "the assessing process is being started")
            elif self._waiting_characters + len(window) > _WAITING_CHARACTERS or self._child.unsent > _UNSENT_BYTES:
                self._lose_run(run, known, "the assessing process does not keep up")
            else:
                self._waiting_characters += len(window)
                known.sent = True
                self._child.send(Window(run, agent, window))

    async def _ask(
        self, request: Callable[[int], Request], run: str | None = None, agents: Collection[str] = ()
    ) -> Likeness | Classes | Found:
        """The child's answer to the request that `request` makes of a number. Raises `AssessError`."""
        child = self._child
        if child is None:
            raise AssessError("the assessing process is being started")
        if child.unsent > _UNSENT_BYTES:
            raise AssessError("the assessing process does not keep up")
        number = next(self._numbers)
        check = _Check(asyncio.get_running_loop().create_future(), run, agents)
        self._checks[number] = check
        received = child.received
        child.send(request(number))
        try:
            async with asyncio.timeout(self._timeout_s):
                return await check.answer
        except TimeoutError:
            if child.received == received:
                # Not a word in all this time: it is stuck, and would be for all others.
                child.kill()
            raise AssessError(f"no answer after {self._timeout_s:g} s") from None
        finally:
            del self._checks[number]
