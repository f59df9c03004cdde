"""Sessions on a prefill worker: who sends what when, alike on all ranks."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sglang_ext import compat
from sglang_ext.engine import hooks
from sglang_ext.engine.host import Waiter
from sglang_ext.engine.messages import SessionCall
from sglang_ext.engine.prefill import PrefillHost, Prompt
from sglang_ext.protocol import OpenRequest
from sglang_ext.sessions import Limits, SessionTable
from tests.sglang_ext.engine.fakes import PAGE, Slots

LIMITS = Limits(
    page_size=PAGE, vocabulary=1000, max_prompt_tokens=2000, max_sessions=32, max_held_tokens=4000, max_ttl_s=60.0
)


class Host:
    """A prefill host of two ranks, whose first rank this is; `reduced` is what the ranks agreed on, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tree: bool = True, pass_tokens: int | None = None) -> None:
        self.reduced: list[list[bool]] = []
        self.room_for = 2**62
        self.infos: dict[int, dict[str, Any]] = {}
        transfers = SimpleNamespace(transfer_infos=self.infos, kv_item_lens_sum=1024)
        scheduler = SimpleNamespace(
            token_to_kv_pool_allocator=SimpleNamespace(page_size=PAGE),
            tree_cache=SimpleNamespace(supports_prefix_sharing=lambda: tree, unlock=lambda _lock: None),
            chunked_prefill_size=pass_tokens,
            tokenizer=None,
            disagg_prefill_bootstrap_queue=SimpleNamespace(kv_manager=transfers),
            disagg_prefill_inflight_queue=[],
            req_to_metadata_buffer_idx_allocator=Slots(),
            req_to_token_pool=SimpleNamespace(req_to_token={0: []}),
            attn_tp_cpu_group=None,
            waiting_queue=[],
            disaggregation_mode="prefill",
        )
        monkeypatch.setattr(compat, "all_ranks", self._reduce)
        self.host = PrefillHost(cast("compat.PrefillScheduler", scheduler), SessionTable(LIMITS, lambda: 0.0), None)
        monkeypatch.setattr(hooks, "_host", self.host)

    def committed(self, ids: list[int], room: int = 1) -> Any:
        """A session's committed request, in the forward pass."""
        entry = self.opened(ids, room)
        request = SimpleNamespace(
            rid=entry.session.id,
            origin_input_ids=array("q", ids),
            extend_end=len(ids),
            start_send_idx=0,
            cached_tokens=0,
            kv=SimpleNamespace(holds_kv=True, kv_committed_len=32, req_pool_idx=0),
            full_untruncated_fill_ids=array("q", ids),
            prefix_len=0,
        )
        entry.session.state = "committed"
        entry.committed, entry.started = cast("compat.Req", request), True
        self.host._requests[request.rid] = entry
        return request

    def opened(self, ids: list[int], room: int = 1, pages: int | None = None) -> Prompt:
        """A session whose decode worker has told of its pages: as many as its prompt has, if not of `pages`."""
        session = self.host.table.open(
            OpenRequest(
                session_id=f"s{room}", bootstrap_host="p", bootstrap_port=1, bootstrap_room=room,
                max_prompt_tokens=1000, input_ids=ids,
            )
        )  # fmt: skip
        entry = Prompt(
            session=session, sender=cast("compat.Sender", SimpleNamespace(curr_idx=0)), bootstrap_host="p",
            bootstrap_port=1, slot=-1, linked=True,
        )  # fmt: skip
        self.host.entries[session.id] = entry
        wanted = -(-len(ids) // PAGE) if pages is None else pages
        self.infos[room] = {"d": SimpleNamespace(dst_kv_indices=range(wanted), is_dummy=False)}
        return entry

    def _reduce(self, flags: list[bool], _group: object) -> list[bool]:
        self.reduced.append(list(flags))
        return list(flags)


def test_last_pages_go_out_with_the_batch_that_computed_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many ranks there are; they agree once for a batch, where all of them process its result."""
    ranks = Host(monkeypatch)
    requests = [ranks.committed([7] * 40, room) for room in (1, 2)]
    sent: list[int] = []
    for request in requests:
        hooks.around_send(lambda _s, req, _last, end: sent.append(end or 0), object(), request, last_chunk=True)
    assert (sent, ranks.reduced) == ([], [])
    hooks.after_prefill_result(None, object(), cast("compat.Batch", SimpleNamespace(reqs=requests)), object())
    assert sent == [40, 40]
    assert ranks.reduced == [[True, True]]
    assert not ranks.host.entries


def test_last_pages_wait_for_room_on_the_decode_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Host(monkeypatch)
    request = ranks.committed([7] * 40)
    ranks.infos[1]["d"].dst_kv_indices = range(2)
    sent: list[int] = []
    hooks.around_send(lambda _s, req, _last, end: sent.append(end or 0), object(), request, last_chunk=True)
    batch = cast("compat.Batch", SimpleNamespace(reqs=[request]))
    hooks.after_prefill_result(None, object(), batch, object())
    assert sent == []
    # A rank from which the decode worker takes nothing (MLA, fewer ranks there) is bound by nothing.
    ranks.infos[1]["d"].is_dummy = True
    hooks.after_prefill_result(None, object(), batch, object())
    assert sent == [40]


def test_a_cached_prefix_of_a_session_is_not_sent_before_the_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Host(monkeypatch)
    ours = ranks.committed([7] * 40)
    other = SimpleNamespace(rid="other")
    sent: list[object] = []
    for request in (ours, other):
        hooks.around_early_send(lambda _s, req: sent.append(req), object(), request)
    assert sent == [other]


def test_a_row_counts_as_cached_where_a_session_left_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a radix tree. On a decode worker, where every request has a row by then, SGLang's own count holds."""
    tree = cast("compat.TreeCache", SimpleNamespace(supports_prefix_sharing=lambda: False))
    ranks = Host(monkeypatch, tree=False)
    ours = ranks.committed([7] * 40)
    hooks.after_next_round(None, ours, tree)
    assert ours.prefix_len == 32
    ours.prefix_len = 0
    for host in (None, object()):
        monkeypatch.setattr(hooks, "_host", host)
        hooks.after_next_round(None, ours, tree)
        assert ours.prefix_len == 0


def test_an_append_waits_for_a_committed_sibling_that_computes_their_head(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Host(monkeypatch)
    committed = ranks.committed([7] * 64, 1)
    entry = ranks.opened([7] * 64 + [8] * 16, 2)
    assert ranks.host._sibling_computes_head(entry, 80)
    # Computed, and waiting for room on the decode worker: it is in the tree.
    ranks.host.entries["s1"].last_push = lambda: None
    assert not ranks.host._sibling_computes_head(entry, 80)
    ranks.host.entries["s1"].last_push = None
    ranks.host.entries["s1"].ending = ("lost", "")
    assert not ranks.host._sibling_computes_head(entry, 80)
    assert committed.rid in ranks.host._requests


def test_released_memory_ends_all_sessions_first(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    host = SimpleNamespace(end_all=lambda reason, turns: told.append(reason))
    monkeypatch.setattr(hooks, "_host", host)
    hooks.around_release_memory(lambda _manager, asked: told.append(asked), object(), "released")
    assert told == ["the worker's memory was released", "released"]


def _appending(ranks: Host, room: int, received_at: float = 0.0) -> Any:
    """A session whose append waits in SGLang's queue, and a call that waits for it."""
    entry = ranks.opened([7] * 32, room)
    request: Any = SimpleNamespace(rid=f"s{room}~1", origin_input_ids=array("q", [7] * 32))
    entry.running = request
    entry.waiters.append(Waiter(cast("SessionCall", None), received_at, 32))
    ranks.host._requests[request.rid] = entry
    return request


def _batch(*requests: Any) -> compat.Batch:
    batch = SimpleNamespace(reqs=list(requests), extend_lens=[8] * len(requests), prefix_lens=[0] * len(requests))
    return cast("compat.Batch", batch)


def test_no_append_begins_while_another_request_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Host(monkeypatch)
    scheduler: Any = ranks.host.scheduler
    appends = [_appending(ranks, room) for room in (1, 2)]
    ordinary = [SimpleNamespace(rid=name, origin_input_ids=array("q", [1] * 5)) for name in ("a", "b")]

    def take(count: int) -> Callable[[object], list[Any]]:
        def original(_scheduler: object) -> list[Any]:
            waiting: list[Any] = scheduler.waiting_queue
            scheduler.waiting_queue = waiting[count:]
            return waiting[:count]

        return original

    scheduler.waiting_queue = [appends[0], ordinary[0], appends[1], ordinary[1]]
    assert ranks.host.tell_load(ranks.host.table.status(0)).waiting_tokens == 10
    assert hooks.around_next_batch(take(4), scheduler) == ordinary
    assert scheduler.waiting_queue == appends
    assert hooks.around_next_batch(take(1), scheduler) == appends[:1]
    assert scheduler.waiting_queue == appends[1:]


def test_appends_wait_in_their_order_for_those_that_have_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Host(monkeypatch)
    scheduler: Any = ranks.host.scheduler
    append, ordinary = _appending(ranks, 1), SimpleNamespace(rid="a", origin_input_ids=array("q", [1] * 5))
    scheduler.waiting_queue = [append, ordinary]
    assert hooks.around_next_batch(lambda _scheduler: None, scheduler) is None
    assert scheduler.waiting_queue == [ordinary, append]


def test_a_reply_says_what_its_passes_took(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("sglang_ext.engine.prefill.time", SimpleNamespace(monotonic=lambda: now, time=lambda: now))
    ranks = Host(monkeypatch)
    append, late = _appending(ranks, 1, received_at=99.0), _appending(ranks, 2, received_at=100.5)
    run: list[bool] = []
    hooks.around_run_batch(lambda _scheduler, _batch: run.append(hooks._without_logits), object(), _batch(append, late))
    now = 101.0
    hooks.after_prefill_result(None, object(), _batch(append, late), object())
    assert run == [True], "a pass of appends alone"
    (waiter,) = ranks.host.entries["s1"].waiters
    assert (waiter.began_at, waiter.computed_s) == (100.0, 1.0)
    (waiter,) = ranks.host.entries["s2"].waiters
    assert (waiter.began_at, waiter.computed_s) == (None, 0.0), "it came when the pass had begun"
    told = ranks.host.tell_load(ranks.host.table.status(0))
    assert [(each.tokens, each.seconds) for each in told.passes] == [(16, 1.0)]
    assert told.load == 0


def test_an_append_longer_than_a_pass_gives_way_between_its_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Host(monkeypatch, pass_tokens=40)
    queued: list[int] = []
    monkeypatch.setattr(compat, "make_sampling_params", lambda **_: SimpleNamespace(normalize=lambda _: None))
    monkeypatch.setattr(compat, "make_request", lambda **given: SimpleNamespace(**given))
    monkeypatch.setattr(compat, "enqueue", lambda _s, request: queued.append(len(request.origin_input_ids)))
    entry = ranks.opened([7] * 100)
    for _ in range(4):
        ranks.host._prefill(entry)
        if entry.running is not None:
            entry.session.hold(queued[-1], 0)
            ranks.host._end_running(entry, entry.running)
    assert queued == [32, 64, 96], "whole pages, as many as fit into a pass"
    ranks.host._let_go(entry)
    entry.session.ids.extend([7] * 100)
    ranks.host._prefill(entry)
    assert queued[-1] == 128, "what was computed before is part of its one pass, or of several, if it is gone"
