"""Drafts for the batches of one worker: what each of its requests may be drafted from, and how wide a step is.

It sees requests as the scheduler has them when a step begins, and learns what became of the step before from how their
answers have grown. So it needs nothing of the step itself but its duration.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Protocol

from sglang_ext import protocol
from sglang_ext.drafts.index import Draft, ReferenceIndex
from sglang_ext.drafts.policy import Policy, SharePolicy, WidthPolicy
from sglang_ext.drafts.proposal import Proposal
from sglang_ext.drafts.shared import Groups

MAX_PROMPT_TOKENS = 2**18
"""Longer prompts are not indexed: their requests decode without drafts."""
_GROUP_TOKENS, _GROUPS = 2**18, 256
_NOTHING = Draft([], 0)


class Sampling(Protocol):
    """What a request says of how its tokens are drawn."""

    @property
    def custom_params(self) -> Mapping[str, object] | None: ...
    @property
    def frequency_penalty(self) -> float: ...
    @property
    def presence_penalty(self) -> float: ...
    @property
    def repetition_penalty(self) -> float: ...
    @property
    def min_new_tokens(self) -> int: ...


class Request(Protocol):
    """A request as the scheduler has it."""

    @property
    def rid(self) -> str: ...
    @property
    def origin_input_ids(self) -> Sequence[int]: ...
    @property
    def output_ids(self) -> Sequence[int]: ...
    @property
    def sampling_params(self) -> Sampling: ...


class _Traced:
    """One request: its index, and what was drafted for its last step."""

    def __init__(self, index: ReferenceIndex | None, prompt: int) -> None:
        self.index = index
        self.prompt = prompt
        self.answered = 0
        self.draft = _NOTHING
        self.share = 0


class Drafter:
    """Of one scheduler; all ranks of a worker decide alike if they are told the same durations."""

    def __init__(self, widths: Sequence[int], even: bool) -> None:
        """`widths` of steps, 1 among them: how many tokens of a request one may compute. `even`: as many of each."""
        self.max_tokens = max(widths) - 1
        self.counters = protocol.DraftCounters()
        self._even = even
        self._policy: Policy = WidthPolicy(widths) if even else SharePolicy(self.max_tokens)
        self._groups = Groups(_GROUP_TOKENS, _GROUPS)
        self._traced: dict[str, _Traced] = {}

    def propose(self, requests: Sequence[Request], pending: Sequence[Sequence[int]], plain: bool) -> Proposal:
        """Drafts for the next step of `requests`. `pending`: the tokens of each one's answer that it does not have yet.
        `plain`: the step must be one without drafts.
        """
        drafts = self._follow(requests, pending)
        shares = [0] * len(drafts) if plain else self._policy.choose(drafts)
        for one, share in zip(self._traced.values(), shares, strict=True):
            one.share = share
        width = 1 + max(shares)
        return Proposal(width, [draft.tokens[:share] for draft, share in zip(drafts, shares, strict=True)])

    def ahead(self, requests: Sequence[Request], plain: bool) -> Proposal | None:
        """The same while the tokens of the step before are not known: a step without drafts; None where `propose` must
        be asked, for some may pay.

        A step that drafted gives more than one token, so that what follows it is not known beforehand.
        """
        if any(one.share for one in map(self._traced.get, (request.rid for request in requests)) if one is not None):
            return None
        drafts = self._follow(requests, [()] * len(requests))
        if not plain and self._policy.pays(drafts):
            return None
        return Proposal(1, [[] for _ in drafts])

    def took(self, proposal: Proposal, seconds: float) -> None:
        """How long the step of an earlier proposal took. All ranks of a worker are told the same."""
        shares = [proposal.width - 1 if self._even else len(draft) for draft in proposal.drafts]
        self._policy.observe(shares, seconds)

    def _follow(self, requests: Sequence[Request], pending: Sequence[Sequence[int]]) -> list[Draft]:
        """Whatever is known of the answers is in their indices now; what these draft."""
        traced = {}
        for request, new in zip(requests, pending, strict=True):
            one = self._traced.get(request.rid) or self._trace(request)
            self._grow(one, request.output_ids, new)
            one.draft = _NOTHING if one.index is None else one.index.draft(self.max_tokens)
            one.share = 0
            traced[request.rid] = one
        # Who is not in a batch of the worker's has ended, or comes back with all of its text.
        self._traced = traced
        return [one.draft for one in traced.values()]

    def _trace(self, request: Request) -> _Traced:
        # SGLang has them in arrays of another type.
        prompt = array("i", request.origin_input_ids)
        reason, said = self._unfit(request)
        if reason is not None:
            self.counters.without[reason] = self.counters.without.get(reason, 0) + 1
            return _Traced(None, len(prompt))
        self.counters.requests += 1
        spans = [(start, min(end, len(prompt))) for start, end in said.references if start < len(prompt)]
        member = self._groups.join(said.group) if said.group else None
        return _Traced(ReferenceIndex(prompt, spans, member, said.predicted), len(prompt))

    def _unfit(self, request: Request) -> tuple[str | None, protocol.Drafts]:
        params = request.sampling_params
        said = protocol.drafts_in(params.custom_params) or protocol.Drafts()
        if said.off:
            return "off", said
        if len(request.origin_input_ids) > MAX_PROMPT_TOKENS:
            return "long prompt", said
        if params.frequency_penalty or params.presence_penalty or params.repetition_penalty != 1:
            # What they do to a token depends on all tokens before it, drafts too.
            return "penalties", said
        if params.min_new_tokens:
            return "min_new_tokens", said
        return None, said

    def _grow(self, one: _Traced, answer: Sequence[int], pending: Sequence[int]) -> None:
        new = [*answer[one.answered :], *pending]
        if not new:
            return
        first = one.answered == 0
        one.answered += len(new)
        if one.index is None:
            return
        one.index.extend(new)
        if first:
            return
        # Of steps without drafts there may be several by now, of one token each.
        steps = 1 if one.share else len(new)
        # One more than was verified, at no cost: the step's last token with what was drafted for its place.
        compared = min(one.share + 1, len(one.draft.tokens), len(new))
        right = 0
        while right < compared and new[right] == one.draft.tokens[right]:
            right += 1
        self._policy.learn(one.draft, one.share + 2, right)
        self.counters.steps += steps
        self.counters.drafted += min(one.share, len(one.draft.tokens))
        self.counters.accepted += len(new) - steps
