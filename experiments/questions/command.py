"""`graft questions list|show NAME`: which benchmarks are there, and some of their questions."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import get_args

from experiments.questions.catalog import CATALOG, Where
from experiments.questions.confidential import shown
from experiments.questions.question_set import load_questions, select
from experiments.questions.rows import describe
from launch import arguments as kinds
from shell_router.config import ConfigError


def main(argv: Sequence[str]) -> int:
    """Print what the command line asks for. Raises `ConfigError` when it is not there."""
    asked = _parser().parse_args(argv)
    if asked.command == "list":
        _list()
    else:
        _show(asked)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = kinds.Parser(prog="graft questions", description="See which benchmarks are there, and some questions.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listed = "what is here, and what would bring the rest"
    commands.add_parser("list", help=listed, description=f"Show {listed}.")
    shown_of_them = "prompts and right answers; of confidential benchmarks only the ids"
    show = commands.add_parser("show", help=shown_of_them, description=f"Show {shown_of_them}.")
    show.add_argument("name", choices=CATALOG, metavar="NAME", help=", ".join(CATALOG))
    show.add_argument("--start", type=kinds.index, default=0, help="first question (0)")
    show.add_argument("--count", type=kinds.count, default=2, help="how many (2)")
    show.add_argument("--source", choices=get_args(Where), default="auto", help="where it is read (auto)")
    show.add_argument("--language", default="en", help="of those that have several (en)")
    return parser


def _list() -> None:
    for name, found in CATALOG.items():
        try:
            held = load_questions(name, where="offline")
        except ConfigError:
            ways = "; or ".join(describe(source) for source in (*found.offline, found.hub) if source is not None)
            print(f"{name}: none of {found.size:,} questions here; {ways}")
        else:
            print(f"{name}: {held.origin.part(held.origin.held)}")


def _show(asked: argparse.Namespace) -> None:
    found = CATALOG[asked.name]
    held = load_questions(asked.name, where=asked.source, language=asked.language)
    questions = select(held.questions, asked.name, start=asked.start, count=asked.count)
    print(f"{held.origin.part(len(questions))}\n{found.notes}\nAnswers may take {held.max_tokens:,} tokens.")
    for question in map(shown, questions):
        print(f"\n== {question.id}\n{question.prompt}\n-- answer: {question.answer or '(only the scorer can tell)'}")
