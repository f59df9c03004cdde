"""The assessing process: embeds windows as they come and answers checks. It ends when its stdin does.

One thread reads; the main thread does all the work, since math-verify's timeouts are signals.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
from collections.abc import Callable
from io import FileIO

import msgspec

from shell_router.assess.ballots import BallotError, sort_ballots
from shell_router.assess.embedding import Embedder
from shell_router.assess.likeness import RunAnswers
from shell_router.assess.scorer import Scorer
from shell_router.assess.wire import (
    LENGTH_BYTES,
    Answer,
    Classes,
    Compare,
    Embedded,
    Forget,
    Found,
    Likeness,
    Look,
    Ready,
    Refused,
    Request,
    Setup,
    Sort,
    Unfit,
    Window,
    body_length,
    decode_request,
    encode,
)

logger = logging.getLogger("shell_router.assess")

_BATCH = 32
"""Windows that are embedded at a time: checks are looked for in between."""


def main() -> int:
    # Ctrl-C goes to all processes of a terminal; the router, which still drains, ends this one by closing its stdin.
    for number in (signal.SIGINT, signal.SIGTERM):
        # They go to the router's whole group, and it may want answers while it drains.
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    requests, answers = _take_stdio()
    inbox: queue.SimpleQueue[Request] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests, inbox), daemon=True).start()

    def send(answer: Answer) -> None:
        _write_all(answers, encode(answer))

    setup = inbox.get()
    assert isinstance(setup, Setup)
    embedder = scorer = None
    if setup.embedding is not None:
        # Progress bars would fill the router's log.
        os.environ["TQDM_DISABLE"] = "1"
        try:
            embedder = Embedder(setup.embedding)
            scorer = Scorer(embedder.embed, setup.scores)
        except Exception as error:
            logger.exception("%s cannot be loaded", setup.embedding.path)
            send(Unfit(f"{type(error).__name__}: {error}"))
            return 1
    send(Ready(embedder.dimension if embedder is not None else None))
    worker = Worker(embedder, inbox, send, scorer)
    while True:
        worker.turn()


class Worker:
    """What the main thread does, in turns: take in what has come, sort ballots, embed windows, compare."""

    def __init__(
        self,
        embedder: Embedder | None,
        inbox: queue.SimpleQueue[Request],
        send: Callable[[Answer], None],
        scorer: Scorer | None = None,
    ) -> None:
        """`scorer` is for questions to be looked up."""
        self._embedder = embedder
        self._inbox = inbox
        self._send = send
        self._scorer = scorer
        self._windows: list[Window] = []
        self._compares: list[Compare] = []
        self._sorts: list[Sort] = []
        self._looks: list[Look] = []
        self._runs: dict[str, RunAnswers] = {}

    def turn(self) -> None:
        """Wait for something to do. Then do all checks that have come; without any, embed the oldest windows."""
        self._take_in()
        for look in self._looks:
            # First: a run waits for it.
            known = self._scorer.evidence(look.tree, look.question) if self._scorer is not None else {}
            self._send(Found(look.number, dict(known)))
        self._looks.clear()
        for sort in self._sorts:
            self._send(_classes(sort))
        self._sorts.clear()
        if not self._compares:
            self._embed(self._windows[:_BATCH])
            return
        # Answers that nobody asks for yet can wait.
        wanted = {(compare.run, agent) for compare in self._compares for agent in compare.agents}
        needed = [window for window in self._windows if (window.run, window.agent) in wanted]
        for begin in range(0, len(needed), _BATCH):
            self._embed(needed[begin : begin + _BATCH])
        for compare in self._compares:
            self._send(_likeness(compare, self._runs.get(compare.run, RunAnswers())))
        self._compares.clear()

    def _take_in(self) -> None:
        """Take all that has come; wait when there is nothing to do."""
        block = not self._windows
        while True:
            try:
                request = self._inbox.get(block=block)
            except queue.Empty:
                return
            block = False
            match request:
                case Window():
                    self._windows.append(request)
                case Compare():
                    self._compares.append(request)
                case Sort():
                    self._sorts.append(request)
                case Look():
                    self._looks.append(request)
                case Forget():
                    self._forget(request.run, request.agent)
                case Setup():
                    raise AssertionError("a second Setup")

    def _forget(self, run: str, agent: str | None) -> None:
        self._drop([each for each in self._windows if each.run == run and agent in (None, each.agent)])
        # Whoever waits for one of these has been told by the client.
        self._compares = [
            each for each in self._compares if not (each.run == run and (agent is None or agent in each.agents))
        ]
        if agent is None:
            self._runs.pop(run, None)
        elif run in self._runs:
            self._runs[run].forget(agent)

    def _embed(self, windows: list[Window]) -> None:
        if not windows:
            return
        assert self._embedder is not None
        for window, text in zip(windows, self._embedder.embed([each.text for each in windows]), strict=True):
            self._runs.setdefault(window.run, RunAnswers()).extend(window.agent, text)
        self._drop(windows)

    def _drop(self, windows: list[Window]) -> None:
        """Take `windows` off the list, and say so: the client counts what waits."""
        if windows:
            dropped = {id(each) for each in windows}
            self._windows = [each for each in self._windows if id(each) not in dropped]
            self._send(Embedded(sum(len(each.text) for each in windows)))


def _likeness(compare: Compare, answers: RunAnswers) -> Likeness | Refused:
    if unknown := answers.unknown(compare.agents):
        told = ", ".join(unknown)
        return Refused(compare.number, f"the embedding model does not know most of what these are written in: {told}")
    return Likeness(compare.number, tuple(answers.similarities(compare.agents)))


def _classes(sort: Sort) -> Classes | Refused:
    try:
        return Classes(sort.number, tuple(sort_ballots(sort.answers, sort.kind, sort.seconds)))
    except BallotError as error:
        return Refused(sort.number, str(error))


def _take_stdio() -> tuple[FileIO, FileIO]:
    """The pipes from and to the router, for frames alone: what a library prints goes to stderr, the router's log."""
    requests, answers = FileIO(os.dup(0), "rb"), FileIO(os.dup(1), "wb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return requests, answers


def _read(requests: FileIO, inbox: queue.SimpleQueue[Request]) -> None:
    """Read until the router closes the pipe or is gone, and end the process then, whatever the main thread does."""
    while (head := _read_exactly(requests, LENGTH_BYTES)) is not None:
        body = _read_exactly(requests, body_length(head))
        if body is None:
            break
        try:
            inbox.put(decode_request(body))
        except msgspec.DecodeError:
            logger.exception("a frame that is not ours: has the router's code changed?")
            os._exit(1)
    os._exit(0)


def _read_exactly(requests: FileIO, count: int) -> bytes | None:
    """The next `count` bytes; None when the pipe ends before."""
    data = b""
    while len(data) < count:
        more = requests.read(count - len(data))
        if not more:
            return None
        data += more
    return data


def _write_all(answers: FileIO, frame: bytes) -> None:
    """Write all of `frame`. When the router is gone the process ends."""
    rest = memoryview(frame)
    try:
        while rest:
            rest = rest[answers.write(rest) :]
    except BrokenPipeError:
        os._exit(0)
