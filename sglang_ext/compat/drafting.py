"""Speculative decoding in SGLang, with drafts of ours: the registered algorithm and the worker that runs its steps.

SGLang's seam is `SpeculativeAlgorithm.register`. The algorithm says of itself that it is like NGRAM: its drafts come
from the host, its KV is the target's alone, and its batches carry an `NgramVerifyInput` from step to step. All that the
scheduler sees has the greatest width a step can have; how wide a step really is, is the worker's own affair.

SGLang's classes can only be subclassed where it has been imported, which is in its schedulers, hence the functions
around classes here.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from sglang_ext.compat.descriptions import describes
from sglang_ext.compat.requests import Req
from sglang_ext.drafts.proposal import Proposal
from sglang_ext.settings import DRAFTING_ALGORITHM

DEFAULT_WIDTH = 9
"""Tokens of each request in the widest step: 8 drafts and one more."""
_GRAPHED = (1, 2, 4)
"""On a GPU each width has CUDA graphs of its own: these and the greatest."""
_SHARED_STEPS = 8
"""Ranks tell each other how long steps took, so many at a time."""


@describes("sglang.srt.managers.schedule_batch.ScheduleBatch")
class StepBatch(Protocol):
    """A batch that decodes, as its worker has it."""

    reqs: list[Req]
    seq_lens: Any
    """[requests]: tokens whose KV is there, on the device ..."""
    seq_lens_cpu: Any
    """... and on the host,"""
    seq_lens_sum: int | None
    """all of them; None until somebody asks."""
    req_pool_indices: Any
    forward_mode: Any
    input_ids: Any
    out_cache_loc: Any
    spec_info: Any
    sampling_info: Any
    return_logprob: bool
    has_grammar: bool
    enable_overlap: bool
    after_idle_gap: bool
    """The scheduler had nothing to do just before it."""
    device: Any

    def grammar_needs_sync(self) -> bool:
        """Results of the step before are processed before this one is prepared, overlap scheduling or not."""


@describes("sglang.srt.speculative.spec_registry.CustomSpecAlgo")
class _Algorithm(Protocol):
    """What SGLang asks of a registered algorithm and ours answers in its own way."""

    def is_ngram(self) -> bool: ...
    def has_draft_kv(self) -> bool: ...
    def handle_server_args(self, server_args: Any) -> None: ...
    def build_disagg_draft_input(self, batch: Any, last_tokens_tensor: Any, future_map: Any) -> Any: ...


@describes("sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo")
class _SamplingInfo(Protocol):
    """How the tokens of a batch are drawn, [requests, ...] each."""

    temperatures: Any
    top_ps: Any
    top_ks: Any
    min_ps: Any
    sampling_seed: Any
    logit_bias: Any
    acc_additive_penalties: Any
    acc_scaling_penalties: Any
    has_custom_logit_processor: bool
    return_sampling_masks: list[bool] | None


@describes("sglang.srt.speculative.ngram_info.NgramVerifyInput")
class _StepInput(Protocol):
    """What a batch carries from step to step."""

    draft_token_num: int
    positions: Any
    custom_mask: Any
    new_seq_lens: Any
    accept_tokens: Any
    accept_lens: Any
    future_indices: Any


@describes("sglang.srt.managers.utils.GenerationBatchResult")
class _Result(Protocol):
    """What a step gives the scheduler."""

    logits_output: Any
    next_token_ids: Any
    can_run_cuda_graph: bool
    accept_lens: Any
    cap_lens: Any
    """How many tokens of each request were drafted."""
    new_seq_lens: Any
    next_draft_input: Any
    speculative_num_draft_tokens: int | None


class Drafter(Protocol):
    def propose(self, requests: Sequence[Req], pending: Sequence[Sequence[int]], plain: bool) -> Proposal:
        """Drafts for the next step of `requests`. `pending`: the tokens of each one's answer that it does not have yet.
        `plain`: the step must be one without drafts."""

    def ahead(self, requests: Sequence[Req], plain: bool) -> Proposal | None:
        """The same while the tokens of the step before are not known: a step without drafts; None where `propose` must
        be asked, for some may pay."""

    def took(self, proposal: Proposal, seconds: float) -> None:
        """How long the step of an earlier proposal took. All ranks of a worker are told the same."""


class _Timed(NamedTuple):
    """A step whose time is being taken."""

    proposal: Proposal
    began: float
    ahead: bool
    """Planned before the tokens of the step before were known."""
    counts: bool
    """Whether its time says what such steps take."""


MakeDrafter = Callable[[Sequence[int], bool], Drafter]
"""Of the widths that steps can have, and whether they must have as many tokens for each request."""


def register_drafting(make_drafter: MakeDrafter) -> None:
    """Let `--speculative-algorithm GRAFT` decode with the drafts of `make_drafter`."""
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
    from sglang.srt.speculative.spec_registry import CustomSpecAlgo

    class Drafting(CustomSpecAlgo):  # type: ignore[misc]
        def is_ngram(self) -> bool:
            return True

        def has_draft_kv(self) -> bool:
            return False

        # What SGLang asks of its own algorithms and does not have on registered ones.
        def carries_draft_hidden_states(self) -> bool:
            return False

        def need_topk(self) -> bool:
            return False

        def create_future_map(self, device: Any, req_to_token_pool: Any, *args: Any, **options: Any) -> Any:
            from sglang.srt.managers.overlap_utils import FutureMap

            return FutureMap(device, self, req_to_token_pool, *args, **options)

        def handle_server_args(self, server_args: Any) -> None:
            width = server_args.speculative_num_draft_tokens or DEFAULT_WIDTH
            server_args.speculative_num_draft_tokens = width
            server_args.speculative_num_steps = width - 1
            # A chain: attention backends that know no trees serve it with a causal mask.
            server_args.speculative_eagle_topk = 1
            server_args.enable_mixed_chunk = False

        def build_disagg_draft_input(self, batch: Any, last_tokens_tensor: Any, future_map: Any) -> Any:
            return _first_input(batch, future_map)

    SpeculativeAlgorithm.register(DRAFTING_ALGORITHM, supports_overlap=True, spec_class=Drafting)(
        lambda server_args: _worker_class(make_drafter)
    )


def is_drafting(algorithm: object) -> bool:
    """Whether a scheduler's speculative algorithm is ours."""
    return getattr(algorithm, "name", None) == DRAFTING_ALGORITHM


