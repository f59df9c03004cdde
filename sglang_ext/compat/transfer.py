"""The KV transfer from a prefill worker to a decode worker: NIXL's classes, under SGLang's common ones."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Protocol

from sglang_ext.compat.descriptions import describes, imported
from sglang_ext.compat.memory import Pages

_NIXL = "sglang.srt.disaggregation.nixl.conn"


UNBOUNDED_PAGES = 2**62
_probes = itertools.count(1)


@imported("sglang.srt.disaggregation.base.KVPoll")
class KVPoll:
    """How far a transfer is."""

    Failed: int
    Bootstrapping: int
    Success: int


@describes(f"{_NIXL}.TransferInfo")
class TransferInfo(Protocol):
    """Where one rank of the decode worker wants the pages."""

    dst_kv_indices: Pages
    is_dummy: bool
    """It wants none: it takes them from another prefill rank."""


class _StateType(Protocol):
    """A member of SGLang's enumeration of what is transferred beside KV pages."""

    value: str


@describes("sglang.srt.disaggregation.base.conn.KVArgs")
class KVLayout(Protocol):
    """What a worker transfers, as its transfers are told of it."""

    state_types: Sequence[_StateType]


@describes(f"{_NIXL}.NixlKVManager")
class Transfers(Protocol):
    """All transfers of this process, by room: what both roles have."""

    kv_args: KVLayout
    kv_item_lens_sum: int
    """Bytes of one page over all layers, on this rank."""
    request_status: MutableMapping[int, int]
    failure_records: MutableMapping[int, str]
    failure_lock: threading.Lock

    def record_failure(self, bootstrap_room: int, failure_reason: str, /) -> None: ...
    def update_status(self, bootstrap_room: int, status: int, /) -> None: ...


@describes(f"{_NIXL}.NixlKVManager")
class PrefillTransfers(Transfers, Protocol):
    transfer_infos: MutableMapping[int, Mapping[str, TransferInfo]]
    req_to_decode_prefix_len: MutableMapping[int, int]

    def conclude_failure(self, *, bootstrap_room: int, failure_reason: str) -> None: ...


@describes(f"{_NIXL}.NixlKVManager")
class DecodeTransfers(Transfers, Protocol):
    enable_deferred_decode_kv_release: bool
    prefill_info_table: Mapping[str, object]
    """By address."""
    connection_pool: Mapping[str, object]
    """By address and ranks."""
    connection_lock: threading.Lock

    def try_ensure_parallel_info(self, bootstrap_addr: str, /) -> bool: ...
    def is_abort_release_safe(self, bootstrap_room: int, required_acks: int, /) -> bool: ...
    def clear_deferred_abort_state(self, bootstrap_room: int, /) -> None: ...


class _Poller(Protocol):
    def poll(self) -> int: ...


@describes(f"{_NIXL}.NixlKVSender")
class Sender(Protocol):
    """The prefill worker's end of one transfer."""

    conclude_state: int | None
    curr_idx: int
    """Pages sent."""

    def init(self, num_kv_indices: int, aux_index: int | None = None, /) -> None: ...
    def send(self, kv_indices: Pages, state_indices: None, /, *, num_kv_tokens: int) -> None: ...
    def pop_decode_prefix_len(self) -> int: ...
    def poll(self) -> int: ...
    def clear(self) -> None: ...


@describes(f"{_NIXL}.NixlKVReceiver")
class Receiver(Protocol):
    """The decode worker's end of one transfer."""

    conclude_state: int | None
    init_time: float | None
    abort_notified: bool
    bootstrap_infos: Sequence[object]
    """One for each prefill rank it hears from."""

    def init(self, prefill_dp_rank: int, /) -> None: ...
    def send_metadata(
        self, kv_indices: Pages, aux_index: int, state_indices: list[object], /, *, decode_prefix_len: int
    ) -> None: ...
    def poll(self) -> int: ...
    def abort(self) -> None: ...
    def clear(self) -> None: ...


