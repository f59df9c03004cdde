"""A decode worker's scheduler without SGLang's loop, and a card whose forward pass ends when somebody waits for it.

The real twins are the workers of tests/engine: what is here forces orders that those only come upon.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from sglang_ext import compat, protocol
from sglang_ext.engine import messages
from sglang_ext.engine.decode import DecodeHost
from sglang_ext.sessions import Limits, SessionTable

PAGE = 16
_rooms = itertools.count(1)


class Card:
    """What lies in each page, and the forward pass in flight, which writes at its end."""

    def __init__(self) -> None:
        self.pages: dict[int, str] = {}
        self.in_flight: list[Callable[[], None]] = []

    def launch_write(self, page: int, what: str) -> None:
        self.in_flight.append(lambda: self.pages.__setitem__(page, what))

    def end_forward(self) -> None:
        for write in self.in_flight:
            write()
        self.in_flight.clear()


class Stream:
    """A stream that waits for the forward pass when it is told to."""

    def __init__(self, card: Card) -> None:
        self._card = card

    def wait_stream(self, _other: object) -> None:
        self._card.end_forward()


class Allocator:
    page_size = PAGE

    def __init__(self, pages: int) -> None:
        self.free_pages = list(range(1, pages + 1))

    def available_size(self) -> int:
        return len(self.free_pages) * PAGE

    def alloc(self, need_size: int) -> Any:
        pages = [self.free_pages.pop(0) for _ in range(need_size // PAGE)]
        return torch.tensor([page * PAGE + offset for page in pages for offset in range(PAGE)], dtype=torch.int64)

    def translate_kv_indices_for_transfer(self, slots: Any) -> Any:
        return slots


class Rows:
    size = 64

    def __init__(self) -> None:
        self.req_to_token = torch.zeros((self.size, 4096), dtype=torch.int64)
        self._free = list(range(self.size))

    def available_size(self) -> int:
        return len(self._free)

    def alloc(self, reqs: Sequence[Any]) -> list[int]:
        for request in reqs:
            request.kv.req_pool_idx = self._free.pop()
        return [request.kv.req_pool_idx for request in reqs]

    def write(self, indices: tuple[int, slice], values: Any) -> None:
        self.req_to_token[indices] = values


class Slots:
    size = 64

    def __init__(self) -> None:
        self._free = list(range(self.size))

    def available_size(self) -> int:
        return len(self._free)

    def alloc(self) -> int:
        return self._free.pop()

    def free(self, slot: int) -> None:
        self._free.append(slot)


class Transfers:
    """Knows the prefill workers that `answer`; the others are looked up in vain."""

    kv_item_lens_sum = 1024
    enable_deferred_decode_kv_release = False

    def __init__(self) -> None:
        self.answer = {"p:1"}
        self.prefill_info_table: dict[str, object] = {"p:1": object()}
        self.connection_pool: dict[str, object] = {"p:1_0_0_0": object()}
        self.connection_lock = threading.Lock()
        self.failure_lock = threading.Lock()
        self.failure_records: dict[int, str] = {}
        self.request_status: dict[int, int] = {}

    def record_failure(self, room: int, reason: str) -> None:
        self.failure_records[room] = reason

    def update_status(self, room: int, status: int) -> None:
        self.request_status[room] = status


@dataclass
class Receiver:
    """The prefill worker is told of pages, and writes them at once."""

    mgr: Transfers
    bootstrap_addr: str
    bootstrap_room: int
    card: Card
    conclude_state: int | None = None
    init_time: float | None = None
    abort_notified: bool = False
    bootstrap_infos: tuple[object, ...] = ()
    told: list[list[int]] = field(default_factory=list)

    def init(self, _rank: int) -> None: ...

    def send_metadata(self, pages: Any, _slot: int, _states: object, *, decode_prefix_len: int) -> None:
        self.told.append([int(page) for page in pages])
        self.card.pages |= dict.fromkeys(self.told[-1], f"room {self.bootstrap_room}")

    def poll(self) -> int:
        return self.mgr.request_status.get(self.bootstrap_room, 1)

    def abort(self) -> None: ...
    def clear(self) -> None: ...


class Worker:
    """A decode worker with `pages` of memory, of which sessions may hold `share`."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *, pages: int, share: float = 1.0, overlap: bool = True
    ) -> None:
        self.card = Card()
        self.allocator = Allocator(pages)
        self.transfers = Transfers()
        self.receivers: list[Receiver] = []
        self.sent: list[Any] = []
        self.running: list[Any] = []
        self.retracted: list[Any] = []
        queue = SimpleNamespace(
            kv_manager=self.transfers,
            gloo_group=None,
            queue=[],
            retracted_queue=self.retracted,
            _allocatable_token_budgets=self._budget,
            _radix_full_evictable=lambda: 0,
        )
        scheduler = SimpleNamespace(
            disaggregation_mode="decode",
            tree_cache=SimpleNamespace(),
            token_to_kv_pool_allocator=self.allocator,
            req_to_token_pool=Rows(),
            req_to_metadata_buffer_idx_allocator=Slots(),
            disagg_metadata_buffers=SimpleNamespace(),
            disagg_decode_prealloc_queue=queue,
            disagg_decode_transfer_queue=SimpleNamespace(queue=[], deferred_kv_release_timeout=30.0),
            running_batch=SimpleNamespace(reqs=self.running),
            waiting_queue=[],
            enable_overlap=overlap,
            schedule_stream=Stream(self.card),
            forward_stream=Stream(self.card),
        )
        for name, fake in {
            "make_request": lambda **given: SimpleNamespace(
                kv=SimpleNamespace(req_pool_idx=None, kv_committed_len=0, kv_allocated_len=0), **given
            ),
            "make_receiver": self._make_receiver,
            "evict_from_tree_cache": lambda _tree, _tokens: None,
            "release_kv": self._release,
            "clear_metadata": lambda _buffers, _slot: None,
            "all_ranks": lambda flags, _group: list(flags),
            "poll_on_all_ranks": lambda ends, _group: [end.poll() for end in ends],
            "send_answer": lambda _scheduler, answer, _to: self.sent.append(answer),
        }.items():
            monkeypatch.setattr(compat, name, fake)
        limits = Limits(
            page_size=PAGE, vocabulary=1000, max_prompt_tokens=2000, max_sessions=32,
            max_held_tokens=int(pages * PAGE * share), max_ttl_s=60.0,
        )  # fmt: skip
        self.host = DecodeHost(cast("compat.DecodeScheduler", scheduler), SessionTable(limits, lambda: 0.0), None)

    def open(self, tokens: int, peer: str = "p", bound: int = 1000) -> str:
        """Open a session; its id."""
        room = next(_rooms)
        request = protocol.OpenRequest(
            session_id=f"s{room}", bootstrap_host=peer, bootstrap_port=1, bootstrap_room=room,
            max_prompt_tokens=bound, input_ids=[1] * tokens,
        )  # fmt: skip
        answer = self.host.handle(messages.call("", "open", request))
        assert answer is None or not answer.refused, answer
        return request.session_id

    def open_ids(self) -> set[str]:
        return {session.id for session in self.host.table}

    def _budget(self, *, retractable_tokens: int, count_retracted: bool) -> int:
        waiting = sum(len(request.origin_input_ids) for request in self.retracted) if count_retracted else 0
        return self.allocator.available_size() - waiting

    def _make_receiver(self, **given: Any) -> Receiver:
        self.receivers.append(Receiver(card=self.card, **given))
        return self.receivers[-1]

    def _release(self, owner: Any, _tree: object) -> None:
        row = self.host.scheduler.req_to_token_pool.req_to_token
        slots = cast("Any", row)[owner.kv.req_pool_idx, : owner.kv.kv_allocated_len : PAGE]
        self.allocator.free_pages += [int(slot) // PAGE for slot in slots]