def drafts_here() -> bool:
    """Whether this worker was started with our algorithm."""
    from sglang.srt.runtime_context import get_spec

    return bool(get_spec().speculative_algorithm == DRAFTING_ALGORITHM)


def with_radix_cache(original: Callable[[Any], None], server_args: Any) -> None:
    """Around `handle_speculative_decoding`, which refuses a decode worker's radix cache beside our algorithm."""
    from sglang.srt.arg_groups.overrides import declare_resolution, resolving_view

    config = resolving_view(server_args)
    ours = (config.speculative_algorithm or "").upper() == DRAFTING_ALGORITHM
    hidden = ours and config.disaggregation_decode_enable_radix_cache
    if hidden:
        declare_resolution(server_args, DRAFTING_ALGORITHM, disaggregation_decode_enable_radix_cache=False)
    original(server_args)
    if hidden:
        declare_resolution(server_args, DRAFTING_ALGORITHM, disaggregation_decode_enable_radix_cache=True)


def tell_drafted(result: None, manager: object, meta_info: dict[str, Any], recv_obj: Any, i: int) -> None:
    """After `_calculate_spec_decoding_metrics`: how much was really drafted for the request."""
    if "spec_num_proposed_drafts" in meta_info and recv_obj.spec_num_cap_tokens:
        drafted = recv_obj.spec_num_cap_tokens[i]
        meta_info["spec_num_proposed_drafts"] = drafted
        meta_info["spec_accept_rate"] = meta_info["spec_num_correct_drafts"] / drafted if drafted else 0.0


def _carried(width: int, seq_lens: Any, tokens: Any, lengths: Any) -> Any:
    """What a batch carries into its next step: of each request `lengths` tokens, in rows of `width`."""
    from sglang.srt.speculative.ngram_info import NgramVerifyInput

    return NgramVerifyInput(draft_token_num=width, new_seq_lens=seq_lens, accept_tokens=tokens, accept_lens=lengths)


def _first_input(batch: StepBatch, future_map: Any) -> Any:
    """What is carried into the first step after prompts that another worker has computed: no tokens of a step before.

    SGLang has that for algorithms with draft models only.
    """
    import torch
    from sglang.srt.managers.overlap_utils import RelayPayload
    from sglang.srt.runtime_context import get_spec

    width, count = get_spec().speculative_num_draft_tokens, len(batch.reqs)
    tokens = torch.zeros(count * width, dtype=torch.int32, device=batch.device)
    carried = _carried(width, batch.seq_lens, tokens, torch.zeros(count, dtype=torch.int32, device=batch.device))
    if batch.enable_overlap:
        carried.future_indices = batch.req_pool_indices
        future_map.publish(carried.future_indices, batch.seq_lens)
        future_map.stash(carried.future_indices, RelayPayload.from_ngram(carried))
    return carried


