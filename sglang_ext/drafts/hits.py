"""How likely the next token of a draft is right, by how much of the text it has already agreed with.

A draft of match m has agreed with m tokens when its first token is judged, with m + j when its j-th is: a match that
holds grows. So one row of odds, by agreement, serves every position of every draft, and a plain decode step teaches
what a verified one does.
"""

from __future__ import annotations

from sglang_ext.drafts.index import MOST_MATCH

_PRIOR_WEIGHT = 4.0
_PRIOR = (0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85)  # a little less than counted on answers of trees of agents
_LONG, _SHORT = 128.0, 12.0  # judgements that a row remembers, and that tell whether the text has changed
_CHANGED = 3.0  # standard deviations


class Hits:
    """A row for each agreement; those in `MOST_MATCH` tokens and more are one."""

    def __init__(self) -> None:
        self._rows = [_Row(prior) for prior in _PRIOR]
        assert len(self._rows) == MOST_MATCH
        self._right, self._wrong = [0] * MOST_MATCH, [0] * MOST_MATCH
        """What has been learned since the rows were last used."""

    def learn(self, match: int, compared: int, right: int) -> None:
        """Of the first `compared` tokens of a draft, `right` were right before the first wrong one."""
        for agreement in range(match, match + right):
            self._right[_row(agreement)] += 1
        if right < compared:
            self._wrong[_row(match + right)] += 1

    def expect(self, match: int, length: int) -> list[float]:
        """The probabilities that at least the first 1, 2, ... `length` tokens of a draft are right."""
        for number, row in enumerate(self._rows):
            if self._right[number] or self._wrong[number]:
                row.add(self._right[number], self._wrong[number])
                self._right[number] = self._wrong[number] = 0
        probability, all_right = 1.0, []
        for agreement in range(match, match + length):
            probability *= self._rows[_row(agreement)].odds
            all_right.append(probability)
        return all_right


class _Row:
    """Counts that fade. When the last few judgements are not what the many let expect, the many are forgotten."""

    def __init__(self, prior: float) -> None:
        self.odds = prior
        self._judged, self._right = _PRIOR_WEIGHT, _PRIOR_WEIGHT * prior
        self._lately, self._lately_right = 0.0, 0.0

    def add(self, right: int, wrong: int) -> None:
        judged = right + wrong
        keep = (1 - 1 / _LONG) ** judged
        self._judged, self._right = self._judged * keep + judged, self._right * keep + right
        keep = (1 - 1 / _SHORT) ** judged
        self._lately, self._lately_right = self._lately * keep + judged, self._lately_right * keep + right
        self.odds, now = self._right / self._judged, self._lately_right / self._lately
        if self._lately >= _SHORT / 2:
            variance = max(self.odds * (1 - self.odds), 1 / self._judged) / self._lately
            if (now - self.odds) ** 2 > _CHANGED**2 * variance:
                self.odds, self._judged, self._right = now, _PRIOR_WEIGHT, _PRIOR_WEIGHT * now


def _row(agreement: int) -> int:
    return min(agreement, MOST_MATCH) - 1
