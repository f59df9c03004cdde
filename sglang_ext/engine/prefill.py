"""Sessions on a prefill worker.

An append is an ordinary prefill request without sampling: SGLang schedules it, batches it with others, cuts it into
chunks. What differs is its end: instead of handing over to decode, its KV stays held for the session (locked in the
radix tree, or in its row when there is no tree), and its whole pages are pushed to the decode worker under the
session's one transfer. The committed request is an ordinary request that finds all that in place and takes the
transfer over. So a session is a chain of requests that leave their KV to the next.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import msgspec

from sglang_ext import compat, protocol
from sglang_ext.engine.host import Entry, SessionHost, T, Waiter, farewell
from sglang_ext.engine.metrics import SessionMetrics
from sglang_ext.passes import PassLog
from sglang_ext.sessions import Refused, Session, SessionTable, common_prefix

R = TypeVar("R")

_FORGET_ROOM_S = 60.0
"""Metadata from the decode worker may still arrive this long after a room's end."""


@dataclass(eq=False, kw_only=True)
class Prompt(Entry):
    """A session's part on the prefill worker."""

    sender: compat.Sender
    bootstrap_host: str
    bootstrap_port: int
    slot: int
    """Metadata buffer of the transfer; while a request of the session runs, that request has it."""
    linked: bool = False
    """The decode worker has told where its pages are."""
    lock: compat.TreeLock | None = None
    """Keeps the computed prefix in the radix tree."""
    owner: compat.Req | None = None
    """Without a radix tree: the last append, whose row holds the KV."""
    running: compat.Req | None = None
    """The append that is queued or in the forward pass."""
    finishing: bool = False
    """All that it has is under way, and nothing follows: the decode worker goes on alone."""
    last_push: Callable[[], None] | None = None
    """The transfer's end, waiting for the decode worker to have room for all pages."""


