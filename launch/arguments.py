"""What the commands share of their command lines: a parser that says in one line what is wrong, and types of values."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar
from urllib.parse import urlsplit

N = TypeVar("N", int, float)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line and where to read on: the usage of some commands fills a screen."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (`{self.prog} --help` tells more)\n")


def url(text: str) -> str:
    """Base URL of a server, without `/v1` and a slash at its end."""
    try:
        parts = urlsplit(text)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound or not text.isprintable() or " " in text or parts.query or parts.fragment:
        raise argparse.ArgumentTypeError(f"{text!r} is no base URL such as http://127.0.0.1:8000")
    return text.rstrip("/").removesuffix("/v1").rstrip("/")


def seconds(text: str) -> float:
    """A time above 0."""
    return _above_zero(text, "number of seconds")


def rate(text: str) -> float:
    """A number above 0."""
    return _above_zero(text, "number")


def share(text: str) -> float:
    """A number above 0, and not above 1."""
    number = _number(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share above 0, of 1 at most")
    return number


def count(text: str) -> int:
    """A whole number, 1 at least."""
    return _whole(text, 1)


def index(text: str) -> int:
    """A whole number, 0 at least."""
    return _whole(text, 0)


def several(kind: Callable[[str], N], what: str) -> Callable[[str], list[N]]:
    """Values of one kind, separated by commas, each once; `what` they are, for who is told."""

    def parse(text: str) -> list[N]:
        values = [kind(part) for part in text.split(",")]
        if len(set(values)) < len(values):
            raise argparse.ArgumentTypeError(f"{what}, separated by commas, each once")
        return values

    return parse


def words(text: str) -> str:
    """A text that says something."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty")
    return text


def _above_zero(text: str, kind: str) -> float:
    number = _number(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no {kind} above 0")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _whole(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
    return number


def check_out(parser: argparse.ArgumentParser, out: Path | None) -> None:
    """End the process, as argparse does, where `--out` names no file that could be written."""
    if out is None:
        return
    if not out.parent.is_dir():
        parser.error(f"--out: there is no folder {out.parent}")
    if out.is_dir():
        parser.error(f"--out: {out} is a folder")
