"""What answers vote for, and which votes are the same; in the assessing process."""

from __future__ import annotations

import ast
import faulthandler
import time
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from shell_router.core.early_exit import BallotKind
from shell_router.reading.formula import formula
from shell_router.reading.letter import chosen_letter
from shell_router.reading.program import parsed, program

_MATH_S = 2
"""For parsing one answer or comparing two results (whole seconds: math-verify sets an alarm). What takes longer names
no answer, or is another one."""
_STUCK_S = 10.0
"""A computation that no alarm can interrupt (one step of big-integer arithmetic) ends the process after this time."""

_LAST_MARKS = " .,;:!?…。，；：！？"


class BallotError(Exception):
    """Ballots cannot be sorted; the message says why."""


def sort_ballots(answers: Sequence[str], kind: BallotKind, seconds: float) -> list[int | None]:
    """For each answer the number of its equivalence class, in order of appearance; None when it has no vote.

    Raises `BallotError`, also when it has not come to an end after `seconds`.
    """
    if kind == "math":
        return _sort_results(answers, time.monotonic() + seconds)
    key = {"choice": chosen_letter, "code": _program, "text": _plain_text}[kind]
    numbers: dict[Hashable, int] = {}
    return [None if (vote := key(answer)) is None else numbers.setdefault(vote, len(numbers)) for answer in answers]


def _sort_results(answers: Sequence[str], deadline: float) -> list[int | None]:
    """Classes of mathematical results: an answer is compared with the first of each class."""
    try:
        import math_verify
    except ImportError as error:
        raise BallotError("math-verify is not installed") from error

    def same(a: Any, b: Any) -> bool:
        # `verify` is not symmetric, the order in which answers end should not matter.
        return any(math_verify.verify(*pair, timeout_seconds=_MATH_S) for pair in ((a, b), (b, a)))

    firsts: list[Any] = []
    numbers: list[int | None] = []
    for answer in answers:
        with _bounded(deadline):
            result = math_verify.parse(formula(answer), parsing_timeout=_MATH_S)
        number = None
        if result:
            for each, first in enumerate(firsts):
                with _bounded(deadline):
                    if same(first, result):
                        number = each
                        break
            else:
                number = len(firsts)
                firsts.append(result)
        numbers.append(number)
    return numbers


@contextmanager
def _bounded(deadline: float) -> Iterator[None]:
    """One step of the work; raises `BallotError` when it is too late for it."""
    if time.monotonic() > deadline:
        raise BallotError("the results take too long to compare")
    # A thread of C: it needs no interpreter lock, which such a computation would hold.
    faulthandler.dump_traceback_later(_STUCK_S, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _program(answer: str) -> Hashable | None:
    """The program as a syntax tree if it is Python, else without white space."""
    block = program(answer)
    if block is None:
        return None
    if block.is_python and (tree := parsed(block.code)) is not None:
        return ast.dump(tree) if tree.body else None
    return tuple(block.code.split()) or None


def _plain_text(answer: str) -> str | None:
    """The text without regard to case, white space and the punctuation at its end."""
    return " ".join(answer.casefold().split()).rstrip(_LAST_MARKS) or None
