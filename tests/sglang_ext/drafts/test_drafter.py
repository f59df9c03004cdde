"""The drafter as the worker calls it: step by step, with answers that grow."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from sglang_ext.drafts.drafter import MAX_PROMPT_TOKENS, Drafter
from sglang_ext.protocol import Drafts, drafts_to

STEP_S = 0.01


@dataclass
class Sampling:
    custom_params: dict[str, object] | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_new_tokens: int = 0


@dataclass
class Request:
    rid: str
    origin_input_ids: list[int]
    output_ids: list[int]
    sampling_params: Sampling = field(default_factory=Sampling)


def said(drafts: Drafts) -> Sampling:
    return Sampling(custom_params=dict(drafts_to(drafts)))


def write(drafter: Drafter, requests: list[Request], answers: list[list[int]], late: bool = False) -> int:
    """Steps until each of `requests` has its answer; `late`: the scheduler sees each step's tokens one step later, and
    steps are planned ahead of them where that can be."""
    steps = 0
    pending: list[list[int]] = [[] for _ in requests]
    while any(len(r.output_ids) + len(p) < len(a) for r, p, a in zip(requests, pending, answers, strict=True)):
        ahead = drafter.ahead(requests, plain=False) if late else None
        proposal = ahead or drafter.propose(requests, pending, plain=False)
        assert all(len(draft) < proposal.width for draft in proposal.drafts)
        drafter.took(proposal, STEP_S)
        for i, (request, answer, draft) in enumerate(zip(requests, answers, proposal.drafts, strict=True)):
            request.output_ids = request.output_ids + pending[i]
            have = len(request.output_ids)
            right = 0
            while right < len(draft) and draft[right : right + 1] == answer[have + right : have + right + 1]:
                right += 1
            new = answer[have : have + right + 1]
            if late:
                pending[i] = new
            else:
                request.output_ids = request.output_ids + new
        steps += 1
    return steps


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("even", [False, True])
def test_an_answer_that_copies_its_reference_takes_few_steps(late: bool, even: bool) -> None:
    reference = list(range(100, 180))
    prompt = [1, 2, *reference, 3, 4]
    request = Request("a", prompt, reference[:1], said(Drafts(references=((2, 82),))))
    drafter = Drafter(range(1, 10), even)
    assert write(drafter, [request], [reference], late) < 25
    assert drafter.counters.requests == 1
    assert drafter.counters.accepted > 50
    assert drafter.counters.drafted >= drafter.counters.accepted


@pytest.mark.parametrize("even", [False, True])
def test_who_copies_nothing_is_planned_ahead(even: bool) -> None:
    """Its tokens are waited for only when a step is tried to learn what it costs."""
    drafter = Drafter(range(1, 10), even)
    request = Request("a", [1, 2, 3], [4])
    waited = 0
    for token in range(10, 410):
        proposal = drafter.ahead([request], plain=False)
        waited += proposal is None
        proposal = proposal or drafter.propose([request], [[token]], plain=False)
        drafter.took(proposal, STEP_S * proposal.width)
        request.output_ids = [*request.output_ids, token]
    assert waited < 20
    assert drafter.counters.accepted == 0


def test_a_step_behind_one_that_drafted_is_not_planned_ahead() -> None:
    reference = list(range(100, 180))
    drafter = Drafter(range(1, 10), even=True)
    request = Request("a", [1, 2, *reference, 3, 4], reference[:1], said(Drafts(references=((2, 82),))))
    drafter.took(drafter.propose([request], [[]], plain=True), STEP_S)
    proposal = drafter.propose([request], [[]], plain=False)
    assert proposal.width > 1
    assert drafter.ahead([request], plain=False) is None
    assert drafter.ahead([request], plain=True) is None, "how many tokens that gave is not known yet"
    assert drafter.ahead([Request("b", [7], [8])], plain=False) is not None


@pytest.mark.parametrize("late", [False, True])
def test_counters_add_up(late: bool) -> None:
    """Steps and what drafts added to them are the answers' tokens, however steps were planned."""
    reference = list(range(100, 180))
    copies = Request("a", [1, 2, *reference, 3], reference[:1], said(Drafts(references=((2, 82),))))
    writes = Request("b", [9], [500])
    drafter = Drafter(range(1, 10), even=False)
    write(drafter, [copies], [reference], late)
    write(drafter, [writes], [list(range(500, 600))], late)
    # What ended them has not been told: the last step of each.
    told = drafter.counters.steps + drafter.counters.accepted
    assert 79 + 99 - 9 - 2 <= told <= 79 + 99


