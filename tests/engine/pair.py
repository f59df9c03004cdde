"""A client of one pair of real workers: sessions of the incremental API, plain requests, and what the workers hold."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from launch.cluster import Cluster
from sglang_ext import protocol

TOKENS = range(1000, 40000)
"""Ids of ordinary tokens in the tests' vocabulary."""
GREEDY = {"max_new_tokens": 12, "temperature": 0, "ignore_eos": True}
EVERY_APPEND = {"policy": "self_clocked"}
"""`chunks` of a run: a tiny model's appends cost more than they are worth, so that by default there would be none."""

QUEUES = (
    "prefill_bootstrap_queue_reqs",
    "prefill_inflight_queue_reqs",
    "decode_prealloc_queue_reqs",
    "decode_transfer_queue_reqs",
    "decode_retracted_queue_reqs",
)


def busy(load: dict[str, Any]) -> dict[str, int]:
    """What a worker still holds, from SGLang's own account of it."""
    counts = {name: load[name] for name in ("num_running_reqs", "num_waiting_reqs", "num_used_tokens")}
    counts |= {name: load["disaggregation"][name] for name in QUEUES}
    return {name: count for name, count in counts.items() if count}


class CallRefused(Exception):
    def __init__(self, worker: str, problem: protocol.Problem) -> None:
        super().__init__(f"{worker}: {problem.code}: {problem.message}")
        self.problem = problem


@dataclass
class Pair:
    """The first prefill worker and the first decode worker of a cluster."""

    client: aiohttp.ClientSession
    prefill: str
    decode: str
    router: str
    bootstrap_port: int

    @classmethod
    async def of(cls, cluster: Cluster, client: aiohttp.ClientSession) -> Pair:
        urls = {worker.role: worker.url for worker in reversed(cluster.workers)}
        (router,) = cluster.router_urls.values()
        pair = cls(client, urls["prefill"], urls["decode"], router, 0)
        port = (await pair.status(pair.prefill)).bootstrap_port
        assert port is not None
        pair.bootstrap_port = port
        return pair

    @property
    def workers(self) -> tuple[str, str]:
        return self.prefill, self.decode

    async def status(self, worker: str) -> protocol.Status:
        async with self.client.get(worker + protocol.STATUS_PATH) as reply:
            return msgspec.json.decode(await reply.read(), type=protocol.Status)

    async def sessions(self, worker: str) -> protocol.SessionsStatus:
        sessions = (await self.status(worker)).sessions
        assert sessions is not None
        return sessions

    async def call(self, worker: str, path: str, body: msgspec.Struct) -> bytes:
        async with self.client.post(
            worker + path, data=msgspec.json.encode(body), headers={"content-type": "application/json"}
        ) as reply:
            answer = await reply.read()
            if reply.status != 200:
                problem = msgspec.json.decode(answer, type=protocol.ProblemReply).error
                assert reply.status == problem.http_status
                raise CallRefused(worker, problem)
            return answer

    async def both(self, path: str, body: msgspec.Struct) -> tuple[bytes, bytes]:
        """The answers of both workers; the first refusal is raised when both have answered."""
        prefill, decode = await asyncio.gather(
            *(self.call(worker, path, body) for worker in self.workers), return_exceptions=True
        )
        for answer in (prefill, decode):
            if isinstance(answer, BaseException):
                raise answer
        assert isinstance(prefill, bytes)
        assert isinstance(decode, bytes)
        return prefill, decode

    async def generate(self, ids: Sequence[int], **more: Any) -> list[int]:
        """One plain request through sglang-router; the ids of its greedy answer."""
        body = {"input_ids": list(ids), "sampling_params": GREEDY, **more}
        async with self.client.post(f"{self.router}/generate", json=body) as reply:
            answer = await reply.read()
            assert reply.status == 200, answer
            ids_out: list[int] = msgspec.json.decode(answer)["output_ids"]
            return ids_out

    async def generate_directly(self, ids: Sequence[int], **more: Any) -> list[int]:
        """One plain request to both workers, as the shell router sends it; the ids of its greedy answer."""
        found: list[int] = (await self.ask(ids, **more))["output_ids"]
        return found

    async def ask(self, ids: Sequence[int], **more: Any) -> dict[str, Any]:
        """One plain request to both workers; the decode worker's answer."""
        body = {
            "input_ids": list(ids),
            "sampling_params": GREEDY,
            "bootstrap_host": "127.0.0.1",
            "bootstrap_port": self.bootstrap_port,
            "bootstrap_room": uuid.uuid4().int % 2**62 + 1,
            **more,
        }

        async def send(worker: str) -> dict[str, Any]:
            async with self.client.post(f"{worker}/generate", json=body) as reply:
                answer = await reply.read()
                assert reply.status == 200, answer
                found: dict[str, Any] = msgspec.json.decode(answer)
                return found

        _, found = await asyncio.gather(*(send(worker) for worker in self.workers))
        return found

    async def abort(self, worker: str, request_id: str) -> None:
        async with self.client.post(f"{worker}/abort_request", json={"rid": request_id}) as reply:
            assert reply.status == 200

    async def held(self) -> dict[str, dict[str, int]]:
        """What each worker holds, by SGLang's own account and by that of the sessions. Empty where it holds nothing."""
        found = {}
        for worker in self.workers:
            async with self.client.get(f"{worker}/v1/loads") as reply:
                (load,) = msgspec.json.decode(await reply.read())["loads"]
            found[worker] = busy(load)
            if sessions := (await self.sessions(worker)).open:
                found[worker]["sessions"] = len(sessions)
        return {worker: counts for worker, counts in found.items() if counts}


