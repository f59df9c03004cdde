"""See which benchmarks are there, and some of their items: `graft questions list|show NAME`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from experiments.questions.catalog import entry, names
from experiments.questions.item import BenchmarkError, redacted
from experiments.questions.load import load
from experiments.questions.rows import describe


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="graft questions", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="what is here, and what would bring the rest")
    show = commands.add_parser("show", help="prompts and answers; of confidential benchmarks only the ids")
    show.add_argument("name", choices=names())
    show.add_argument("--count", type=int, default=2)
    show.add_argument("--start", type=int, default=0)
    show.add_argument("--source", choices=("auto", "hub", "offline"), default="auto")
    show.add_argument("--language", default="en")
    asked = parser.parse_args(arguments)
    if asked.command == "list":
        _list()
        return 0
    try:
        _show(asked)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _list() -> None:
    for name in names():
        found = entry(name)
        try:
            benchmark = load(name, source="offline")
        except BenchmarkError:
            ways = "; or ".join(describe(source) for source in (*found.offline, found.hub))
            print(f"{name}, {found.split}: {found.size} items, none here: {ways}")
        else:
            print(benchmark.label)


def _show(asked: argparse.Namespace) -> None:
    benchmark = load(asked.name, source=asked.source, count=asked.count, start=asked.start, language=asked.language)
    print(benchmark.label)
    for item in benchmark.items:
        shown = redacted(item)
        print(f"\n== {shown.id}\n{shown.prompt}\n-- answer: {shown.answer or '(only the scorer can tell)'}")


if __name__ == "__main__":
    sys.exit(main())
