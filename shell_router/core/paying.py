"""Which appends pay: those that save at the commit at least what they cost.

Tokens that are known and not appended are computed at the commit, for which a user waits. An append takes them away
from there, and costs a forward pass and a call of its own, however little it carries. So it is sent when both are
equal: then the appends of a prompt cost no more, all in all, than the tokens that they carry, and no more than the cost
of one is left for the commit, whenever that comes.

A pass costs as much of its time as others go without (`AppendCost.price`): on a worker that has nothing else to do, and
a card of its own, nothing. Then what an append must be worth is its call, and what can go wrong once: the last one may
be in flight when the commit is due, and hold it up for a pass. So all appends of a prompt together must save that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from shell_router.core.append_cost import AppendCost

Withheld = Literal["fixed_cost", "step_noise"]
"""Why an append did not pay. `fixed_cost`: what it would have saved is less than what any append costs. `step_noise`:
it would have been the first one, and would have saved less than the precursors' decode steps vary."""

_LONG = 64
"""Tokens after which the question is asked again in any case: costs change."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An append that could be sent now. Times in seconds."""

    agent: str
    siblings: Hashable
    """Appends of the same go to one worker at once, and share a forward pass there."""
    tokens: int
    before: int
    """Tokens that have been appended."""
    cost: AppendCost
    noise_s: Callable[[], float]
    """How much the precursors' decode steps vary."""
    left_s: Callable[[], float]
    """In which the last precursor will have ended, at most. Both are asked for when all else speaks for the append."""

    @property
    def gain_s(self) -> float:
        """What it saves at the commit, less its call."""
        return self.cost.tokens_s(self.tokens, self.before) - self.cost.call_s

    @property
    def saved_s(self) -> float:
        """What it and those before it save at the commit, less its call."""
        return self.cost.tokens_s(self.before + self.tokens, 0) - self.cost.call_s


class Verdict(NamedTuple):
    withheld: Withheld | None
    """Why the append is not sent; None for one that is."""
    rest: int = 0
    """Tokens that the precursors must have added before the question is worth asking again."""


def what_pays(candidates: Iterable[Candidate]) -> dict[str, Verdict]:
    """What becomes of each agent's append."""
    together: dict[Hashable, list[Candidate]] = {}
    for each in candidates:
        together.setdefault(each.siblings, []).append(each)
    return {agent: verdict for group in together.values() for agent, verdict in _judge(group).items()}


def _judge(group: list[Candidate]) -> dict[str, Verdict]:
    """Of appends that share a pass: together they must be worth it."""
    worth = [each for each in group if each.gain_s >= 0]
    if _short_s(worth) > 0:
        # A token may be read by all of them.
        token_s = sum(each.cost.tokens_s(1, each.before + each.tokens) for each in group)
        rest = int(min(_short_s(group) / token_s, _LONG)) if token_s > 0 else _LONG
        return {each.agent: Verdict("fixed_cost", rest) for each in group}
    found = {each.agent: Verdict("fixed_cost") for each in group}
    found |= {each.agent: Verdict(_objection(each)) for each in worth}
    left = [each for each in worth if found[each.agent].withheld is None]
    if _short_s(left) > 0:
        found |= {each.agent: Verdict("fixed_cost") for each in left}
    return found


def _short_s(group: list[Candidate]) -> float:
    """What `group` lacks together to be worth a forward pass: what others go without for it, and what it may hold up.
    Infinite where there is nobody."""
    if not group:
        return math.inf
    others = max(each.cost.price * each.cost.pass_s for each in group) - sum(max(0.0, each.gain_s) for each in group)
    own = max(each.cost.pass_s for each in group) - sum(max(0.0, each.saved_s) for each in group)
    return max(others, own)


def _objection(candidate: Candidate) -> Withheld | None:
    """What else speaks against an append that is worth its cost."""
    if not candidate.before and candidate.gain_s < candidate.noise_s():
        # It would open a session for a gain that nobody would notice.
        return "step_noise"
    # Still under way when the commit is due, it would hold that up for longer than it saves there.
    return "fixed_cost" if candidate.left_s() < candidate.cost.fixed_s else None
