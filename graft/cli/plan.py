"""`graft plan` and `graft cards`: where everything would run, without starting anything."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import msgspec

from launch import arguments as kinds
from launch import shipped
from launch.config import ClusterConfig, load_cluster
from launch.gpu import mps
from launch.gpu.allocation import uses_gpus
from launch.gpu.cards import CardTable, load_cards, read_cards
from launch.gpu.place import Placement
from launch.gpu.program.document import moved
from launch.gpu.program.optimum import Optimum, Wish
from launch.gpu.program.problem import Objective
from launch.gpu.program.shown import optimum_document, optimum_text, room_remarks
from launch.gpu.table import cards_table, plan_table
from launch.plan import commands_of, optimise_on, place_on, write_scripts


def main(argv: list[str]) -> int:
    """Raises `ConfigError`, `PlanError`, `CardsError`."""
    parser = kinds.Parser(prog="graft plan", description="Show which worker would run on which GPU; start nothing.")
    parser.add_argument("cfg", type=shipped.cluster, help="cluster JSON, or the name of a shipped one: homo_2gpu")
    parser.add_argument(
        "--cards", type=Path, metavar="FILE", help="plan for the GPUs of this table (`graft cards --json`)"
    )
    parser.add_argument("--host", metavar="NAME", help="which of the cluster's `hosts` is meant")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print the plan as JSON")
    shown.add_argument("--commands", action="store_true", help="print the commands, quoted for a shell")
    shown.add_argument(
        "--scripts", type=Path, metavar="DIR", help="write a script for each process there, to start them by hand"
    )
    _add_optimising(parser)
    arguments = parser.parse_args(argv)
    _check_optimising(parser, arguments)
    config = load_cluster(arguments.cfg)
    config.check_host(arguments.host)
    table = CardTable()
    if arguments.cards is not None:
        table = load_cards(arguments.cards)
    elif uses_gpus(config, arguments.host):
        table = read_cards()
    optimum: Optimum | None = None
    if arguments.optimise:
        optimum = optimise_on(config, arguments.host, table, _wish(arguments))
        config, document = optimum.config(config, json.loads(arguments.cfg.read_bytes()))
    placements = place_on(config, arguments.host, table)
    if optimum is not None:
        for line in room_remarks(optimum, placements.values()):
            print(f"graft: {line}", file=sys.stderr)
    if arguments.out is not None:
        written = moved(document, arguments.cfg.parent, arguments.out.parent)
        arguments.out.write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n")
    if arguments.commands:
        print(commands_of(config, arguments.host, Path("RUN_DIR"), placements))
    elif arguments.scripts is not None:
        print("\n".join(map(str, write_scripts(config, arguments.host, arguments.scripts, placements))))
    elif arguments.json:
        print(_document(config, arguments.host, table, placements, optimum))
    elif placements:
        print(plan_table(placements.values(), table))
        if optimum is not None:
            print(f"\n{optimum_text(optimum)}")
        for line in mps.advice(placements.values(), os.environ):
            print(f"graft: {line}", file=sys.stderr)
    else:
        print(f"cluster {config.part_name(arguments.host)} runs nothing on GPUs")
    return 0


def cards(argv: list[str]) -> int:
    """Raises `CardsError`."""
    parser = kinds.Parser(prog="graft cards", description="Show the GPUs of this machine and their links.")
    parser.add_argument("--json", action="store_true", help="as a table for `graft plan --cards`")
    arguments = parser.parse_args(argv)
    table = read_cards()
    print(msgspec.json.format(msgspec.json.encode(table)).decode() if arguments.json else cards_table(table))
    return 0


def _add_optimising(parser: kinds.Parser) -> None:
    group = parser.add_argument_group("workers for a load (docs/placement.md)")
    group.add_argument(
        "--optimise",
        action="store_true",
        help="choose how many workers of each model there are, and where, for the load of the cluster's trees",
    )
    group.add_argument(
        "--objective",
        choices=get_args(Objective),
        help="makespan: seconds a run takes of the most loaded card; cost: that times the cards in use "
        "(default: makespan)",
    )
    group.add_argument(
        "--tree",
        action="append",
        metavar="NAME",
        help="whose runs are the load; several times for several (default: all)",
    )
    group.add_argument("--profile", type=Path, metavar="FILE", help="measured seconds (default: estimated)")
    group.add_argument(
        "--batch", type=kinds.count, metavar="N", help="answers that a worker decodes side by side (default: 8)"
    )
    group.add_argument("--question-tokens", type=kinds.count, metavar="N", help="tokens of a question (default: 256)")
    group.add_argument(
        "--time-limit", type=kinds.seconds, metavar="S", help="longest that is searched, seconds (default: 60)"
    )
    group.add_argument("--out", type=Path, metavar="FILE", help="where the cluster JSON with these workers goes")


_OPTIMISING = ("objective", "tree", "profile", "batch", "question_tokens", "time_limit", "out")


def _check_optimising(parser: kinds.Parser, arguments: argparse.Namespace) -> None:
    """End the process, as argparse does, where the arguments do not go together."""
    for name in _OPTIMISING:
        if not arguments.optimise and getattr(arguments, name) is not None:
            parser.error(f"--{name.replace('_', '-')} goes with --optimise")
    kinds.check_out(parser, arguments.out)


def _wish(arguments: argparse.Namespace) -> Wish:
    return Wish(
        objective=arguments.objective or "makespan",
        trees=tuple(arguments.tree or ()),
        question_tokens=arguments.question_tokens or 256,
        batch=arguments.batch or 8,
        time_limit_s=arguments.time_limit or 60.0,
        profile=arguments.profile,
    )


def _document(
    config: ClusterConfig,
    host: str | None,
    table: CardTable,
    placements: Mapping[str, Placement],
    optimum: Optimum | None,
) -> str:
    workers = [{**msgspec.to_builtins(one), "flags": one.flags, "env": dict(one.env)} for one in placements.values()]
    document: dict[str, object] = {"cluster": config.part_name(host), "cards": table.cards, "links": table.links}
    document["workers"] = workers
    if optimum is not None:
        document["optimum"] = optimum_document(optimum)
    return msgspec.json.format(msgspec.json.encode(document)).decode()