async def until_nothing_is_held(pair: Pair, timeout_s: float = 60.0) -> None:
    """What ends by its time to live or by acknowledgement takes a moment."""
    held = {}
    for _ in range(int(timeout_s / 0.5)):
        if not (held := await pair.held()):
            return
        await asyncio.sleep(0.5)
    raise AssertionError(f"still held: {held}")


class Session:
    """One session of the API on both workers of a pair."""

    def __init__(self, pair: Pair, max_prompt_tokens: int, ttl_s: float | None = None) -> None:
        self.pair = pair
        self.id = f"session-{uuid.uuid4().hex}"
        self.room = uuid.uuid4().int % 2**62 + 1
        self.next_seq = 1
        self._bound = max_prompt_tokens
        self._ttl_s = ttl_s
        self.told: protocol.SessionReply | None = None
        """The prefill worker's last reply."""

    async def open(self, ids: Sequence[int] = ()) -> protocol.SessionReply:
        prefill, _ = await self.pair.both(protocol.OPEN_PATH, self.open_request(ids))
        self.told = msgspec.json.decode(prefill, type=protocol.SessionReply)
        return self.told

    def open_request(self, ids: Sequence[int] = ()) -> protocol.OpenRequest:
        return protocol.OpenRequest(
            session_id=self.id,
            bootstrap_host="127.0.0.1",
            bootstrap_port=self.pair.bootstrap_port,
            bootstrap_room=self.room,
            max_prompt_tokens=self._bound,
            input_ids=list(ids),
            ttl_s=self._ttl_s,
        )

    async def append(self, ids: Sequence[int]) -> protocol.SessionReply:
        request = protocol.AppendRequest(session_id=self.id, seq=self.next_seq, input_ids=list(ids))
        self.next_seq += 1
        prefill, _ = await self.pair.both(protocol.APPEND_PATH, request)
        self.told = msgspec.json.decode(prefill, type=protocol.SessionReply)
        return self.told

    async def until_pushed(self) -> int:
        """Wait for the two workers to have met, before which what is computed stays with the prefill worker. Returns
        how many tokens the decode worker has."""
        deadline = time.monotonic() + 60
        while True:
            (told,) = (one for one in (await self.pair.sessions(self.pair.prefill)).open if one.session_id == self.id)
            if told.pushed_tokens == told.held_tokens:
                return told.pushed_tokens
            assert time.monotonic() < deadline, told
            await asyncio.sleep(0.05)

    async def is_committed(self, worker: str) -> bool:
        """Whether `worker` has the commit; or had it, and all has ended."""
        found = (await self.pair.sessions(worker)).open
        return all(one.state == "committed" for one in found if one.session_id == self.id)

    def rest(self, more: int) -> int | None:
        """How much of the prompt decode would have to compute behind `more` tokens; None where it cannot."""
        told = self.told
        if told is None or not told.pushed_tokens or told.pushed_tokens != told.held_tokens:
            return None
        return told.known_tokens + more - told.pushed_tokens

    async def commit(self, ids: Sequence[int], at_once: bool = False, **more: Any) -> dict[str, Any]:
        """The decode worker's answer. With `rest` the prefill worker is to finish: `at_once` with the commit, as the
        router has it, and then a refusal is the session's end; else before it, and then the commit is one as ever.
        """
        request = protocol.CommitRequest(
            session_id=self.id,
            seq=self.next_seq,
            input_ids=list(ids),
            sampling_params=more.pop("sampling_params", GREEDY),
            **more,
        )
        self.next_seq += 1
        if request.rest and at_once:
            answering = asyncio.create_task(self.pair.call(self.pair.decode, protocol.COMMIT_PATH, request))
            try:
                await self.pair.call(
                    self.pair.prefill, protocol.FINISH_PATH, protocol.FinishRequest(session_id=self.id)
                )
            except CallRefused:
                await asyncio.gather(*(self.pair.abort(worker, self.id) for worker in self.pair.workers))
                await asyncio.gather(answering, return_exceptions=True)
                raise
            decode = await answering
        elif request.rest and await self._finished():
            decode = await self.pair.call(self.pair.decode, protocol.COMMIT_PATH, request)
        else:
            request = msgspec.structs.replace(request, rest=False)
            _, decode = await self.pair.both(protocol.COMMIT_PATH, request)
        answer: dict[str, Any] = msgspec.json.decode(decode)
        return answer

    async def _finished(self) -> bool:
        request = protocol.FinishRequest(session_id=self.id)
        try:
            await self.pair.call(self.pair.prefill, protocol.FINISH_PATH, request)
        except CallRefused as refused:
            if refused.problem.code != "closed":
                raise
            return False
        return True

    async def close(self) -> tuple[int, int]:
        """Tokens freed on the prefill worker and on the decode worker."""
        freed = []
        for worker in self.pair.workers:
            answer = await self.pair.call(worker, protocol.CLOSE_PATH, protocol.CloseRequest(session_id=self.id))
            freed.append(msgspec.json.decode(answer, type=protocol.CloseReply).freed_tokens)
        return freed[0], freed[1]


def random_prompt(draw: random.Random, shortest: int, longest: int) -> list[int]:
    return [draw.choice(TOKENS) for _ in range(draw.randint(shortest, longest))]


def random_cuts(draw: random.Random, ids: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """`ids` in pieces of random `sizes`; the last may be empty."""
    pieces, start = [], 0
    while start < len(ids):
        size = draw.choice(sizes)
        pieces.append(list(ids[start : start + size]))
        start += size
    if len(pieces) == 1 or draw.random() < 0.1:
        pieces.append([])
    return pieces
