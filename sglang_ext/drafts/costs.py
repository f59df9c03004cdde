"""How long a step takes, by how many requests it has and how many drafted tokens it verifies besides.

Step times are noisy and they drift. Noise goes upwards: something else may make a step slower, nothing makes it faster
than it is. So a cell, one size of a step, keeps its last samples, and its estimate is their lower quartile, drawn to
what steps of all sizes let expect: seconds = a + b * requests + c * drafted tokens. And a step is never thought cheaper
than one of fewer drafted tokens that is well known and has been seen since: when all steps become slower, not each size
has to be tried to find out.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np

_KEPT = 16  # samples of one cell
_FRESH = 512  # steps; a cell's samples older than that before its last one do not count if there are newer ones
ENOUGH = 3
"""So many fresh samples make an estimate that a single slow step does not bend."""
_CHANGED, _OTHER = 5, 1.25  # so many steps in a row, all slower by that or all faster than usual, are a change
_DRAWN = 2.0  # samples that the line counts for
_STALE = 4096  # steps, in which what is not seen again loses its weight
_LINE_KEPT = 8  # steps for which a line is used
_PRIOR_WEIGHT = 0.03
_PRIOR_DRAFTED, _PRIOR_RATIO = 8, 1.5  # a guess: with so many for each request a step takes so many times a plain one


class StepCosts:
    """What steps of one worker take, in seconds. A step that verifies no drafted token is a plain one."""

    def __init__(self) -> None:
        self._cells: dict[int, dict[int, _Cell]] = {}
        """By bucket of the batch, and bucket of the drafted tokens."""
        self._steps = 0
        self._line: tuple[float, float, float] = (0.0, 0.0, 0.0)
        self._line_from = -_LINE_KEPT
        self._line_cells = 0

    def observe(self, batch: int, drafted: int, seconds: float) -> None:
        """A step of `batch` requests with `drafted` tokens, of all of them together, took `seconds`."""
        self._steps += 1
        cells = self._cells.setdefault(_bucket(batch), {})
        cells.setdefault(_bucket(drafted), _Cell()).add(batch, drafted, seconds, self._steps)

    def seen(self) -> bool:
        return self._steps > 0

    def samples(self, batch: int, drafted: int) -> int:
        """How many fresh ones there are of this size."""
        cell = self._cells.get(_bucket(batch), {}).get(_bucket(drafted))
        return cell.fresh if cell else 0

    def age(self, batch: int, drafted: int) -> int | None:
        """Steps since this size was seen; None if it has not been."""
        cell = self._cells.get(_bucket(batch), {}).get(_bucket(drafted))
        return None if cell is None else self._steps - cell.last

    def seconds(self, batch: int, drafted: Sequence[int]) -> list[float]:
        """The estimates for these numbers of drafted tokens, which ascend. There must have been a step."""
        a, b, c = self._fit()
        cells = self._cells.get(_bucket(batch), {})
        estimates: list[float] = []
        sure: list[tuple[float, int]] = []
        for tokens in drafted:
            cell, line = cells.get(_bucket(tokens)), a + b * batch + c * tokens
            if cell is None:
                estimates.append(max([line, *estimates[:1]]))
                continue
            there = a + b * cell.batch + c * cell.drafted
            measured = cell.usual * (line / there if there else 1.0)
            estimate = (cell.fresh * measured + _DRAWN * line) / (cell.fresh + _DRAWN)
            estimates.append(max([estimate, *(floor for floor, last in sure if last >= cell.last)]))
            if cell.fresh >= ENOUGH:
                sure.append((estimates[-1], cell.last))
        return estimates

    def _fit(self) -> tuple[float, float, float]:
        """Least squares of relative errors with no negative slope; the guess counts where there is nothing else."""
        cells = sum(map(len, self._cells.values()))
        if self._steps - self._line_from < _LINE_KEPT and cells == self._line_cells:
            return self._line
        self._line_from, self._line_cells = self._steps, cells
        rows, weights = [], []
        for row in self._cells.values():
            for cell in row.values():
                weight = min(1.0, cell.fresh / ENOUGH) * max(0.02, 1 - (self._steps - cell.last) / _STALE)
                rows.append((1.0, cell.batch, cell.drafted, cell.usual))
                weights.append(weight)
                if cell.drafted == 0:
                    rows.append((1.0, cell.batch, cell.batch * _PRIOR_DRAFTED, cell.usual * _PRIOR_RATIO))
                    weights.append(_PRIOR_WEIGHT)
        table = np.array(rows)
        scale = np.sqrt(np.array(weights)) / table[:, 3]
        left, right = table[:, :3] * scale[:, None], table[:, 3] * scale
        columns = [0, 1, 2]
        while True:
            part = left[:, columns]
            ridge = np.eye(len(columns)) * 1e-9 * float((part**2).sum())
            solved = np.linalg.solve(part.T @ part + ridge, part.T @ right)
            if (solved >= 0).all():
                break
            columns = [column for column, value in zip(columns, solved, strict=True) if value >= 0]
        line = dict(zip(columns, solved.tolist(), strict=True))
        self._line = line.get(0, 0.0), line.get(1, 0.0), line.get(2, 0.0)
        return self._line


class _Cell:
    """`usual` is its estimate: of `fresh` samples the lower quartile, but not much more than the last; of very few the
    least, or what was usual before."""

    def __init__(self) -> None:
        self._samples: deque[tuple[int, float]] = deque(maxlen=_KEPT)
        self.batch = self.drafted = 0.0
        """Means of what falls into the cell."""
        self.last = 0
        """The step of the last sample."""
        self.fresh = 0
        self.usual = 0.0

    def add(self, batch: int, drafted: int, seconds: float, step: int) -> None:
        weight = 1 / min(len(self._samples) + 1, _KEPT)
        self.batch += (batch - self.batch) * weight
        self.drafted += (drafted - self.drafted) * weight
        self.last = step
        self._samples.append((step, seconds))
        self._estimate()
        if len(self._samples) > _CHANGED:
            last = [each for _, each in self._samples][-_CHANGED:]
            if min(last) > self.usual * _OTHER or max(last) < self.usual / _OTHER:
                self._samples = deque([*self._samples][-_CHANGED:], maxlen=_KEPT)
                self._estimate()

    def _estimate(self) -> None:
        fresh = sorted(seconds for step, seconds in self._samples if self.last - step <= _FRESH)
        self.fresh = len(fresh)
        if len(fresh) >= ENOUGH:
            self.usual = min(fresh[len(fresh) // 4], self._samples[-1][1] * _OTHER)
            return
        old = sorted(seconds for step, seconds in self._samples if self.last - step > _FRESH)
        self.usual = min([fresh[0], *old[len(old) // 4 :][:1]])


def _bucket(number: int) -> int:
    """Numbers that count as one: each alone up to 8, then four for each doubling."""
    return number if number <= 8 else 8 + math.ceil(4 * math.log2(number / 8))
