from __future__ import annotations

import pytest

from shell_router.reading.program import blocks, function, program

_RIGHT = "def double(xs):\n    return [2 * x for x in xs]"


def test_the_last_block_that_defines_the_function_is_taken() -> None:
    text = f"```python\ndef double(xs):\n    return 0\n```\n```py\n{_RIGHT}\n```\nUse it:\n```\nprint(double([1]))\n```"
    assert function(text, "double") == _RIGHT
    assert function(_RIGHT, "double") == _RIGHT
    assert function("I would rather not.", "double") is None
    assert function("", "double") is None


@pytest.mark.parametrize(
    "stub", ["pass", "...", '"""Doubles."""', "raise NotImplementedError", 'raise NotImplementedError("x")']
)
def test_a_stub_does_not_win_over_the_solution(stub: str) -> None:
    text = f"```python\n{_RIGHT}\n```\nas asked:\n```python\ndef double(xs):\n    {stub}\n```"
    assert function(text, "double") == _RIGHT
    alone = f"def double(xs):\n    {stub}"
    assert function(f"```python\n{alone}\n```", "double") == alone


@pytest.mark.parametrize("language", ["bash", "java", "console", "text"])
@pytest.mark.parametrize("after", [False, True])
def test_other_blocks_do_not_hide_the_program(language: str, after: bool) -> None:
    other = f"```{language}\npip install x\n```\n"
    block = f"```python\n{_RIGHT}\n```\n"
    text = block + other if after else other + block
    assert function(text, "double") == _RIGHT
    if language != "java":
        found = program(text)
        assert found is not None
        assert found.code == _RIGHT


def test_output_is_no_program() -> None:
    found = program(f"```python\n{_RIGHT}\n```\nOutput:\n```\n[2]\n```")
    assert found is not None
    assert found.code == _RIGHT


def test_line_ends_lists_and_fences_in_strings() -> None:
    assert function(f"```python\n{_RIGHT}\n```".replace("\n", "\r\n"), "double") == _RIGHT
    indented = "\n".join(f"   {line}" for line in f"```python\n{_RIGHT}\n```".splitlines())
    assert function(f"1. So:\n{indented}", "double") == _RIGHT
    for indent in ("    ", ""):
        documented = f"def double(xs):\n    '''Twice.\n{indent}```\n{indent}>>> 1\n{indent}```\n    '''\n    return xs"
        assert function(f"```python\n{documented}\n```\nDone.", "double") == documented


def test_no_program() -> None:
    assert program("") is None
    assert program("```python\n```") is None
    assert [block.language for block in blocks("```{.python}\nx\n```\n~~~ C++ x\ny\n~~~")] == ["python", "c++"]