def _worker_class(make_drafter: MakeDrafter) -> type:
    import torch
    from sglang.srt.layers.logprob_processor import compute_spec_logprobs
    from sglang.srt.managers.utils import GenerationBatchResult
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
    from sglang.srt.runtime_context import get_context, get_device, get_parallel, get_spec
    from sglang.srt.speculative.base_spec_worker import BaseSpecWorker
    from sglang.srt.speculative.ngram_info import NgramVerifyInput

    from sglang_ext.drafts.verify import Rows, accept_lengths, chain_mask

    class DraftingWorker(BaseSpecWorker):  # type: ignore[misc]
        """A step is one pass over each request's last token and its drafts."""

        def __init__(self, server_args: Any, gpu_id: int, nccl_port: int, target_worker: Any) -> None:
            super().__init__()
            self._target_worker = target_worker
            self.runner = target_worker.model_runner
            self.device = get_device().device
            self.width = self.speculative_num_draft_tokens = get_spec().speculative_num_draft_tokens
            self.graphs: dict[int, tuple[Any, Any]] = {}
            self.group = get_parallel().tp_group
            self.timed: _Timed | None = None
            self.steps: list[tuple[Proposal, float]] = []
            # Our attention on a CPU takes as many rows of each request as it has.
            self.ragged = self.device == "cpu"
            widths = range(1, self.width) if self.ragged else [w for w in _GRAPHED if w < self.width]
            self.drafter = make_drafter([*widths, self.width], not self.ragged)

        @property
        def draft_worker(self) -> None:
            return None

        def alloc_memory_pool(self, **options: Any) -> None:
            self.req_to_token_pool, self.token_to_kv_pool_allocator = self._target_worker.get_memory_pool()

        def init_cuda_graphs(self) -> None:
            """An attention backend and graphs for each width, as SGLang has for EAGLE's adaptive number of steps."""
            if self.ragged:
                return
            from sglang.srt.model_executor.runner.decode_cuda_graph_runner import DecodeCudaGraphRunner

            runner = self.runner
            self.graphs[self.width] = runner.attn_backend, runner.decode_cuda_graph_runner
            for width in (w for w in _GRAPHED if w < self.width):
                with _configured(get_context(), width, self.width), _undrafted(runner, width):
                    kept = runner.init_new_workspace
                    try:
                        attention = runner._get_attention_backend(init_new_workspace=True)
                    finally:
                        runner.init_new_workspace = kept
                    graphs = None
                    if runner.decode_cuda_graph_runner is not None:
                        graphs = DecodeCudaGraphRunner(
                            runner,
                            attn_backend=attention,
                            speculative_num_steps=width - 1,
                            speculative_num_draft_tokens=width,
                        )
                self.graphs[width] = attention, graphs

        def forward_batch_generation(self, batch: Any, on_publish: Any = None, pp_proxy_tensors: Any = None) -> Any:
            if batch.forward_mode.is_decode():
                return self._step(batch, on_publish)
            self.timed = None
            result = self.target_worker.forward_batch_generation(batch, pp_proxy_tensors=pp_proxy_tensors)
            tokens = torch.zeros(len(batch.reqs), self.width, dtype=torch.int32, device=self.device)
            tokens[:, 0] = result.next_token_ids
            lengths = torch.ones(len(batch.reqs), dtype=torch.int32, device=self.device)
            return self._result(result, batch.seq_lens.clone(), on_publish, result.next_token_ids, tokens, lengths)

        def _step(self, batch: StepBatch, on_publish: Any) -> Any:
            proposal, last = self._plan(batch)
            seq_lens, width = batch.seq_lens, proposal.width
            rows = Rows(proposal.drafts, width, even=not self.ragged)
            if width == 1 and on_publish is not None:
                # How long requests will be is known already: the scheduler need not wait for the step to prepare the
                # next one.
                on_publish(seq_lens + 1)
                on_publish = None
            with self._width(width):
                if width == 1:
                    forward, positions, counts = self._decode(batch, last), seq_lens, None
                else:
                    forward, positions, counts = self._verify(batch, rows, last)
            logits, info = forward.logits_output, batch.sampling_info
            wide = info if counts is None else _widened(info, counts, len(positions))
            self.runner._preprocess_logits(logits, wide)
            # The sampler makes probabilities of the logits where they are.
            kept = logits.next_token_logits.clone() if batch.return_logprob else None
            taken = self.runner.sampler(logits, wide, False, [], [], positions)
            places, drafts, drafted = self._on_device(rows.places, rows.drafts, (rows.drafts >= 0).sum(dim=1))
            tokens = torch.zeros(len(batch.reqs), self.width, dtype=torch.int32, device=self.device)
            tokens[:, :width] = taken[places]
            lengths = accept_lengths(drafts, tokens[:, :width]).to(torch.int32)
            if batch.return_logprob:
                logits.next_token_logits = kept
                compute_spec_logprobs(batch, logits, taken, accept_index=places)
            batch.forward_mode = ForwardMode.DECODE
            result = self._result(forward, seq_lens + lengths, on_publish, tokens.flatten(), tokens, lengths)
            result.cap_lens = drafted
            return result

        def _plan(self, batch: StepBatch) -> tuple[Proposal, Any]:
            """What the next step verifies, and each request's last token, [requests].

            Under overlap scheduling the tokens of the step before are still being computed. Who drafts must know them;
            a step without drafts does not wait for them, so that one is planned by what is known, as long as no draft
            would pay by that.
            """
            info = batch.sampling_info
            # What masks the logits of one token needs all tokens before it, which a draft is not yet.
            masked = batch.has_grammar or info.has_custom_logit_processor or any(info.return_sampling_masks or ())
            overlapped = batch.enable_overlap and not batch.grammar_needs_sync()
            proposal = self.drafter.ahead(batch.reqs, masked) if overlapped else None
            if proposal is not None:
                began = self._clock(batch, ahead=True)
                self.timed = _Timed(proposal, began, ahead=True, counts=True)
                return proposal, self._last(batch)
            pending = self._pending(batch) if overlapped else [[] for _ in batch.reqs]
            began = self._clock(batch, ahead=False)
            proposal = self.drafter.propose(batch.reqs, pending, masked)
            # One without drafts that has waited all the same is not what such steps take.
            self.timed = _Timed(proposal, began, ahead=False, counts=proposal.width > 1 or not overlapped)
            last = [new[-1] if new else req.output_ids[-1] for req, new in zip(batch.reqs, pending, strict=True)]
            return proposal, torch.tensor(last)

        def _last(self, batch: StepBatch) -> Any:
            """Each request's last token, without waiting for it; of those that have none of a step yet, the first."""
            first = [req.output_ids[-1] if req.output_ids else 0 for req in batch.reqs]
            (known,) = self._on_device(torch.tensor(first))
            lengths = batch.spec_info.accept_lens
            at = (lengths.long() - 1).clamp(min=0)
            written = batch.spec_info.accept_tokens.reshape(-1, self.width).gather(1, at[:, None]).squeeze(1)
            return torch.where(lengths > 0, written.to(known.dtype), known)

        def _on_device(self, *tensors: Any) -> list[Any]:
            return [tensor.to(self.device, non_blocking=True) for tensor in tensors]

        def _decode(self, batch: StepBatch, last: Any) -> Any:
            """The step of a worker without drafts: attention that is made for one query of each request is quicker at
            it than a verify step of that width."""
            (batch.input_ids,) = self._on_device(last)
            batch.out_cache_loc = self._slots(batch.req_pool_indices, batch.seq_lens)
            # There, lengths count the token that the step computes. What is set here is the step's own: SGLang restores
            # the batch behind it.
            batch.seq_lens, batch.seq_lens_cpu = batch.seq_lens + 1, batch.seq_lens_cpu + 1
            batch.seq_lens_sum = batch.spec_info = None
            return self.target_worker.forward_batch_generation(batch, is_verify=True)

        def _verify(self, batch: StepBatch, rows: Rows, last: Any) -> tuple[Any, Any, Any]:
            """One pass over each request's `last` token and its drafts; and of its rows of logits the positions, and
            how many each request has."""
            counts, ahead, inputs = self._on_device(rows.counts, rows.ahead(), rows.inputs(last))
            positions = batch.seq_lens.repeat_interleave(counts, output_size=len(ahead)) + ahead
            owners = batch.req_pool_indices.repeat_interleave(counts, output_size=len(ahead))
            batch.forward_mode, batch.input_ids = ForwardMode.TARGET_VERIFY, inputs
            batch.out_cache_loc = self._slots(owners, positions)
            batch.spec_info = NgramVerifyInput(
                draft_token=inputs,
                custom_mask=self._mask(batch, rows.width),
                positions=positions,
                draft_token_num=rows.width,
                new_seq_lens=batch.seq_lens,
            )
            if not self.ragged:
                return self.target_worker.forward_batch_generation(batch, is_verify=True), positions, counts
            forward = ForwardBatch.init_new(batch, self.runner, return_hidden_states_before_norm=False)
            forward.extend_prefix_lens, forward.extend_seq_lens = batch.seq_lens, counts
            return self.target_worker.forward_batch_generation(None, forward, is_verify=True), positions, counts

        def _slots(self, owners: Any, positions: Any) -> Any:
            return self.req_to_token_pool.req_to_token[owners, positions].to(torch.int64)

        def _clock(self, batch: StepBatch, *, ahead: bool) -> float:
            """The time, where the step before ends and the next one begins. The first rank's clock counts.

            From step to step, what the scheduler does between them included; which is known if both were planned
            `ahead` of what they follow, or both behind it.
            """
            now, before = time.perf_counter(), self.timed
            if before is not None:
                known = before.counts and before.ahead == ahead and not batch.after_idle_gap
                self.steps.append((before.proposal, now - before.began if known else math.nan))
                self._tell()
            return now

        def _tell(self) -> None:
            """The drafter learns how long steps took."""
            several = self.group.world_size > 1
            if several and len(self.steps) < _SHARED_STEPS:
                return
            durations = [seconds for _, seconds in self.steps]
            if several:
                shared = torch.tensor(durations, dtype=torch.float64)
                torch.distributed.broadcast(shared, src=self.group.ranks[0], group=self.group.cpu_group)
                durations = shared.tolist()
            for (proposal, _), seconds in zip(self.steps, durations, strict=True):
                if not math.isnan(seconds):
                    self.drafter.took(proposal, seconds)
            self.steps.clear()

        def _pending(self, batch: StepBatch) -> list[list[int]]:
            """Tokens of the step before, which the scheduler has not seen yet."""
            tokens = batch.spec_info.accept_tokens.reshape(-1, self.width).tolist()
            return [row[:length] for row, length in zip(tokens, batch.spec_info.accept_lens.tolist(), strict=True)]

        def _mask(self, batch: StepBatch, width: int) -> Any:
            if self.ragged:
                return None
            return chain_mask(batch.seq_lens, width, width * (int(batch.seq_lens_cpu.sum()) + width * len(batch.reqs)))

        @contextmanager
        def _width(self, width: int) -> Iterator[None]:
            """The model's attention and graphs are those of `width`."""
            if not self.graphs:
                yield
                return
            runner = self.runner
            runner.attn_backend, runner.decode_cuda_graph_runner = self.graphs[width]
            try:
                with _configured(get_context(), width, self.width):
                    yield
            finally:
                runner.attn_backend, runner.decode_cuda_graph_runner = self.graphs[self.width]

        def _result(
            self, forward: Any, new_seq_lens: Any, on_publish: Any, output: Any, tokens: Any, lengths: Any
        ) -> Any:
            if on_publish is not None:
                on_publish(new_seq_lens)
            return GenerationBatchResult(
                logits_output=forward.logits_output,
                next_token_ids=output,
                can_run_cuda_graph=forward.can_run_cuda_graph,
                accept_lens=lengths,
                new_seq_lens=new_seq_lens,
                next_draft_input=_carried(self.width, new_seq_lens, tokens.flatten(), lengths),
                speculative_num_draft_tokens=self.width,
            )

    return DraftingWorker


