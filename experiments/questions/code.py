"""HumanEval+: run an answer's code on the task's inputs and compare with what the reference gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from experiments.questions.question import Question
from experiments.questions.sandbox import Execution, Limits, Result, Task, execute
from experiments.questions.scores import Score
from shell_router.errors import GraftError
from shell_router.reading.program import function

_RELATIVE = 1e-7
_FLOAT_ATOL = 1e-6


def reference_outputs(question: Question) -> tuple[Any, ...]:
    """What the task's own solution gives for all inputs, the base ones first; empty where the task brings its tests."""
    meta = question.meta
    if "test" in meta:
        return ()
    preamble = meta["question"]
    reference = _task(question, preamble, f"{preamble}\n{meta['canonical_solution']}")
    execution = execute(reference, Limits(wall_s=120.0, cpu_s=100))
    if not execution.done or any(result.error is not None for result in execution.results):
        raise GraftError(f"the reference solution of {question.id} does not run")
    return tuple(result.output for result in execution.results)


def score_code(question: Question, text: str, expected: Sequence[Any], limits: Limits) -> Score:
    """Whether the function gives the reference's outputs, base and plus, without an error and within the limits."""
    entry_point = question.meta["entry_point"]
    code = function(text, entry_point)
    if code is None:
        return Score(correct=False, extracted=None, detail=f"no code that defines {entry_point}")
    execution = execute(_task(question, question.meta["question"], code), limits)
    wrong = _first_wrong(question, execution, expected)
    return Score(correct=wrong is None, extracted=code, detail=wrong or "all tests passed")


def _task(question: Question, preamble: str, solution: str) -> Task:
    meta = question.meta
    if "test" in meta:
        return Task(preamble=preamble, solution=solution, entry_point=meta["entry_point"], check=meta["test"])
    inputs = (*meta["base_input"], *meta["plus_input"])
    return Task(preamble=preamble, solution=solution, entry_point=meta["entry_point"], inputs=inputs)


def _first_wrong(question: Question, execution: Execution, expected: Sequence[Any]) -> str | None:
    """What is wrong first, in a few words; None when nothing is."""
    if "test" in question.meta:
        tests = 1
        matches = [result.output is True for result in execution.results]
    else:
        tests = len(expected)
        inputs = (*question.meta["base_input"], *question.meta["plus_input"])
        triples = zip(inputs, execution.results, expected, strict=False)
        matches = [_right(question, *triple) for triple in triples]
    for number, (match, result) in enumerate(zip(matches, execution.results, strict=False)):
        if result.error is not None:
            return f"{result.error} in {_place(question, number)}"
        if not match:
            return f"wrong in {_place(question, number)}"
    if execution.timed_out:
        return f"time limit in {_place(question, len(execution.results))}"
    if not execution.done or len(execution.results) != tests:
        return f"ended in {_place(question, len(execution.results))}"
    return None


def _place(question: Question, number: int) -> str:
    if "test" in question.meta:
        return "the tests"
    base = len(question.meta["base_input"])
    return f"base test {number}" if number < base else f"plus test {number - base}"


def _right(question: Question, arguments: Sequence[Any], result: Result, expected: Any) -> bool:
    """EvalPlus's comparison: equal, or close where floats are compared; any zero of a polynomial will do."""
    given = result.output
    atol = float(question.meta["atol"])
    if question.meta["entry_point"] == "find_zero":
        return isinstance(given, (int, float)) and abs(_polynomial(arguments[0], float(given))) <= atol
    if given == expected:
        return True
    if not atol and _is_floats(expected):
        atol = _FLOAT_ATOL
    return bool(atol) and _close(given, expected, atol)


def _polynomial(coefficients: Sequence[float], x: float) -> float:
    try:
        return sum(coefficient * math.pow(x, power) for power, coefficient in enumerate(coefficients))
    except (OverflowError, ValueError):
        return math.inf


def _is_floats(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and all(isinstance(each, float) for each in value)
    return isinstance(value, float)


def _close(given: Any, expected: Any, atol: float) -> bool:
    if isinstance(expected, (list, tuple)):
        return (
            type(given) is type(expected)
            and len(given) == len(expected)
            and all(_close(*pair, atol) for pair in zip(given, expected, strict=True))
        )
    if not isinstance(given, (int, float)) or not isinstance(expected, (int, float)):
        return bool(given == expected)
    return abs(given - expected) <= atol + _RELATIVE * abs(expected)
