"""The program that an answer gives: fenced blocks of code, and which of them is meant."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

_FENCE = re.compile(r"(?P<indent>[ \t]*(?:[-*+][ \t]+|\d+[.)][ \t]+)?)(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[^`\n]*)")
_PYTHON = frozenset({"py", "python", "python3", "py3", "ipython", "sage"})
_NO_PROGRAM = frozenset(
    {"bash", "sh", "shell", "zsh", "console", "shell-session", "text", "txt", "plaintext", "output", "log", "none"}
)
_MOST_CLOSERS = 8
"""Fences that are tried as the end of a block; the nearest one is right unless it stands in a string of the program."""


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    language: str
    """As the fence says, in lower case; empty without a word."""
    code: str
    """Without the indentation of the whole block."""

    @property
    def is_python(self) -> bool:
        """Whether it says to be Python, or nothing."""
        return not self.language or self.language in _PYTHON


def parsed(code: str) -> ast.Module | None:
    """`code` as Python; None when it is none, or nested too deeply for the parser."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def blocks(text: str) -> list[Block]:
    """The fenced blocks of `text` in order. One that is not closed goes to the end of the text.

    As in CommonMark, a closing fence is not indented by four or more than its block, so that one in a docstring closes
    nothing; of a block of Python, one that would leave it broken does not either if a later one leaves it whole.
    """
    lines = text.splitlines()
    found: list[Block] = []
    number = 0
    while number < len(lines):
        mark = _FENCE.fullmatch(lines[number])
        if mark is None:
            number += 1
            continue
        ends = list(_closers(lines, number + 1, mark))
        language = (mark["info"].split() or [""])[0].strip("{}.").lower()
        block, end = _block(language, lines, number + 1, ends[0] if ends else len(lines)), ends[0] if ends else None
        if block.is_python and parsed(block.code) is None:
            for later in ends[1:_MOST_CLOSERS]:
                longer = _block(language, lines, number + 1, later)
                if parsed(longer.code) is not None:
                    block, end = longer, later
                    break
        found.append(block)
        number = len(lines) if end is None else end + 1
    return found


def _closers(lines: list[str], start: int, opening: re.Match[str]) -> Iterator[int]:
    """Lines that may close the block, the nearest first; none behind one that opens another block for sure."""
    most = len(opening["indent"].expandtabs(4)) + 3
    for number in range(start, len(lines)):
        mark = _FENCE.fullmatch(lines[number])
        if mark is None or not mark["fence"].startswith(opening["fence"]) or len(mark["indent"].expandtabs(4)) > most:
            continue
        if not mark["info"].strip():
            yield number


def _block(language: str, lines: list[str], start: int, end: int) -> Block:
    return Block(language, textwrap.dedent("\n".join(lines[start:end])).strip("\n"))


def program(text: str) -> Block | None:
    """The program of `text`: its last block in a programming language, else its last one that is not said to be output
    or a command, else its last block; without blocks the whole text. None when that is empty.

    A block of Python that defines nothing shows how the one before it is used.
    """
    found = [block for block in blocks(text) if block.code.strip()]
    programs = [block for block in found if block.language not in _NO_PROGRAM]
    named = [block for block in programs if block.language]
    for choice in (named, programs, found):
        if choice:
            return next((block for block in reversed(choice) if _defines(block)), choice[-1])
    if _FENCE.search(text) and any(_FENCE.fullmatch(line) for line in text.splitlines()):
        return None
    return Block("", textwrap.dedent(text).strip("\n")) if text.strip() else None


def _defines(block: Block) -> bool:
    """Whether it is more than a use of what others define; of other languages that is not told."""
    module = parsed(block.code) if block.is_python else None
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return module is None or any(isinstance(node, kinds) for node in module.body)


def function(text: str, name: str) -> str | None:
    """The code of `text` that defines the function `name`: the last block that does more than name it, else the last
    that defines it at all, else the text itself when it is code; None without either."""
    stub: str | None = None
    for block in reversed(blocks(text)):
        if block.is_python and (definition := _definition(block.code, name)) is not None:
            if not _is_stub(definition):
                return block.code
            stub = stub or block.code
    if stub is None and _definition(text, name) is not None:
        return text
    return stub


def _definition(code: str, name: str) -> ast.FunctionDef | None:
    """The last definition of the function `name` at the top of `code`."""
    module = parsed(code)
    if module is None:
        return None
    found = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == name]
    return found[-1] if found else None


def _is_stub(definition: ast.FunctionDef) -> bool:
    """Whether the function does nothing: a docstring, `pass`, `...`, `raise NotImplementedError`."""
    return all(
        isinstance(node, ast.Pass)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        or (isinstance(node, ast.Raise) and node.exc is not None and "NotImplementedError" in ast.dump(node.exc))
        for node in definition.body
    )
