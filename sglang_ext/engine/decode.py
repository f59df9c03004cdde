"""Sessions on a decode worker.

A session has a row of pages that grows ahead of its prompt, and one transfer through which the prefill worker fills
them. Nothing of it is in SGLang's queues until the commit: the committed request takes the row and the transfer over
and joins the requests whose KV is arriving, without a new handshake.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import msgspec

from sglang_ext import compat, protocol
from sglang_ext.engine.host import Entry, SessionHost, T, Waiter, heard
from sglang_ext.engine.metrics import SessionMetrics
from sglang_ext.engine.peers import Peers
from sglang_ext.sessions import Refused, Session, SessionTable

_AHEAD_TOKENS = 128
"""Room reserved beyond the known tokens, so that a commit with a short tail needs no new pages."""

_PEER_PATIENCE_S = 15.0
"""A session whose prefill worker is not found for this long is lost."""

_FIRST_WORD_S = 0.1
"""For a prefill worker that no transfer has come from yet; SGLang asks again after a second."""

_MAX_REST_TOKENS = 64
"""A pass over so many tokens takes hardly longer than a step, for which all that decodes waits."""

_PAGES_AHEAD, _STEPS_AHEAD = 2, 32
"""What to have free for each running request, so that none is retracted before sessions that end have drained: so many
pages, and tokens where pages are short."""


@dataclass(eq=False, kw_only=True)
class Reservation(Entry):
    """A session's part on the decode worker."""

    owner: compat.Req
    """A request of ours whose row has the session's pages."""
    receiver: compat.Receiver
    slot: int
    """Metadata buffer into which the prefill worker writes the first token."""
    peer: str
    found: bool = False
    """This rank has found its prefill worker."""
    linked: bool = False
    """Every rank has, and has told it where the pages are."""
    began_at: float = field(default_factory=time.monotonic)
    landed: int | None = None
    """How much KV has come, where the prefill worker computes no more."""


@dataclass(eq=False)
class _Drain:
    """Pages of an ended session into which the prefill worker may still write."""

    entry: Reservation
    deadline: float
    acknowledgements: int