def test_siblings_draft_for_each_other() -> None:
    answer = list(range(50, 120))
    drafter = Drafter(range(1, 10), even=False)
    sampling = said(Drafts(group="run:0"))
    alone = write(drafter, [Request("a", [1, 2], answer[:1], sampling)], [answer])
    assert alone == len(answer) - 1
    assert write(drafter, [Request("b", [1, 2], answer[:1], sampling)], [answer]) < 25
    assert write(drafter, [Request("c", [1, 2], answer[:1])], [answer]) == alone


@pytest.mark.parametrize(
    ("reason", "sampling"),
    [
        ("off", said(Drafts(off=True))),
        ("penalties", Sampling(frequency_penalty=0.5)),
        ("penalties", Sampling(presence_penalty=-0.5)),
        ("penalties", Sampling(repetition_penalty=1.1)),
        ("min_new_tokens", Sampling(min_new_tokens=3)),
    ],
)
def test_who_gets_no_drafts(reason: str, sampling: Sampling) -> None:
    answer = [5, 6, 7, 8] * 8
    drafter = Drafter(range(1, 10), even=False)
    assert write(drafter, [Request("a", [1, 2], answer[:1], sampling)], [answer]) == len(answer) - 1
    assert drafter.counters.without == {reason: 1}
    assert drafter.counters.drafted == drafter.counters.requests == 0


def test_a_prompt_beyond_the_bound() -> None:
    drafter = Drafter(range(1, 10), even=False)
    request = Request("a", [7] * (MAX_PROMPT_TOKENS + 1), [7])
    assert drafter.propose([request], [[]], plain=False).drafts == [[]]
    assert drafter.counters.without == {"long prompt": 1}


def test_a_reference_beyond_the_prompt_is_cut() -> None:
    drafter = Drafter(range(1, 10), even=False)
    references = ((1, 900), (500, 600))
    drafter.propose([Request("a", [1, 2, 3], [4], said(Drafts(references=references)))], [[]], plain=False)
    assert drafter.counters.requests == 1


def test_plain_steps_draft_nothing() -> None:
    drafter = Drafter(range(1, 10), even=False)
    request = Request("a", [1, 2, 3, 1, 2, 3, 1, 2], [3])
    for _ in range(5):
        proposal = drafter.propose([request], [[]], plain=True)
        drafter.took(proposal, STEP_S)
        assert proposal.width == 1
        request.output_ids = [*request.output_ids, request.output_ids[-1] % 3 + 1]
    assert drafter.counters.drafted == 0


def test_a_request_that_comes_back_is_known_by_its_text() -> None:
    """After a retraction, or under another's id: nothing of the former is left."""
    drafter = Drafter(range(1, 10), even=False)
    answer = list(range(40))
    write(drafter, [Request("a", [1, 2], answer[:1])], [answer])
    drafter.propose([Request("b", [9, 9], [1])], [[]], plain=False)
    again = Request("a", [3, 4], answer[:20])
    assert write(drafter, [again], [answer]) == 20


@pytest.mark.parametrize("even", [False, True])
def test_who_copies_does_not_make_others_draft(even: bool) -> None:
    """A step of uneven rows computes drafts for the one request that has good ones."""
    reference = list(range(100, 180))
    copies = Request("a", [1, 2, *reference, 3], reference[:1])
    writes = [Request(f"w{i}", [9, 8, 7], [i]) for i in range(5)]
    answers = [reference, *([i, *(1000 + 200 * i + j for j in range(79))] for i in range(5))]
    drafter = Drafter(range(1, 10), even)
    write(drafter, [copies, *writes], answers)
    assert drafter.counters.drafted < 2 * 80
