"""`python -m sglang_ext.compat.parsers`: what the parsers of SGLang and sglang-router make of flags.

A process of its own, since to import SGLang takes seconds. Nothing is started, and no GPU is needed.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from typing import Any, NoReturn

import msgspec

from sglang_ext.flags import Flags, Reading


class _Refused(Exception):
    """The parser does not take the flags."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _Refused(message)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise _Refused(message or "it would end at once")

    def print_help(self, file: Any = None) -> None:
        """Nothing: who asks reads the answer."""


def _sglang() -> argparse.ArgumentParser:
    from sglang.srt.server_args import ServerArgs

    parser = _Parser(argument_default=argparse.SUPPRESS)
    ServerArgs.add_cli_args(parser)
    return parser


def _sglang_router() -> argparse.ArgumentParser:
    from sglang_router.router_args import RouterArgs

    parser = _Parser(argument_default=argparse.SUPPRESS)
    RouterArgs.add_cli_args(parser, use_router_prefix=False)
    return parser


_MAKERS = {"sglang": _sglang, "sglang_router": _sglang_router}


def read(parser: argparse.ArgumentParser, flags: tuple[str, ...]) -> Reading:
    """What `parser` makes of `flags` alone."""
    for action in parser._actions:
        # Those that Graft gives are not here, and only what is said counts.
        action.required, action.default = False, argparse.SUPPRESS
    try:
        found, rest = parser.parse_known_args(list(flags))
    except _Refused as error:
        return Reading(error=str(error))
    if rest:
        return Reading(error=_unknown(parser, rest))
    return Reading(fields=tuple(sorted(vars(found))))


def _unknown(parser: argparse.ArgumentParser, rest: list[str]) -> str:
    told = f"unrecognized arguments: {' '.join(rest)}"
    known = [option for action in parser._actions for option in action.option_strings]
    close = difflib.get_close_matches(rest[0].partition("=")[0], known, n=1)
    return f"{told}; did you mean {close[0]}?" if close else told


def main() -> None:
    asked = msgspec.json.decode(sys.stdin.buffer.read(), type=tuple[Flags, ...])
    parsers = {program: _MAKERS[program]() for program in {each.program for each in asked}}
    readings = [read(parsers[each.program], each.flags) for each in asked]
    print(f"\n{msgspec.json.encode(readings).decode()}", flush=True)


if __name__ == "__main__":
    main()
