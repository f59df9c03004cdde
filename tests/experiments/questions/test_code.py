"""Code of answers runs apart: what is right and wrong, and what must not get out or pass."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from experiments.questions import Question, ScorerPool
from experiments.questions.sandbox import Limits, Task, execute

_QUESTION = 'from typing import List\n\n\ndef double(xs: List[int]) -> List[int]:\n    """Twice each."""\n'
_RIGHT = "def double(xs: List[int]) -> List[int]:\n    return [2 * x for x in xs]"
_LIMITS = Limits(wall_s=4.0, cpu_s=1, memory_bytes=256 << 20, file_bytes=1 << 16)
_DOUBLE = Question(
    id="humaneval_plus-x",
    prompt=_QUESTION,
    answer="",
    meta={
        "question": _QUESTION,
        "entry_point": "double",
        "canonical_solution": "    return [x + x for x in xs]\n",
        "base_input": [[[1, 2]], [[]]],
        "plus_input": [[[0.1, -3]]],
        "atol": 0,
    },
)


def verdict(code: str, question: Question = _DOUBLE) -> tuple[bool, str]:
    with ScorerPool("code", workers=1, code_limits=_LIMITS) as pool:
        scored = pool.score(question, f"Here it is:\n```python\n{code}\n```\nThat is all.")
    return scored.correct, scored.detail


@pytest.mark.parametrize(
    ("code", "detail"),
    [
        (_RIGHT, "all tests passed"),
        # In place: each call has inputs of its own.
        ("def double(xs):\n    xs[:] = [2.0 * x for x in xs]\n    return xs", "all tests passed"),
        ("def double(xs):\n    return [x * x for x in xs]", "wrong in base test 0"),
        ("def double(xs):\n    return tuple(2 * x for x in xs)", "wrong in base test 0"),
        ("def double(xs):\n    return [int(2 * x) for x in xs]", "wrong in plus test 0"),
        ("def double(xs):\n    return xs + 1", "TypeError in base test 0"),
        (
            "def double(xs):\n    class Same:\n        __eq__ = lambda *_: True\n    return Same()",
            "wrong in base test 0",
        ),
        (
            f"from dataclasses import dataclass\n\n\n@dataclass\nclass Pair:\n    a: int\n\n\n{_RIGHT}",
            "all tests passed",
        ),
        ("def double(xs:\n", "no code that defines double"),
        ("def triple(xs):\n    return xs", "no code that defines double"),
    ],
)
def test_right_and_wrong(code: str, detail: str) -> None:
    assert verdict(code) == (detail == "all tests passed", detail)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ("import sys; sys.exit(0)", "SystemExit in base test 0"),
        ("import os; os._exit(0)", "ended in base test 0"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt in base test 0"),
        ("while True: pass", "ended in base test 0"),
        ("try:\n        while True: pass\n    finally:\n        return xs", "ended in base test 0"),
        ("import time; time.sleep(60)", "time limit in base test 0"),
        ("xs = [0]\n    while True: xs = xs + xs", "MemoryError in base test 0"),
        ("return double(xs)", "RecursionError in base test 0"),
        ("import os\n    while True: os.fork()", "PermissionError in base test 0"),
        ("import subprocess; subprocess.run(['true'])", "PermissionError in base test 0"),
        ("import socket; socket.create_connection(('127.0.0.1', 9))", "PermissionError in base test 0"),
        ("import os; os.kill(os.getppid(), 9)", "PermissionError in base test 0"),
        ("open('big', 'wb').write(bytes(1 << 20))", "OSError in base test 0"),
        ("import ctypes; ctypes.CDLL(None)", "PermissionError in base test 0"),
        ("import resource; resource.setrlimit(resource.RLIMIT_CPU, (9, 9))", "PermissionError in base test 0"),
    ],
)
def test_what_is_stopped(body: str, detail: str) -> None:
    begin = time.monotonic()
    assert verdict(f"def double(xs):\n    {body}") == (False, detail)
    assert time.monotonic() - begin < 8


def test_an_exit_before_the_tests_is_no_pass() -> None:
    for line in ("import sys; sys.exit(0)", "import os; os._exit(0)", "raise SystemExit"):
        correct, detail = verdict(f"{_RIGHT}\n{line}")
        assert not correct
        assert detail.endswith("base test 0")
    assert verdict(f"{_RIGHT}\nimport atexit, os; atexit.register(os._exit, 1)") == (True, "all tests passed")


def test_endless_output_and_forged_lines_do_not_pass() -> None:
    forged = (
        "import os\n"
        "for number in range(3, 32):\n"
        "    try:\n"
        "        os.write(number, b'{\"output\": true}\\n' * 3 + b'{\"done\": true}\\n')\n"
        "    except OSError:\n"
        "        pass\n"
    )
    assert not verdict(f"{forged}{_RIGHT}")[0]
    assert not verdict("def double(xs):\n    print('x' * (1 << 24))\n    return 'x' * (1 << 24)")[0]


def test_files_stay_in_a_directory_that_is_gone_afterwards(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    source = (
        "import os\n"
        "def f(path):\n"
        "    open('inside', 'w').write('x')\n"
        "    try:\n"
        "        open(path, 'w')\n"
        "    except PermissionError:\n"
        "        return os.getcwd()\n"
    )
    task = Task(preamble="", solution=source, entry_point="f", inputs=((str(outside),),))
    execution = execute(task, _LIMITS)
    assert execution.done
    directory = execution.results[0].output
    assert isinstance(directory, str)
    assert not os.path.exists(directory)
    assert not outside.exists()


def test_sockets_and_processes_are_refused_whatever_the_system_allows() -> None:
    source = "def f(kind):\n    import os, socket\n    socket.socket() if kind == 'socket' else os.fork()\n"
    execution = execute(Task(preamble="", solution=source, entry_point="f", inputs=(("socket",), ("fork",))), _LIMITS)
    assert [result.error for result in execution.results] == ["PermissionError", "PermissionError"]


def test_values_come_back_as_they_were() -> None:
    values = (
        "[None, True, 1, -(10 ** 5000), 0.1, float('inf'), 'é', (1, [2]), {1: {2, 3}}, 1j, 'x' * 9999,"
        " list(range(99999)), object()]"
    )
    source = f"def f(number):\n    return {values}[number]"
    inputs = tuple((number,) for number in range(13))
    task = Task(preamble="", solution=source, entry_point="f", inputs=inputs)
    first, second = (execute(task, Limits()).results for _ in range(2))
    plain = [result.output for result in first[:10]]
    assert plain == [None, True, 1, -(10**5000), 0.1, float("inf"), "é", (1, [2]), {1: {2, 3}}, 1j]
    assert [a.output == b.output for a, b in zip(first, second, strict=True)] == [True] * 12 + [False]


def test_tests_that_a_task_brings_as_text() -> None:
    check = "def check(candidate):\n    assert candidate([1]) == [2]\n"
    question = Question(
        id="y",
        prompt="",
        answer="",
        meta={"question": _QUESTION, "entry_point": "double", "test": check},
    )
    assert verdict(_RIGHT, question) == (True, "all tests passed")
    assert verdict("def double(xs):\n    return xs", question) == (False, "AssertionError in the tests")
    assert verdict("def double(xs):\n    import sys; sys.exit(0)", question) == (False, "SystemExit in the tests")
    assert verdict("def double(xs):\n    import os; os._exit(0)", question) == (False, "ended in the tests")
