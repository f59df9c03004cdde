"""`graft plan` and `graft cards`: where everything would run, without starting anything."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from launch import arguments as kinds
from launch import shipped
from launch.config import ClusterConfig, load_cluster
from launch.gpu import mps
from launch.gpu.allocation import uses_gpus
from launch.gpu.cards import CardTable, load_cards, read_cards
from launch.gpu.place import Placement
from launch.gpu.table import cards_table, plan_table
from launch.plan import commands_of, place_on, write_scripts


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
    arguments = parser.parse_args(argv)
    config = load_cluster(arguments.cfg)
    config.check_host(arguments.host)
    table = CardTable()
    if arguments.cards is not None:
        table = load_cards(arguments.cards)
    elif uses_gpus(config, arguments.host):
        table = read_cards()
    placements = place_on(config, arguments.host, table)
    if arguments.commands:
        print(commands_of(config, arguments.host, Path("RUN_DIR"), placements))
    elif arguments.scripts is not None:
        print("\n".join(map(str, write_scripts(config, arguments.host, arguments.scripts, placements))))
    elif arguments.json:
        print(_document(config, arguments.host, table, placements))
    elif placements:
        print(plan_table(placements.values(), table))
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


def _document(config: ClusterConfig, host: str | None, table: CardTable, placements: Mapping[str, Placement]) -> str:
    workers = [{**msgspec.to_builtins(one), "flags": one.flags, "env": dict(one.env)} for one in placements.values()]
    document = {"cluster": config.part_name(host), "cards": table.cards, "links": table.links, "workers": workers}
    return msgspec.json.format(msgspec.json.encode(document)).decode()
