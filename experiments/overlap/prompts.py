"""One prompt that is written piece by piece, in each of the three modes.

blocking      nothing is sent before the commit, which is one plain request with the whole prompt
resend        each append is a plain request with the prompt so far and one token to generate
incremental   each append goes to an incremental session on both workers
"""

from __future__ import annotations

import contextlib
import random
import uuid
from collections.abc import Sequence
from typing import Any, Literal, Protocol, get_args

import msgspec

from experiments.kernel.client import ClientError
from experiments.overlap.client import EngineClient, Facts, Generated, OnTokens, Snapshot
from sglang_ext import protocol

Mode = Literal["blocking", "resend", "incremental"]
MODES: tuple[Mode, ...] = get_args(Mode)


class Marks(msgspec.Struct, frozen=True, kw_only=True):
    """The prefill worker's counters around the parts of one prompt's life."""

    before: Snapshot
    """Nothing was sent yet."""
    early: Snapshot
    """The last append has been answered."""
    ready: Snapshot
    """Just before the commit; foreign requests may have come in between."""
    after: Snapshot
    """The answer has ended."""


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """What a prompt cost. None where the mode gives no way to know."""

    bytes_before_commit: int | None
    bytes_after_commit: int | None
    """KV moved from prefill to decode worker."""
    recomputed_tokens: int | None
    """Prompt tokens whose KV was computed more than once."""
    hidden_tokens: int | None
    """Prompt tokens whose KV had been computed before the commit and still was there for it."""


class Prompt(Protocol):
    """A prompt in one of the modes. Calls come one after the other."""

    async def begin(self, bound: int) -> None:
        """Before the first append; the whole prompt will have at most `bound` tokens."""

    async def append(self, ids: Sequence[int]) -> float | None:
        """Prefill these tokens too. Seconds it took; None where the mode sends nothing."""

    async def commit(
        self, ids: Sequence[int], sampling: dict[str, Any], on_tokens: OnTokens | None = None
    ) -> Generated:
        """Append the last tokens and generate."""

    async def close(self) -> None:
        """After a failure: leave nothing on the workers."""

    def account(self, marks: Marks, answer: Generated) -> Account: ...


def make_prompt(mode: Mode, client: EngineClient, facts: Facts) -> Prompt:
    if mode == "incremental":
        return _Incremental(client, facts)
    return _Resend(client) if mode == "resend" else _Blocking(client)


async def discard(prompt: Prompt) -> None:
    """Close a prompt that has failed; why it failed is told, not why it then could not be closed."""
    with contextlib.suppress(ClientError):
        await prompt.close()


class _Blocking:
    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self._ids: list[int] = []

    async def begin(self, bound: int) -> None:
        pass

    async def append(self, ids: Sequence[int]) -> float | None:
        self._ids.extend(ids)
        return None

    async def commit(
        self, ids: Sequence[int], sampling: dict[str, Any], on_tokens: OnTokens | None = None
    ) -> Generated:
        self._ids.extend(ids)
        return await self._client.generate(_name(), self._ids, sampling, on_tokens)

    async def close(self) -> None:
        """A plain request that fails is aborted where it was made."""

    def account(self, marks: Marks, answer: Generated) -> Account:
        return Account(
            bytes_before_commit=0,
            bytes_after_commit=_moved(marks.ready, marks.after),
            recomputed_tokens=0,
            hidden_tokens=0,
        )


class _Resend(_Blocking):
    def __init__(self, client: EngineClient) -> None:
        super().__init__(client)
        self._sent = 0
        self._recomputed = 0

    async def append(self, ids: Sequence[int]) -> float | None:
        self._ids.extend(ids)
        probe = await self._client.generate(_name(), self._ids, {"max_new_tokens": 1, "temperature": 0})
        self._count(probe)
        return probe.ended - probe.sent

    async def commit(
        self, ids: Sequence[int], sampling: dict[str, Any], on_tokens: OnTokens | None = None
    ) -> Generated:
        answer = await super().commit(ids, sampling, on_tokens)
        self._count(answer)
        return answer

    def account(self, marks: Marks, answer: Generated) -> Account:
        return Account(
            bytes_before_commit=_moved(marks.before, marks.early),
            bytes_after_commit=_moved(marks.ready, marks.after),
            recomputed_tokens=self._recomputed,
            hidden_tokens=answer.cached_tokens,
        )

    def _count(self, answer: Generated) -> None:
        """What earlier requests had computed and no cache had any more."""
        self._recomputed += max(0, self._sent - answer.cached_tokens)
        self._sent = len(self._ids)


class _Incremental:
    def __init__(self, client: EngineClient, facts: Facts) -> None:
        self._client = client
        self._facts = facts
        self._id = _name()
        self._seq = 0
        self._held = 0

    async def begin(self, bound: int) -> None:
        await self._client.open(
            protocol.OpenRequest(
                session_id=self._id,
                bootstrap_host=self._facts.bootstrap_host,
                bootstrap_port=self._facts.bootstrap_port,
                bootstrap_room=random.randrange(1, 2**63),
                max_prompt_tokens=bound,
            )
        )

    async def append(self, ids: Sequence[int]) -> float | None:
        self._seq += 1
        request = protocol.AppendRequest(session_id=self._id, seq=self._seq, input_ids=list(ids))
        reply, seconds = await self._client.append(request)
        self._held = reply.held_tokens
        return seconds

    async def commit(
        self, ids: Sequence[int], sampling: dict[str, Any], on_tokens: OnTokens | None = None
    ) -> Generated:
        self._seq += 1
        request = protocol.CommitRequest(
            session_id=self._id, seq=self._seq, input_ids=list(ids), sampling_params=sampling, stream=True
        )
        return await self._client.commit(request, on_tokens)

    async def close(self) -> None:
        await self._client.close_session(self._id)
        # Once committed it is a request like any other, under the session's name.
        await self._client.abort(self._id)

    def account(self, marks: Marks, answer: Generated) -> Account:
        page_bytes = self._facts.sessions.page_bytes if self._facts.sessions else None
        before, early, ready, after = (
            snapshot.sessions for snapshot in (marks.before, marks.early, marks.ready, marks.after)
        )
        if page_bytes is None or before is None or early is None or ready is None or after is None:
            return Account(
                bytes_before_commit=None, bytes_after_commit=None, recomputed_tokens=None, hidden_tokens=None
            )
        again_late = after.recomputed_tokens - ready.recomputed_tokens
        # What was let go after the last append must be computed again; without a count of it there is no number.
        counted = after.lets_go == early.lets_go or again_late > 0
        return Account(
            bytes_before_commit=(after.early_pages - before.early_pages) * page_bytes,
            bytes_after_commit=(after.commit_pages - before.commit_pages) * page_bytes,
            recomputed_tokens=after.recomputed_tokens - before.recomputed_tokens if counted else None,
            hidden_tokens=self._held - again_late if counted else None,
        )


def _moved(start: Snapshot, end: Snapshot) -> int | None:
    """Bytes moved between two snapshots."""
    if start.transferred_bytes is None or end.transferred_bytes is None:
        return None
    return end.transferred_bytes - start.transferred_bytes


def _name() -> str:
    return f"overlap-{uuid.uuid4().hex}"