@imported(f"{_NIXL}.NixlKVSender")
def make_sender(
    *, mgr: PrefillTransfers, bootstrap_addr: str, bootstrap_room: int, req_has_disagg_prefill_dp_rank: bool
) -> Sender: ...


@imported(f"{_NIXL}.NixlKVReceiver")
def make_receiver(*, mgr: DecodeTransfers, bootstrap_addr: str, bootstrap_room: int) -> Receiver: ...


@imported("sglang.srt.disaggregation.utils.poll_and_all_reduce")
def _poll_and_all_reduce(pollers: Sequence[_Poller], gloo_group: object, /) -> list[int]: ...


def poll_on_all_ranks(ends: Sequence[Sender] | Sequence[Receiver], group: object) -> list[int]:
    """How far each transfer is on the rank where it is least far; all ranks must ask, with as many ends."""
    return _poll_and_all_reduce(ends, group) if ends else []


def all_ranks(flags: Sequence[bool], group: object) -> list[bool]:
    """Per entry, whether it is true on every rank of `group`; all ranks must ask, with as many entries."""
    import torch
    from torch import distributed

    if not flags or distributed.get_world_size(group) == 1:
        return list(flags)
    reduced = torch.tensor([int(flag) for flag in flags], dtype=torch.int32, device="cpu")
    distributed.all_reduce(reduced, op=distributed.ReduceOp.MIN, group=group)
    return [bool(flag) for flag in reduced.tolist()]


def is_connected(transfers: DecodeTransfers, address: str) -> bool:
    """Whether a transfer from the prefill worker at `address` can begin without a request over the network."""
    if address not in transfers.prefill_info_table:
        return False
    with transfers.connection_lock:
        return any(key.startswith(f"{address}_") for key in transfers.connection_pool)


def connect(transfers: DecodeTransfers, address: str) -> None:
    """Ask the prefill worker at `address` for its ranks and tell it this one's memory; SGLang keeps that for all
    transfers. Takes seconds, in whatever thread. Raises what SGLang raises for a worker that does not match, and
    `ConnectionError`.
    """
    if not transfers.try_ensure_parallel_info(address):
        raise ConnectionError("it does not answer")
    # SGLang connects when a transfer begins: this one is in a room that nobody else uses, and goes no further.
    room = -next(_probes)
    receiver = make_receiver(mgr=transfers, bootstrap_addr=address, bootstrap_room=room)
    receiver.init(0)
    failed = receiver.conclude_state is not None
    reason = failure_of(transfers, room)
    receiver.clear()
    forget_failure(transfers, room)
    if failed:
        raise ConnectionError(reason or "its ranks do not answer")


def announce(receiver: Receiver, pages: Pages, slot: int) -> None:
    """Tell the prefill worker all pages there are, and the metadata buffer. It may be told again at any time."""
    receiver.send_metadata(pages.astype("int32"), slot, [], decode_prefix_len=0)


def announced_pages(transfers: PrefillTransfers, room: int) -> int:
    """Pages the decode worker has room for: the shortest list its ranks have sent. Ranks that take nothing from this
    one set no bound.
    """
    infos = transfers.transfer_infos.get(room)
    if not infos:
        return 0
    lengths = (len(info.dst_kv_indices) for info in list(infos.values()) if not info.is_dummy)
    return min(lengths, default=UNBOUNDED_PAGES)


def fail_room(transfers: Transfers, room: int, reason: str) -> None:
    """Let the transfer of `room` fail on this worker."""
    transfers.record_failure(room, reason)
    transfers.update_status(room, KVPoll.Failed)


def failure_of(transfers: Transfers, room: int) -> str:
    """Why the transfer of `room` failed, if anybody said so."""
    return transfers.failure_records.get(room, "")


def forget_failure(transfers: Transfers, room: int) -> None:
    with transfers.failure_lock:
        transfers.failure_records.pop(room, None)


def forget_room(transfers: PrefillTransfers, room: int) -> None:
    """Drop what a prefill worker knows of an ended transfer."""
    transfers.request_status.pop(room, None)
    transfers.transfer_infos.pop(room, None)
    transfers.req_to_decode_prefix_len.pop(room, None)
    forget_failure(transfers, room)