class DecodeHost(SessionHost[Reservation, compat.DecodeScheduler]):
    computes_rest = True

    def __init__(self, scheduler: compat.DecodeScheduler, table: SessionTable, metrics: SessionMetrics | None) -> None:
        super().__init__(scheduler, table, metrics)
        self._tree = scheduler.tree_cache
        self._allocator = scheduler.token_to_kv_pool_allocator
        self._rows = scheduler.req_to_token_pool
        self._queue = scheduler.disagg_decode_prealloc_queue
        self._transfers = self._queue.kv_manager
        self._slots = scheduler.req_to_metadata_buffer_idx_allocator
        self._peers = Peers(partial(compat.connect, self._transfers))
        self._drains: list[_Drain] = []
        self._max_rest = max(self.page_size, _MAX_REST_TOKENS)
        self._passed: compat.PromptBatch | None = None
        """The pass over the rest of prompts whose requests do not decode yet."""
        self._head: object = None
        """First ordinary request that waited for memory when the last turn began."""

    # Calls

    def begin(self, session: Session, request: protocol.OpenRequest) -> Reservation:
        # The other half of the buffers and rows is for ordinary requests.
        if self._slots.available_size() <= self._slots.size // 2 or self._rows.available_size() <= self._rows.size // 2:
            raise Refused("over_budget", "too few request rows are free for another session")
        wanted = self._wanted(session)
        # Those that are here go first: they are nearer to their commit.
        if not self._keeps_budget(wanted):
            raise Refused("over_budget", f"the sessions' share of the KV pool has no room for {wanted} tokens")
        if not self._fits(wanted):
            raise Refused("over_budget", f"there is no room for {wanted} tokens beside the ordinary requests")
        owner = compat.make_request(
            rid=f"{session.id}~0",
            origin_input_text="",
            origin_input_ids=session.ids[:0],
            sampling_params=compat.make_sampling_params(max_new_tokens=0),
            bootstrap_room=session.room,
            disagg_mode=self.scheduler.disaggregation_mode,
        )
        slot = self._slots.alloc()
        assert slot is not None, "no metadata buffer after the check that there is"
        self._rows.alloc([owner])
        peer = f"{request.bootstrap_host}:{request.bootstrap_port}"
        receiver = compat.make_receiver(mgr=self._transfers, bootstrap_addr=peer, bootstrap_room=session.room)
        entry = Reservation(session=session, owner=owner, receiver=receiver, slot=slot, peer=peer)
        self._allocate(entry, wanted)
        self._find_peer(entry)
        self._link([entry])
        return entry

    def extended(self, entry: Reservation) -> None:
        # Room that is short now can be had later: the commit waits for it, the pages in between move then.
        self._grow(entry)

    def is_done(self, entry: Reservation, waiter: Waiter) -> bool:
        return True

    def take_request(self, entry: Reservation, request: compat.Req) -> None:
        entry.committed = request
        if not entry.session.rest:
            self._start_commit(entry, request)

    def tell_load(self, told: T) -> T:
        if isinstance(told, protocol.SessionsStatus):
            return msgspec.structs.replace(told, max_rest_tokens=self._max_rest)
        return told

    # Requests without a session

    def finds(self, address: str) -> bool:
        """Whether the prefill worker at `address` is known; if not it is looked up. SGLang would do that here, and
        whoever takes the connection and says nothing would hold all that decodes.
        """
        if compat.is_connected(self._transfers, address):
            return True
        self._peers.look_up(address, _FIRST_WORD_S)
        return compat.is_connected(self._transfers, address)

    def looking_up(self) -> bool:
        """Whether this is a thread of a look-up, which asks SGLang."""
        return self._peers.looking_up()

    # The event loop

    def watch(self) -> None:
        self._poll_transfers()
        for entry in tuple(self.entries.values()):
            if entry.ending is None:
                self._find_peer(entry)
        self._link([entry for entry in self.entries.values() if entry.ending is None and not entry.linked])
        for entry in tuple(self.entries.values()):
            if entry.ending is None and entry.committed is not None and not entry.session.rest:
                self._start_commit(entry, entry.committed)
        self._spare_running()
        self._relieve_starving()
        self._resolve_drains()

    def draining(self) -> bool:
        return bool(self._drains)

    def must_not_sleep(self) -> bool:
        return bool(self._drains) or any(
            entry.committed is not None or not entry.linked for entry in self.entries.values()
        )

    def kv_records(self) -> dict[str, compat.Kv]:
        held = [entry for entry in self.entries.values() if entry.ending is None]
        return {entry.session.id: entry.owner.kv for entry in (*held, *(drain.entry for drain in self._drains))}

    def page_bytes(self) -> int:
        return self._transfers.kv_item_lens_sum

    # Room

    def _wanted(self, session: Session) -> int:
        """Tokens to have room for: the known ones and some ahead, whole pages, never more than the bound."""
        return self._whole_pages(min(len(session.ids) + _AHEAD_TOKENS, session.max_prompt_tokens))

    def _whole_pages(self, tokens: int) -> int:
        return -(-tokens // self.page_size) * self.page_size

    def _grow(self, entry: Reservation) -> None:
        """Have room for the known tokens and some ahead, if there is. Grows in steps, not with each append."""
        session = entry.session
        wanted = self._wanted(session)
        if session.held >= min(wanted, self._whole_pages(len(session.ids) + _AHEAD_TOKENS // 2)):
            return
        for target in (wanted, self._whole_pages(len(session.ids))):
            extra = target - session.held
            if extra > 0 and self._keeps_budget(extra) and self._fits(extra):
                self._allocate(entry, extra)
                self._announce(entry)
                return

    def _grow_to_commit(self, entry: Reservation) -> bool:
        """Have room for the whole prompt, which is an ordinary request's from now on. Returns whether there is."""
        extra = self._whole_pages(len(entry.session.ids)) - entry.session.held
        if extra > 0:
            if not self._fits(extra):
                return False
            self._allocate(entry, extra)
            self._announce(entry)
        return True

    def _keeps_budget(self, extra: int) -> bool:
        return self.table.held_tokens() + extra <= self.table.limits.max_held_tokens

    def _fits(self, extra: int) -> bool:
        """Whether `extra` tokens can be had, with what SGLang reserves for the requests that decode left alone."""
        return extra <= compat.free_tokens(self.scheduler)

    def _allocate(self, entry: Reservation, extra: int) -> None:
        session, kv = entry.session, entry.owner.kv
        compat.evict_from_tree_cache(self._tree, extra)
        slots = self._allocator.alloc(extra)
        assert slots is not None, f"no room for {extra} tokens after the check that there is"
        compat.extend_row(self._rows, kv, extra, slots)
        session.hold(session.held + extra, session.held)

    # The transfer

    def _find_peer(self, entry: Reservation) -> None:
        """Begin the transfer once its prefill worker is known."""
        if entry.found:
            return
        if compat.is_connected(self._transfers, entry.peer):
            entry.receiver.init(0)
            entry.found = entry.receiver.conclude_state is None
            return
        problem = self._peers.look_up(entry.peer)
        if time.monotonic() - entry.began_at > _PEER_PATIENCE_S:
            reason = f"the prefill worker at {entry.peer} is not found: {problem or 'it does not answer'}"
            compat.fail_room(self._transfers, entry.session.room, reason)

    def _link(self, entries: list[Reservation]) -> None:
        """Tell the prefill workers of those `entries` that are found on all ranks where the pages are."""
        found = compat.all_ranks([entry.found for entry in entries], self._queue.gloo_group)
        for entry, go in zip(entries, found, strict=True):
            if go:
                entry.linked = True
                self._announce(entry)

    def _announce(self, entry: Reservation) -> None:
        """Tell the prefill worker all pages there are. It may be told again at any time."""
        if not entry.linked:
            return
        row = self._rows.req_to_token[entry.owner.kv.req_pool_idx, : entry.session.held]
        # What is announced may be written at once.
        compat.settle_forward(self.scheduler)
        pages = compat.pages_to_transfer(self._allocator, row)
        compat.announce(entry.receiver, pages, entry.slot)

    def _poll_transfers(self) -> None:
        entries = [entry for entry in self.entries.values() if entry.ending is None and entry.landed is None]
        for entry in entries:
            if entry.linked:
                # The transfer's patience counts from the commit; until then the session's time to live holds.
                entry.receiver.init_time = time.time()
        polls = compat.poll_on_all_ranks([entry.receiver for entry in entries], self._queue.gloo_group)
        for entry, poll in zip(entries, polls, strict=True):
            if poll == compat.KVPoll.Failed and entry.ending is None:
                self.drop(entry, *heard(compat.failure_of(self._transfers, entry.session.room)))
        ended = [entry for entry, poll in zip(entries, polls, strict=True) if poll == compat.KVPoll.Success]
        buffers = self.scheduler.disagg_metadata_buffers
        told = [compat.landed(buffers, entry.slot, entry.session.room) for entry in ended]
        ready = compat.all_ranks([tokens is not None for tokens in told], self._queue.gloo_group)
        for entry, tokens, go in zip(ended, told, ready, strict=True):
            if go:
                entry.landed = tokens

    # The commit

    def _start_commit(self, entry: Reservation, request: compat.Req) -> None:
        """Let the committed request take over, as soon as there is room for the whole prompt."""
        if not entry.linked or not self._grow_to_commit(entry):
            return
        session, kv = entry.session, entry.owner.kv
        tokens = len(session.ids)
        if (surplus := self._whole_pages(tokens)) < session.held:
            compat.cut_row(self._tree, kv, surplus)
        kv.kv_committed_len = kv.kv_allocated_len = tokens
        request.kv = entry.owner.detach_kv()
        request.full_untruncated_fill_ids = request.origin_input_ids + request.output_ids
        request.prefix_len = 0
        request.extend_end = tokens
        entry.receiver.init_time = time.time()
        request.time_stats.set_bootstrap_done_time()
        request.time_stats.set_decode_transfer_queue_entry_time()
        self.scheduler.disagg_decode_transfer_queue.add(
            compat.make_decode_request(
                req=request, kv_receiver=entry.receiver, waiting_for_input=True, metadata_buffer_index=entry.slot
            )
        )
        entry.started = True
        entry.ending = ("committed", "it was committed")
        self.finish(entry)

    # What the prefill worker has left to compute

    def next_batch(
        self, plan: Callable[[compat.PromptBatch], compat.NextBatchPlan], running: compat.PromptBatch
    ) -> compat.NextBatchPlan:
        """A pass over the rest of prompts, if there are some, goes before the next step; behind it their requests join
        those that are `running`."""
        passed, self._passed = self._passed, None
        if passed is not None:
            passed.filter_batch()
            if running.is_empty():
                running = passed
            elif not passed.is_empty():
                running.merge_batch(passed)
        ready = self._ready(self.scheduler.max_running_requests - len(running.reqs))
        if not ready:
            return plan(running)
        # The last tokens of those that run may not be read yet; what has ended has no place in a batch.
        running.filter_batch()
        self._passed = compat.prompt_batch(self.scheduler, [self._go_on(entry) for entry in ready])
        return compat.make_plan(batch_to_run=self._passed, running_batch=running)

    def _ready(self, most: int) -> list[Reservation]:
        """Of sessions whose prompt's rest is to be computed here those for which there is room, `most` at most."""
        waiting = [
            entry
            for entry in tuple(self.entries.values())
            if entry.ending is None and entry.committed is not None and entry.session.rest and entry.landed is not None
        ]
        if not waiting:
            return []
        ready: list[Reservation] = []
        room = compat.unused_tokens(self.scheduler)
        for entry in waiting:
            assert entry.landed is not None
            rest = len(entry.session.ids) - entry.landed
            if not 0 < rest <= self._max_rest or entry.landed > entry.session.held:
                self.drop(entry, "lost", f"{rest} tokens are left to compute")
                continue
            # Beside what it gives back.
            wanted = self._whole_pages(rest) + self.page_size - (entry.session.held - entry.landed)
            if len(ready) < most and wanted <= room:
                room -= wanted
                ready.append(entry)
        return ready

    def _go_on(self, entry: Reservation) -> compat.Req:
        """Let the committed request take over what there is."""
        session, kv, request = entry.session, entry.owner.kv, entry.committed
        assert request is not None
        assert entry.landed is not None
        if session.held > entry.landed:
            compat.cut_row(self._tree, kv, entry.landed)
        request.kv = entry.owner.detach_kv()
        compat.begin_behind(request.kv, request, entry.landed)
        entry.started = True
        entry.ending = ("committed", "it was committed")
        compat.clear_metadata(self.scheduler.disagg_metadata_buffers, entry.slot)
        self._slots.free(entry.slot)
        entry.receiver.clear()
        self.finish(entry)
        return request

    # Memory

    def _spare_running(self) -> None:
        """Sessions that wait for their callers end before a running answer is retracted for want of memory, and while
        one that was waits to come back.
        """
        draining = sum(drain.entry.session.held for drain in self._drains)
        wanted = max(_PAGES_AHEAD * self.page_size, _STEPS_AHEAD) * len(self.scheduler.running_batch.reqs)
        missing = wanted - compat.unused_tokens(self.scheduler) - draining
        if self._queue.retracted_queue:
            missing = max(missing, -compat.free_tokens(self.scheduler) - draining)
        for session in self.table.idlest():
            if missing <= 0:
                return
            missing -= session.held
            self.drop(self.entries[session.id], "lost", "its memory went to running requests")

    def _relieve_starving(self) -> None:
        """Nothing decodes and nothing arrives, though requests wait for memory: end the idlest session."""
        queue = self._queue
        waiting = [*queue.retracted_queue, *(waiting for waiting in queue.queue if waiting.waiting_for_input)]
        # What a prefill worker is about to finish waits for that, not for memory.
        waiting += [
            entry
            for entry in self.entries.values()
            if entry.committed is not None and entry.linked and (entry.landed is not None or not entry.session.rest)
        ]
        head, self._head = self._head, waiting[0] if waiting else None
        if head is None or head is not self._head or self._drains:
            return
        scheduler = self.scheduler
        if scheduler.running_batch.reqs or scheduler.waiting_queue or scheduler.disagg_decode_transfer_queue.queue:
            # These make room when they end. Sessions within their share are held until then.
            return
        for session in self.table.idlest():
            self.drop(self.entries[session.id], "lost", "its memory went to ordinary requests")
            return

    # Ends

    def stop(self, entry: Reservation) -> None:
        receiver = entry.receiver
        receiver.abort()
        if self._transfers.enable_deferred_decode_kv_release and receiver.abort_notified:
            timeout = self.scheduler.disagg_decode_transfer_queue.deferred_kv_release_timeout
            self._drains.append(_Drain(entry, time.monotonic() + timeout, len(receiver.bootstrap_infos)))
        else:
            self._release(entry)

    def _resolve_drains(self) -> None:
        """Free pages whose prefill ranks have said that they write no more, or whose time is over."""
        if not self._drains:
            return
        now = time.monotonic()
        ready = compat.all_ranks(
            [
                now >= drain.deadline
                or self._transfers.is_abort_release_safe(drain.entry.session.room, drain.acknowledgements)
                for drain in self._drains
            ],
            self._queue.gloo_group,
        )
        drains, self._drains = self._drains, []
        for drain, go in zip(drains, ready, strict=True):
            if go:
                self._transfers.clear_deferred_abort_state(drain.entry.session.room)
                self._release(drain.entry)
            else:
                self._drains.append(drain)

    def _release(self, entry: Reservation) -> None:
        compat.release_kv(entry.owner, self._tree)
        compat.clear_metadata(self.scheduler.disagg_metadata_buffers, entry.slot)
        self._slots.free(entry.slot)
        entry.receiver.clear()
        compat.forget_failure(self._transfers, entry.session.room)
        self.finish(entry)
