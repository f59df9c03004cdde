"""What is known of workers: whether they are there, what load they told, and what they have been given since."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import msgspec

from sglang_ext.protocol import SessionReply, SessionsStatus, Status
from shell_router.core.append_cost import AppendCost, CostLearner
from shell_router.core.quicker import Quicker

_FRESH_S = 1.0
"""How long what a worker says of itself is gone by."""
_FIRST_RETRY_S = 1.0
_LAST_RETRY_S = 60.0
_PATIENT_ASKS = 4
"""A worker in a long forward pass does not answer in time; one that never does, so often in a row, is gone."""


@dataclass(eq=False)
class Known:
    """A worker of any role."""

    url: str
    there: bool | None = None
    """Whether it answers; None while that is to be found out."""
    status: Status | None = None
    """What it last said of itself."""
    offers: bool = False
    """Whether it takes sessions, as it said when it was last asked."""
    failures: int = 0
    """Asks in a row that it has not answered as a worker of ours."""
    ask_at: float = float("-inf")
    asked_at: float = float("-inf")
    """When the last ask that has been answered, or has failed, was made."""
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    given_tokens: int = 0
    """Of sessions that have been opened since it told its load, as far as their prompts were known then."""
    given_sessions: int = 0
    plain_requests: int = 0
    """Plain requests of this router that it has in hand."""
    plain_tokens: int = 0
    """Their prompts."""
    foreign_requests: int = 0
    """Requests of others that it had in hand when it told its load."""
    costs: CostLearner = field(default_factory=CostLearner)
    """What an append costs there, if it is a prefill worker."""
    busy: float = 0.0
    """The share of its time that ordinary requests last took."""

    def learn(self, told: SessionReply | SessionsStatus) -> None:
        """What a prefill worker says of its passes."""
        for each in told.passes:
            self.costs.observe(tokens=each.tokens, pairs=each.attended, seconds=each.seconds, at=each.ended_at)
        self.busy = told.load

    def told(self, status: Status, asked_at: float) -> None:
        """It has answered with `status`."""
        self.there, self.status, self.offers = True, status, status.sessions is not None
        self.given_tokens = self.given_sessions = self.failures = 0
        self.foreign_requests = max(0, status.requests - self.plain_requests)
        self.asked_at, self.ask_at = asked_at, asked_at + _FRESH_S
        if status.sessions is not None:
            self.learn(status.sessions)

    def missed(self, asked_at: float, *, there: bool | None) -> None:
        """It has not told its status; `there` says whether it has answered, None that it may be slow."""
        self.failures += 1
        self.offers = False
        if there is not None or self.failures >= _PATIENT_ASKS:
            self.there = bool(there)
        self.asked_at, self.ask_at = asked_at, asked_at + retry_s(self.failures - 1)

    def doubt(self) -> None:
        """Something failed on it: it may have been restarted, or be gone."""
        self.there, self.offers, self.ask_at = None, False, float("-inf")

    def give_session(self, tokens: int) -> None:
        self.given_tokens += tokens
        self.given_sessions += 1

    @property
    def bootstrap_port(self) -> int | None:
        return None if self.status is None else self.status.bootstrap_port

    def load(self, tokens: int = 0, sessions: int = 0) -> float:
        """How much of its room for sessions is taken, plain requests' part among it, from 0 on, with so much more."""
        assert self.status is not None
        assert self.status.sessions is not None
        told = self.status.sessions
        return max(
            (told.held_tokens + self.given_tokens + self.plain_tokens + tokens) / max(1, told.max_held_tokens),
            (len(told.open) + self.given_sessions + sessions) / max(1, told.max_sessions),
        )

    def waiting_tokens(self, tokens: int) -> int:
        """Of plain prompts, if requests of others are like one of `tokens`."""
        return self.plain_tokens + self.foreign_requests * tokens

    def held_tokens(self, tokens: int) -> int:
        """Of plain prompts and of sessions, if requests of others are like one of `tokens`."""
        told = None if self.status is None else self.status.sessions
        return self.waiting_tokens(tokens) + self.given_tokens + (0 if told is None else told.held_tokens)

    @property
    def requests(self) -> int:
        """Plain requests that it has in hand, whoever gave them."""
        return self.plain_requests + self.foreign_requests


@dataclass(eq=False)
class Pair:
    """A prefill worker and the decode worker it feeds."""

    prefill_worker: Known
    decode_worker: Known
    sessions: set[str] = field(default_factory=set)
    """Ids of those that are open on it."""
    taken: int = 0
    """Sessions and requests it was ever given."""
    failures: int = 0
    """Sessions that failed on it, in a row."""
    rests_until: float = float("-inf")
    on_decode: Quicker = field(default_factory=Quicker)
    """Whether what little is left of a prompt at its commit is sooner computed by the decode worker."""

    @property
    def append_cost(self) -> AppendCost | None:
        """What an append costs here, and others by it; None while that is not known."""
        cost = self.prefill_worker.costs.cost
        price = 1.0 if self.shares_places else self.prefill_worker.busy
        return None if cost is None else msgspec.structs.replace(cost, price=price)

    @property
    def shares_places(self) -> bool:
        """Whether both take turns on a card or a core."""
        told = (self.prefill_worker.status, self.decode_worker.status)
        one, other = (set() if status is None else set(status.places) for status in told)
        return not one.isdisjoint(other)

    @property
    def prefill(self) -> str:
        return self.prefill_worker.url

    @property
    def decode(self) -> str:
        return self.decode_worker.url

    def offers(self, at: float) -> bool:
        """Whether both are known to offer sessions, and none has failed a moment ago."""
        offering = self.prefill_worker.offers and self.decode_worker.offers
        return offering and self.bootstrap_port is not None and at >= self.rests_until

    @property
    def serves(self) -> bool:
        """Whether both are there, and how KV gets from one to the other is known."""
        return bool(self.prefill_worker.there and self.decode_worker.there and self.bootstrap_port is not None)

    @property
    def bootstrap_host(self) -> str:
        return urlsplit(self.prefill).hostname or ""

    @property
    def bootstrap_port(self) -> int | None:
        return self.prefill_worker.bootstrap_port


@dataclass(eq=False)
class Given:
    """A plain request that workers were given. It counts there until it has left them."""

    decode: Known
    tokens: int
    """Of its prompt."""
    pair: Pair | None = None
    """None when one worker does both."""
    _on: list[Known] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._on = [*((self.pair.prefill_worker,) if self.pair is not None else ()), self.decode]
        for worker in self._on:
            worker.plain_requests += 1
            worker.plain_tokens += self.tokens

    @property
    def workers(self) -> tuple[str, ...]:
        return (self.decode.url,) if self.pair is None else (self.pair.prefill, self.pair.decode)

    def begun(self) -> None:
        """Its first token is there: the prefill worker is through with it."""
        if self.pair is not None:
            self._leave(self.pair.prefill_worker)

    def ended(self) -> None:
        for worker in tuple(self._on):
            self._leave(worker)

    def failed(self) -> None:
        """Its workers get nothing more before they have been asked how they are."""
        self.decode.doubt()
        if self.pair is not None:
            self.pair.prefill_worker.doubt()

    def _leave(self, worker: Known) -> None:
        if worker in self._on:
            self._on.remove(worker)
            worker.plain_requests -= 1
            worker.plain_tokens -= self.tokens


def retry_s(failures: int) -> float:
    """How long something rests that has failed once more than `failures` times in a row."""
    return min(_FIRST_RETRY_S * 2.0 ** min(failures, 10), _LAST_RETRY_S)
