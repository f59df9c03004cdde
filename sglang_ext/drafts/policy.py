"""How many tokens to draft: as many as make most of a batch's time, by what steps took and what drafts were worth.

**Ranks.** `choose` is a function of the calls before it: it knows no clock and no chance. But step times differ between
ranks, so a worker with several must either broadcast rank 0's choice with the batch, or broadcast rank 0's step times
and feed these, and nothing of its own, to the policy of every rank, between the same two steps. Drafts and accepted
tokens are equal on all ranks anyway.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

from sglang_ext.drafts.costs import ENOUGH, StepCosts
from sglang_ext.drafts.hits import Hits
from sglang_ext.drafts.index import Draft

_WORTH = 1.02  # drafts must promise so much more than a plain step gives: of many noisy sizes the best one is lucky
_PLAIN_AGAIN = 64  # steps; what no size must be worse than is measured that often, whatever it seems to cost
_EXPLORED = 0.01  # of all time may be lost to steps that are taken to learn what they cost
_MOST_CREDIT = 32.0  # steps; more is not saved up
_UNSEEN, _STALEST = 0.2, 0.5  # by how much a step may be cheaper than thought, if hardly seen yet, or not for long
_STALE = 4096  # steps, that long


class Policy(ABC):
    """What steps cost and drafts are worth, and the choice between sizes of a step."""

    def __init__(self) -> None:
        self._costs = StepCosts()
        self._hits = Hits()
        self._credit = 0.0
        self._explored: dict[tuple[int, int], float] = {}

    def learn(self, draft: Draft, width: int, accepted: int) -> None:
        """The first `width` - 1 tokens of `draft` were compared with what was written; `accepted` were right.

        A step compares one more than it verifies, at no cost: its last token with what was drafted for that place. So
        a plain step is to be told as `width` 2.
        """
        self._hits.learn(draft.match, min(width - 1, len(draft.tokens)), accepted)

    @abstractmethod
    def choose(self, drafts: Sequence[Draft]) -> list[int]:
        """How many tokens of each draft the next step verifies."""

    def pays(self, drafts: Sequence[Draft]) -> bool:
        """Whether `choose` would verify anything of them. It is not asked to: nothing is spent."""
        credit, explored = self._credit, dict(self._explored)
        shares = self.choose(drafts)
        self._credit, self._explored = credit, explored
        return any(shares)

    def observe(self, shares: Sequence[int], seconds: float) -> None:
        """A decode step that verified `shares` tokens of its requests' drafts, or what stood in their places, took
        `seconds`."""
        batch, drafted = len(shares), sum(shares)
        self._costs.observe(batch, drafted, seconds)
        beyond = seconds - self._explored.pop((batch, drafted), seconds)
        self._credit = min(self._credit + _EXPLORED * seconds - max(0.0, beyond), _MOST_CREDIT * seconds)

    def _decide(self, batch: int, drafted: Sequence[int], tokens: Sequence[float]) -> int:
        """The place in `drafted`, how many tokens a step may verify, from 0 on, of what is to be done. `tokens` is what
        each such step gives in the mean. There must have been a step.
        """
        seconds = self._costs.seconds(batch, drafted)
        rates = [given / each for given, each in zip(tokens, seconds, strict=True)]
        best = max(range(len(drafted)), key=lambda place: (rates[place], -place))
        if rates[best] < _WORTH * rates[0]:
            best = 0
        if best and (self._costs.age(batch, 0) or 0) >= _PLAIN_AGAIN:
            return 0
        hopes = [
            rate / (1 - self._doubt(batch, size)) if place != best else 0.0
            for place, (size, rate) in enumerate(zip(drafted, rates, strict=True))
        ]
        hope = max(range(len(drafted)), key=lambda place: (hopes[place], -place))
        if hopes[hope] > rates[best]:
            expected = seconds[hope] * (2 if self._costs.age(batch, drafted[hope]) is None else 1)
            loss = max(0.0, expected - tokens[hope] / rates[best])
            if loss <= self._credit:
                self._credit -= loss
                self._explored[batch, drafted[hope]] = expected
                return hope
        return best

    def _doubt(self, batch: int, drafted: int) -> float:
        """By what share a step may turn out cheaper than thought."""
        age = self._costs.age(batch, drafted)
        if age is None or self._costs.samples(batch, drafted) < ENOUGH:
            return _UNSEEN
        return _STALEST * min(1.0, age / _STALE)


class WidthPolicy(Policy):
    """Where a step computes as many tokens for each request: its width, of which one token is sure."""

    def __init__(self, widths: Sequence[int]) -> None:
        """Raises `ValueError` unless `widths` are of 1 or more, and 1 is one of them."""
        super().__init__()
        self._widths = sorted(set(widths))
        if not self._widths or self._widths[0] != 1:
            raise ValueError(f"widths {list(widths)}: the least must be 1, a plain decode step")

    def choose(self, drafts: Sequence[Draft]) -> list[int]:
        return [self._width(drafts) - 1] * len(drafts)

    def _width(self, drafts: Sequence[Draft]) -> int:
        batch, longest = len(drafts), max((len(draft.tokens) for draft in drafts), default=0)
        if longest == 0 or not self._costs.seen():
            return 1
        widths = [width for width in self._widths if width <= longest]
        widths += [width for width in self._widths if width > longest][:1]
        tokens = self._expect(drafts, longest)
        drafted = [batch * (width - 1) for width in widths]
        return widths[self._decide(batch, drafted, [tokens[width - 1] for width in widths])]

    def _expect(self, drafts: Sequence[Draft], longest: int) -> list[float]:
        """Tokens that steps of width 1, 2, ... give in the mean; no more beyond the longest draft."""
        right = [0.0] * (longest + 1)
        for (match, length), count in Counter((draft.match, len(draft.tokens)) for draft in drafts).items():
            for place, probability in enumerate(self._hits.expect(match, length)):
                right[place] += count * probability
        tokens = [float(len(drafts))]
        for each in right:
            tokens.append(tokens[-1] + each)
        return tokens + tokens[-1:] * (self._widths[-1] - len(tokens))


class SharePolicy(Policy):
    """Where a step need not compute as many tokens for each request.

    Of all drafted tokens the likeliest are verified, so many as pay.
    """

    def __init__(self, most: int) -> None:
        """`most`: of one request."""
        super().__init__()
        self._most = most

    def choose(self, drafts: Sequence[Draft]) -> list[int]:
        shares = [0] * len(drafts)
        chances = [
            (-probability, place, owner)
            for owner, draft in enumerate(drafts)
            for place, probability in enumerate(self._hits.expect(draft.match, min(self._most, len(draft.tokens))))
        ]
        if not chances or not self._costs.seen():
            return shares
        chances.sort()
        given = list(accumulate((-chance for chance, _, _ in chances), initial=float(len(drafts))))
        drafted = [count for count in _DRAFTED if count <= len(chances)]
        place = self._decide(len(drafts), drafted, [given[count] for count in drafted])
        for _, _, owner in chances[: drafted[place]]:
            shares[owner] += 1
        return shares


_DRAFTED = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 384, 512)
"""Drafted tokens of a step: it has so many, not any number, so that what each size takes can be learnt."""