class PrefillHost(SessionHost[Prompt, compat.PrefillScheduler]):
    def __init__(self, scheduler: compat.PrefillScheduler, table: SessionTable, metrics: SessionMetrics | None) -> None:
        super().__init__(scheduler, table, metrics)
        self._tree = scheduler.tree_cache
        self._shares = self._tree.supports_prefix_sharing()
        self._queue = scheduler.disagg_prefill_bootstrap_queue
        self._transfers = self._queue.kv_manager
        self._slots = scheduler.req_to_metadata_buffer_idx_allocator
        self._requests: dict[str, Prompt] = {}
        """Sessions by the id of their running append or committed request."""
        self._ended_rooms: deque[tuple[float, int]] = deque()
        self._appends = 0
        self._head: compat.Req | None = None
        """First of the waiting requests when the last turn began."""
        self._passes = PassLog(time.monotonic, time.time)
        self._pass_tokens = compat.pass_tokens(scheduler, self.page_size)

    # Calls

    def begin(self, session: Session, request: protocol.OpenRequest) -> Prompt:
        # The other half of the buffers is for ordinary requests.
        if self._slots.available_size() <= self._slots.size // 2:
            raise Refused("over_budget", "too few metadata buffers are free for another session")
        slot = self._slots.alloc()
        assert slot is not None, "no metadata buffer after the check that there is"
        sender = compat.make_sender(
            mgr=self._transfers,
            bootstrap_addr=f"{request.bootstrap_host}:{request.bootstrap_port}",
            bootstrap_room=session.room,
            req_has_disagg_prefill_dp_rank=False,
        )
        return Prompt(
            session=session,
            sender=sender,
            bootstrap_host=request.bootstrap_host,
            bootstrap_port=request.bootstrap_port,
            slot=slot,
        )

    def extended(self, entry: Prompt) -> None:
        self._prefill(entry)

    def is_done(self, entry: Prompt, waiter: Waiter) -> bool:
        return entry.session.computed >= waiter.tokens

    def take_request(self, entry: Prompt, request: compat.Req) -> None:
        compat.let_sample_one_token(self._queue, request)
        request.disagg_kv_sender = entry.sender
        entry.committed = request
        if entry.running is not None and self._waits(entry.running):
            # The committed request computes its tokens as well.
            self._unqueue(entry, entry.running)
        self._start_commit(entry)

    def end_here(self, entry: Prompt) -> bool:
        session = entry.session
        if not entry.linked or entry.running is not None or not 0 < session.held == session.pushed:
            return False
        entry.finishing = True
        # The transfer's end: no pages are left, and in place of a first token goes how many tokens there are.
        compat.send_end(self.scheduler, entry.sender, entry.slot, session.room, session.pushed)
        return True

    # The event loop

    def watch(self) -> None:
        self._poll_transfers()
        self._finish_last_pushes()
        for entry in tuple(self.entries.values()):
            if entry.ending is None and entry.running is not None and self._is_gone(entry.running):
                self.drop(entry, "lost", "its prefill was aborted")
            if entry.ending is not None:
                self._try_finish(entry)
            elif not entry.started:
                # It may have waited for a sibling that has gone.
                self._prefill(entry)
                self._push_held(entry)
                self._start_commit(entry)
        self._relieve_starving()
        now = time.monotonic()
        while self._ended_rooms and now - self._ended_rooms[0][0] > _FORGET_ROOM_S:
            compat.forget_room(self._transfers, self._ended_rooms.popleft()[1])

    def draining(self) -> bool:
        return bool(self._ended_rooms)

    def must_not_sleep(self) -> bool:
        return any(
            entry.committed is not None
            or entry.finishing
            or entry.ending is not None
            or (not entry.linked and entry.session.held)
            for entry in self.entries.values()
        )

    def kv_records(self) -> dict[str, compat.Kv]:
        return {entry.session.id: entry.owner.kv for entry in self.entries.values() if entry.owner is not None}

    def page_bytes(self) -> int:
        return self._transfers.kv_item_lens_sum

    def tell_load(self, told: T) -> T:
        ordinary = [request for request in self.scheduler.waiting_queue if not self._is_append(request)]
        waiting = sum(len(request.origin_input_ids) for request in ordinary)
        return msgspec.structs.replace(told, passes=self._passes.newest, waiting_tokens=waiting, load=self._passes.load)

    # What the hooks call

    def batch_launched(self, batch: compat.Batch) -> bool:
        """A batch goes into the forward pass. Returns whether it has appends and nothing else."""
        only_appends = all(map(self._is_append, batch.reqs))
        self._passes.launch(
            batch.reqs[0], list(zip(batch.extend_lens, batch.prefix_lens, strict=True)), ordinary=not only_appends
        )
        return only_appends

    def choose(self, choose: Callable[[], R]) -> R:
        """Have `choose` take the next batch from the waiting requests. An append that has not begun gives way to all
        others: it takes part in no batch while one of these waits.
        """
        waiting = self.scheduler.waiting_queue
        appends = [request for request in waiting if self._is_append(request)]
        if not appends or len(appends) == len(waiting):
            return choose()
        self.scheduler.waiting_queue = [request for request in waiting if not self._is_append(request)]
        try:
            return choose()
        finally:
            self.scheduler.waiting_queue = [*self.scheduler.waiting_queue, *appends]

    def batch_done(self, batch: compat.Batch) -> None:
        """SGLang has processed a batch's result: appends that are through leave their KV to the session."""
        self._count_pass(batch)
        self._finish_last_pushes()
        ended = False
        for request in batch.reqs:
            entry = self._requests.get(request.rid)
            if entry is None or request is not entry.running:
                continue
            queue = self.scheduler.disagg_prefill_inflight_queue
            if any(waiting is request for waiting in queue):
                self.scheduler.disagg_prefill_inflight_queue = [r for r in queue if r is not request]
                self._keep(entry, request)
                ended = True
        if ended:
            # Those that waited for a sibling to compute their common head find it in the tree now.
            for entry in tuple(self.entries.values()):
                self._prefill(entry)

    def sends(self, request: compat.Req) -> bool:
        """Whether pages of `request` are sent by its session."""
        entry = self._requests.get(request.rid)
        return entry is not None and (request is entry.running or request is entry.committed)

    def _is_append(self, request: compat.Req) -> bool:
        entry = self._requests.get(request.rid)
        return entry is not None and request is entry.running

    def _count_pass(self, batch: compat.Batch) -> None:
        """What the pass took is known, and whose calls it was for."""
        seconds = self._passes.end(batch.reqs[0])
        if seconds is None:
            return
        began_at = time.monotonic() - seconds
        for request in batch.reqs:
            entry = self._requests.get(request.rid)
            if entry is None or request is not entry.running:
                continue
            for waiter in entry.waiters:
                # One that came meanwhile waits for the next.
                if waiter.received_at <= began_at:
                    waiter.began_at = began_at if waiter.began_at is None else waiter.began_at
                    waiter.computed_s += seconds

    def send(self, request: compat.Req, end_index: int | None, finish: Callable[[int], None] | None) -> bool:
        """Send a chunk of a session's request. Returns whether it was one. `finish` is there at the last chunk: it lets
        SGLang send up to a token, with which the transfer ends.
        """
        if not self.sends(request):
            return False
        entry = self._requests[request.rid]
        end = request.extend_end if end_index is None else end_index
        end = min(end, len(request.origin_input_ids))
        if finish is not None and request is entry.committed:
            # It goes out in `batch_done`, once for the whole batch: all ranks get there alike.
            entry.last_push = partial(finish, end)
            return True
        row = self.scheduler.req_to_token_pool.req_to_token[request.kv.req_pool_idx]
        self._push(entry, row, end)
        request.start_send_idx = entry.session.pushed
        return True

    # Appends

    def _prefill(self, entry: Prompt) -> None:
        """Queue what is known and not computed, if nothing of the session is under way."""
        session = entry.session
        target = session.whole_pages(self.page_size)
        if self._pass_tokens is not None:
            # One pass at a time: between two of them it gives way to others.
            target = min(target, session.computed + self._pass_tokens)
        if entry.running is not None or entry.ending is not None or session.state != "open":
            return
        if target <= session.computed or self._sibling_computes_head(entry, target):
            return
        self._appends += 1
        sampling = compat.make_sampling_params(max_new_tokens=0)
        sampling.normalize(None)
        request = compat.make_request(
            rid=f"{session.id}~{self._appends}",
            origin_input_text="",
            origin_input_ids=session.ids[:target],
            sampling_params=sampling,
            bootstrap_host=entry.bootstrap_host,
            bootstrap_port=entry.bootstrap_port,
            bootstrap_room=session.room,
            disagg_mode=self.scheduler.disaggregation_mode,
            vocab_size=self.table.limits.vocabulary,
        )
        request.logprob_start_len = -1
        # A neighbour's `min_new_tokens` is worked out over all of a batch.
        request.tokenizer = self.scheduler.tokenizer
        request.disagg_kv_sender = entry.sender
        request.pending_bootstrap = False
        request.start_send_idx = session.pushed
        request.metadata_buffer_index, entry.slot = entry.slot, -1
        if entry.owner is not None:
            request.kv = entry.owner.detach_kv()
            entry.owner = None
        entry.running = request
        self._requests[request.rid] = entry
        compat.enqueue(self.scheduler, request)

    def _sibling_computes_head(self, entry: Prompt, target: int) -> bool:
        """Whether a request of another session is computing pages at the end of what `entry` holds that both have in
        common.
        """
        if not self._shares:
            return False
        session = entry.session
        for other in self.entries.values():
            computing = other.running
            if other.started and other.last_push is None and other.ending is None:
                computing = other.committed
            if computing is None or other is entry:
                continue
            common = common_prefix(session.ids, computing.origin_input_ids)
            common = min(common, target) // self.page_size * self.page_size
            if common > session.held and common > other.session.held:
                return True
        return False

    def _keep(self, entry: Prompt, request: compat.Req) -> None:
        """`request`, an append, is computed: hold its KV and let the request go."""
        session = entry.session
        self._end_running(entry, request)
        tokens = len(request.origin_input_ids)
        if self._shares:
            lock = self._tree.lock(request.last_node)
            compat.release_kv(request, self._tree)
            self._tree.unlock(entry.lock)
            entry.lock = lock
        else:
            entry.owner = request
        self._tree.finish(request.cache_request_handle, compat.CacheRequestOutcome.SUCCESS)
        self.table.counters.recomputed_tokens += session.hold(tokens, request.cached_tokens)
        if entry.ending is not None:
            self._try_finish(entry)
            return
        for crowded in self.table.over_budget():
            self._let_go(self.entries[crowded.id])
        self._prefill(entry)
        self.answer_waiters(entry)

    def _end_running(self, entry: Prompt, request: compat.Req) -> None:
        entry.slot, request.metadata_buffer_index = request.metadata_buffer_index, -1
        entry.running = None
        del self._requests[request.rid]

    def _unqueue(self, entry: Prompt, request: compat.Req) -> None:
        """Take the session's append out of the waiting queue."""
        self.scheduler.waiting_queue = [r for r in self.scheduler.waiting_queue if r is not request]
        self._end_running(entry, request)
        if request.kv.holds_kv:
            entry.owner = request

    # The commit

    def _start_commit(self, entry: Prompt) -> None:
        """Queue the committed request, once the transfer stands and no append is in its way."""
        request, session = entry.committed, entry.session
        if request is None or entry.started or entry.ending is not None:
            return
        if not entry.linked or entry.running is not None:
            return
        entry.started = True
        request.metadata_buffer_index, entry.slot = entry.slot, -1
        request.start_send_idx = session.pushed
        request.disagg_decode_prefix_len = 0
        pages = compat.kv_to_page_num(len(request.origin_input_ids), self.page_size)
        entry.sender.init(pages, request.metadata_buffer_index)
        request.pending_bootstrap = False
        if entry.owner is not None:
            self._leave_a_token(entry.owner.kv, len(session.ids))
            # Without a tree SGLang admits requests that ignore the end token on a path that knows no prefix. The one
            # token that prefill samples ends nothing.
            request.sampling_params.ignore_eos = False
            request.kv = entry.owner.detach_kv()
            entry.owner = None
        self._requests[request.rid] = entry
        request.time_stats.set_bootstrap_done_time()
        compat.enqueue(self.scheduler, request)

    def _leave_a_token(self, kv: compat.Kv, tokens: int) -> None:
        """Logits need at least one token to compute: when all are, drop the last page of the row."""
        if kv.kv_committed_len >= tokens:
            compat.cut_row(self._tree, kv, kv.kv_committed_len - self.page_size)

    def _finish_last_pushes(self) -> None:
        """Send the last pages and the first token of those whose decode worker has room for all pages."""
        waiting = [entry for entry in self.entries.values() if entry.last_push is not None]
        if not waiting:
            return
        room = [self._announced_pages(entry) * self.page_size for entry in waiting]
        ready = compat.all_ranks(
            [tokens >= len(entry.session.ids) for entry, tokens in zip(waiting, room, strict=True)],
            self.scheduler.attn_tp_cpu_group,
        )
        for entry, go in zip(waiting, ready, strict=True):
            request, session = entry.committed, entry.session
            if not go or entry.last_push is None or request is None:
                continue
            request.start_send_idx = session.pushed
            entry.last_push()
            entry.last_push = None
            pages = compat.kv_to_page_num(len(session.ids), self.page_size) - session.pushed // self.page_size
            self.table.counters.commit_pages += pages
            session.pushed = len(session.ids)
            self.table.counters.recomputed_tokens += max(0, session.computed - request.cached_tokens)
            self._hand_over(entry, request)

    def _hand_over(self, entry: Prompt, request: compat.Req) -> None:
        """The committed request is SGLang's alone now."""
        entry.ending = entry.ending or ("committed", "it was committed")
        del self._requests[request.rid]
        self._release(entry)
        self.finish(entry)

    # The transfer

    def _poll_transfers(self) -> None:
        entries = list(self.entries.values())
        polls = compat.poll_on_all_ranks([entry.sender for entry in entries], self.scheduler.attn_tp_cpu_group)
        for entry, poll in zip(entries, polls, strict=True):
            if entry.ending is not None:
                continue
            if poll == compat.KVPoll.Failed:
                self.drop(entry, "lost", "the transfer to the decode worker failed")
            elif entry.finishing:
                if poll == compat.KVPoll.Success:
                    self._finished(entry)
            elif poll != compat.KVPoll.Bootstrapping and not entry.linked:
                entry.linked = True
                entry.sender.pop_decode_prefix_len()
                # Until the commit no page it sends looks like the last.
                entry.sender.init(compat.UNBOUNDED_PAGES)

    def _finished(self, entry: Prompt) -> None:
        """The decode worker has all that there is."""
        entry.ending = ("committed", "the decode worker went on with it")
        self._release(entry)
        self._slots.free(entry.slot)
        entry.sender.clear()
        self._ended_rooms.append((time.monotonic(), entry.session.room))
        self.finish(entry)

    def _announced_pages(self, entry: Prompt) -> int:
        """Pages the decode worker has room for."""
        return compat.announced_pages(self._transfers, entry.session.room) if entry.linked else 0

    def _push(self, entry: Prompt, row: compat.Tensor, end: int) -> None:
        """Send the whole pages before token `end` that were not sent; `row` has the KV slot of each token."""
        session = entry.session
        end = min(end // self.page_size, self._announced_pages(entry)) * self.page_size
        if end <= session.pushed:
            return
        pages = compat.pages_to_transfer(self.scheduler.token_to_kv_pool_allocator, row[session.pushed : end])
        entry.sender.send(pages, None, num_kv_tokens=end - session.pushed)
        session.pushed = end
        if session.state == "open":
            self.table.counters.early_pages += len(pages)
        else:
            self.table.counters.commit_pages += len(pages)

    def _push_held(self, entry: Prompt) -> None:
        """Send what is held and was not sent because the decode worker had no room then."""
        held = entry.session.held
        if held <= entry.session.pushed or self._announced_pages(entry) * self.page_size <= entry.session.pushed:
            return
        if entry.lock is not None:
            self._push(entry, self._tree.path_device_indices(entry.lock.node), held)
        elif entry.owner is not None:
            self._push(entry, self.scheduler.req_to_token_pool.req_to_token[entry.owner.kv.req_pool_idx], held)

    # Memory

    def _let_go(self, entry: Prompt) -> None:
        """Hold the session's KV no longer. In the tree it stays until the room is needed."""
        self.table.let_go(entry.session)
        # A page may be written over while the transfer still reads it. Sent again, in order, after that
        # transfer, it comes out right: so everything is sent again.
        entry.session.pushed = 0
        entry.sender.curr_idx = 0
        self._release(entry)

    def _release(self, entry: Prompt) -> None:
        self._tree.unlock(entry.lock)
        entry.lock = None
        if entry.owner is not None:
            compat.release_kv(entry.owner, self._tree)
            entry.owner = None

    def _relieve_starving(self) -> None:
        """Requests wait though nothing ran in the last turn or is on its way: let the idlest session's KV go."""
        scheduler = self.scheduler
        waiting = scheduler.waiting_queue
        head, self._head = self._head, waiting[0] if waiting else None
        if head is None or head is not self._head:
            return
        if scheduler.last_batch is not None or scheduler.chunked_req is not None:
            return
        if scheduler.disagg_prefill_inflight_queue:
            # What is on its way to decode makes room when it has arrived.
            return
        for entry in self.entries.values():
            # A queued append can wait longer; what runs, and what is served next, cannot.
            request = entry.running
            entry.session.busy = request is not None and (request is head or not self._waits(request))
        for session in self.table.idlest():
            if self.entries[session.id].ending is None:
                self._let_go(self.entries[session.id])
                return

    # Ends

    def may_expire(self, entry: Prompt) -> bool:
        # A started request that waits in SGLang's queues waits as long as any other.
        return not entry.started or entry.last_push is not None

    def stop(self, entry: Prompt) -> None:
        request = entry.running
        # Tells the decode worker, too.
        self._transfers.conclude_failure(bootstrap_room=entry.session.room, failure_reason=farewell(entry))
        if request is not None:
            if self._waits(request):
                self._unqueue(entry, request)
            elif self.scheduler.chunked_req is request:
                compat.stop_chunked(self.scheduler, request)
            elif request.kv.holds_kv:
                request.to_finish = compat.finish_abort()
        self._try_finish(entry)

    def _try_finish(self, entry: Prompt) -> None:
        """End a session that is to end, once none of its requests runs."""
        if entry.ending is None or entry.session.id not in self.entries:
            return
        if entry.running is not None:
            if not self._is_gone(entry.running):
                return
            self._end_running(entry, entry.running)
        self._release(entry)
        if entry.started and entry.committed is not None:
            # SGLang sees the failed transfer at the request and ends that, with its buffer and the room.
            self._requests.pop(entry.committed.rid, None)
        else:
            if entry.slot >= 0:
                self._slots.free(entry.slot)
            entry.sender.conclude_state = compat.KVPoll.Failed
            entry.sender.clear()
        self._ended_rooms.append((time.monotonic(), entry.session.room))
        self.finish(entry)

    def _is_gone(self, request: compat.Req) -> bool:
        """Whether SGLang has let go of an append: between turns of the loop it either waits or has a row."""
        return not request.kv.holds_kv and not self._waits(request)

    def _waits(self, request: compat.Req) -> bool:
        return any(waiting is request for waiting in self.scheduler.waiting_queue)
