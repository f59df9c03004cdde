"""Where the supported versions of SGLang differ. All else that the extension uses is the same in each."""

from __future__ import annotations

from typing import Protocol, cast

from sglang_ext.compat.descriptions import describes
from sglang_ext.compat.memory import MetadataBuffers
from sglang_ext.compat.requests import AbortReq, BaseReq, Req
from sglang_ext.compat.scheduler import SCHEDULER, Scheduler
from sglang_ext.compat.versions import sglang_version

_BUFFERS = "sglang.srt.disaggregation.utils.MetadataBuffers"


class _Output(Protocol):
    def send_output(self, output: object, recv_obj: object, /) -> None: ...


@describes("sglang.srt.managers.scheduler_components.ipc_channels.SchedulerIpcChannels", only="0.5.22")
class _Channels22(Protocol):
    send_to_tokenizer: _Output


@describes(SCHEDULER, only="0.5.22")
class _Scheduler22(Protocol):
    ipc_channels: _Channels22


@describes(SCHEDULER, only="0.5.23")
class _Scheduler23(Protocol):
    def send_control_output(self, output: object, recv_req: object, /) -> None: ...
    def send_abort_output(self, abort_req: AbortReq, req: Req, /) -> None: ...


class _Rooms(Protocol):
    def __setitem__(self, slot: int, room: int, /) -> None: ...


@describes(_BUFFERS, only="0.5.22")
class _Buffers22(Protocol):
    bootstrap_room: _Rooms


@describes(_BUFFERS, only="0.5.23")
class _Buffers23(Protocol):
    def clear_slot(self, idx: int, /) -> None: ...


_IS_22 = sglang_version() == "0.5.22"


def send_answer(scheduler: Scheduler, answer: BaseReq | AbortReq, to: object) -> None:
    """Send `answer` to the HTTP process that the message `to` came from. Only the first rank's goes out."""
    if _IS_22:
        cast(_Scheduler22, scheduler).ipc_channels.send_to_tokenizer.send_output(answer, to)
    else:
        cast(_Scheduler23, scheduler).send_control_output(answer, to)


def send_abort(scheduler: Scheduler, abort: AbortReq, request: Req) -> None:
    """Tell the client of `request` that it has ended."""
    if _IS_22:
        cast(_Scheduler22, scheduler).ipc_channels.send_to_tokenizer.send_output(abort, request)
    else:
        cast(_Scheduler23, scheduler).send_abort_output(abort, request)


def clear_metadata(buffers: MetadataBuffers, slot: int) -> None:
    """Let the buffer's next owner not take what the last one was sent for its own."""
    if _IS_22:
        cast(_Buffers22, buffers).bootstrap_room[slot] = 0
    else:
        cast(_Buffers23, buffers).clear_slot(slot)
