"""Where the supported versions of SGLang differ. All else that the extension uses is the same in each."""

from __future__ import annotations

from typing import Protocol, cast

from sglang_ext.compat.descriptions import describes
from sglang_ext.compat.memory import MetadataBuffers
from sglang_ext.compat.requests import AbortReq, BaseReq, Req
from sglang_ext.compat.scheduler import SCHEDULER, Scheduler
from sglang_ext.compat.versions import sglang_version

_OLD = "0.5.22"
_BUFFERS = "sglang.srt.disaggregation.utils.MetadataBuffers"


@describes("sglang.srt.managers.scheduler_components.output_sender.SenderWrapper", only=_OLD)
class _Output(Protocol):
    def send_output(self, output: object, recv_obj: object, /) -> None: ...


@describes("sglang.srt.managers.scheduler_components.ipc_channels.SchedulerIpcChannels", only=_OLD)
class _ChannelsOld(Protocol):
    send_to_tokenizer: _Output


@describes(SCHEDULER, only=_OLD)
class _SchedulerOld(Protocol):
    ipc_channels: _ChannelsOld


@describes(SCHEDULER, but=_OLD)
class _Scheduler(Protocol):
    def send_control_output(self, output: object, recv_req: object, /) -> None: ...
    def send_abort_output(self, abort_req: AbortReq, req: Req, /) -> None: ...


class _Rooms(Protocol):
    def __setitem__(self, slot: int, room: int, /) -> None: ...


@describes(_BUFFERS, only=_OLD)
class _BuffersOld(Protocol):
    bootstrap_room: _Rooms


@describes(_BUFFERS, but=_OLD)
class _Buffers(Protocol):
    def clear_slot(self, idx: int, /) -> None: ...


_IS_OLD = sglang_version() == _OLD


def send_answer(scheduler: Scheduler, answer: BaseReq | AbortReq, to: object) -> None:
    """Send `answer` to the HTTP process that the message `to` came from. Only the first rank's goes out."""
    if _IS_OLD:
        cast(_SchedulerOld, scheduler).ipc_channels.send_to_tokenizer.send_output(answer, to)
    else:
        cast(_Scheduler, scheduler).send_control_output(answer, to)


def send_abort(scheduler: Scheduler, abort: AbortReq, request: Req) -> None:
    """Tell the client of `request` that it has ended."""
    if _IS_OLD:
        cast(_SchedulerOld, scheduler).ipc_channels.send_to_tokenizer.send_output(abort, request)
    else:
        cast(_Scheduler, scheduler).send_abort_output(abort, request)


def clear_metadata(buffers: MetadataBuffers, slot: int) -> None:
    """Let the buffer's next owner not take what the last one was sent for its own."""
    if _IS_OLD:
        cast(_BuffersOld, buffers).bootstrap_room[slot] = 0
    else:
        cast(_Buffers, buffers).clear_slot(slot)