@contextmanager
def _configured(context: Any, width: int, usual: int) -> Iterator[None]:
    """SGLang's configuration says that steps are `width` wide."""
    context.override(DRAFTING_ALGORITHM, speculative_num_steps=width - 1, speculative_num_draft_tokens=width)
    try:
        yield
    finally:
        context.override(DRAFTING_ALGORITHM, speculative_num_steps=usual - 1, speculative_num_draft_tokens=usual)


@contextmanager
def _undrafted(runner: Any, width: int) -> Iterator[None]:
    """If steps are one token wide, what is made for `runner` is what a worker without drafts has."""
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

    kept = runner.spec_algorithm
    if width == 1:
        runner.spec_algorithm = SpeculativeAlgorithm.NONE
    try:
        yield
    finally:
        runner.spec_algorithm = kept


_ROWS = (
    "temperatures", "top_ps", "top_ks", "min_ps", "sampling_seed", "logit_bias", "acc_additive_penalties",
    "acc_scaling_penalties",
)  # fmt: skip


def _widened(info: Any, counts: Any, rows: int) -> Any:
    """Sampling parameters of each request for all its rows of logits, `counts` of the `rows`."""
    if rows == len(counts):
        return info
    wide = {
        name: value.repeat_interleave(counts, dim=0, output_size=rows)
        for name in _ROWS
        if (value := getattr(info, name)) is not None
    }
    return dataclasses.replace(info, **wide)
