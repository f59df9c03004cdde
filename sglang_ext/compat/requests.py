"""Requests: SGLang's own object of one, how the HTTP process and the schedulers write of it, and batches."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

import msgspec

from sglang_ext.compat.descriptions import describes, imported
from sglang_ext.compat.memory import Kv
from sglang_ext.compat.transfer import Receiver, Sender

Tokens: TypeAlias = "array[int]"

_BATCH = "sglang.srt.managers.schedule_batch"
_IO = "sglang.srt.managers.io_struct"


@describes("sglang.srt.sampling.sampling_params.SamplingParams")
class SamplingParams(Protocol):
    ignore_eos: bool
    custom_params: Mapping[str, object] | None
    frequency_penalty: float
    presence_penalty: float
    repetition_penalty: float
    min_new_tokens: int

    def normalize(self, tokenizer: None, /) -> None: ...


@imported("sglang.srt.sampling.sampling_params.SamplingParams")
def make_sampling_params(*, max_new_tokens: int) -> SamplingParams: ...


@describes("sglang.srt.observability.req_time_stats.SchedulerReqTimeStats")
class TimeStats(Protocol):
    def set_wait_queue_entry_time(self) -> None: ...
    def set_bootstrap_done_time(self) -> None: ...
    def set_decode_transfer_queue_entry_time(self) -> None: ...


@describes(f"{_BATCH}.Req")
class Req(Protocol):
    """A request in a scheduler."""

    rid: str
    origin_input_ids: Tokens
    output_ids: Tokens
    full_untruncated_fill_ids: Tokens
    prefix_len: int
    """Tokens that are in the row or found in the tree; the next extend starts here ..."""
    extend_end: int
    """... and ends here."""
    cached_tokens: int
    last_node: object
    """Of the tree: where its prefix ends."""
    cache_request_handle: object
    kv: Kv
    sampling_params: SamplingParams
    tokenizer: object
    logprob_start_len: int
    to_finish: object
    time_stats: TimeStats
    arrival_processed_tokens: int

    bootstrap_room: int | None
    disagg_kv_sender: Sender
    pending_bootstrap: bool
    metadata_buffer_index: int
    start_send_idx: int
    """Tokens that were handed to the transfer."""
    disagg_decode_prefix_len: int

    def detach_kv(self) -> Kv:
        """Take what the request holds of the pools away from it."""


@imported(f"{_BATCH}.Req")
def make_request(
    *,
    rid: str,
    origin_input_text: str,
    origin_input_ids: Tokens,
    sampling_params: SamplingParams,
    bootstrap_host: str | None = None,
    bootstrap_port: int | None = None,
    bootstrap_room: int,
    disagg_mode: object,
    vocab_size: int | None = None,
) -> Req: ...


@imported(f"{_BATCH}.FINISH_ABORT")
def finish_abort() -> object:
    """The end of a request that is aborted: set `to_finish` to it."""


@describes(f"{_BATCH}.ScheduleBatch")
class Batch(Protocol):
    reqs: list[Req]
    extend_lens: list[int]
    """Tokens of each that the pass computes,"""
    prefix_lens: list[int]
    """and those before them."""


@describes("sglang.srt.disaggregation.decode.DecodeRequest")
class DecodeRequest(Protocol):
    """A request of a decode worker that has no KV yet."""

    waiting_for_input: bool


@imported("sglang.srt.disaggregation.decode.DecodeRequest")
def make_decode_request(
    *, req: Req, kv_receiver: Receiver, waiting_for_input: bool, metadata_buffer_index: int
) -> DecodeRequest: ...


@imported("sglang.srt.disaggregation.utils.is_unadmitted_reject")
def is_refused(req: Req, /) -> bool:
    """Whether SGLang has refused the request, and only has to say so."""


@imported("sglang.srt.layers.logits_processor.LogitsProcessorOutput")
def make_logits_output(*, next_token_logits: None) -> object: ...


# Messages between the processes of a worker


@imported(f"{_IO}.BaseReq")
class BaseReq(msgspec.Struct, tag=True, kw_only=True, array_like=True):
    """Base of all messages. SGLang answers to the HTTP process whose address it has put into one."""

    rid: str | None = None
    http_worker_ipc: str | None = None


@imported(f"{_IO}.hook_custom_types")
def register_messages(*types: type[BaseReq]) -> None:
    """SGLang's sockets carry these types, too."""


class Dispatcher(Protocol):
    """Calls one function for each type of message."""

    def __iadd__(self, other: Dispatcher, /) -> Dispatcher: ...


@imported("sglang.utils.TypeBasedDispatcher")
def make_dispatcher(mapping: Sequence[tuple[type[BaseReq], object]], /) -> Dispatcher: ...


@describes(f"{_IO}.AbortReq")
class AbortReq(Protocol):
    rid: str
    abort_all: bool


@imported(f"{_IO}.AbortReq")
def make_abort(*, rid: str, finished_reason: Mapping[str, object]) -> AbortReq: ...


@describes(f"{_IO}.SessionParams")
class SessionParams(Protocol):
    id: str
    rid: str
    offset: int | None


@describes(f"{_IO}.TokenizedGenerateReqInput")
class TokenizedGenerate(Protocol):
    """A generate request on its way to a scheduler."""

    rid: str
    input_ids: Tokens
    input_embeds: object
    bootstrap_room: int | None
    session_params: SessionParams | None


@describes(f"{_IO}.GenerateReqInput")
class Generate(Protocol):
    """A generate request as the HTTP process has it."""

    rid: str


@imported(f"{_IO}.GenerateReqInput")
class GenerateReqInput:
    """The class of these."""


@imported(f"{_IO}.GenerateReqInput")
def make_generate(
    *,
    rid: str,
    input_ids: list[int],
    sampling_params: Mapping[str, object],
    stream: bool,
    return_logprob: bool,
    logprob_start_len: int,
    priority: int | None,
    bootstrap_room: int,
    session_params: Mapping[str, object],
) -> Generate: ...
