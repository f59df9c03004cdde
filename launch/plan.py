"""`graft plan` and `graft cards`: where everything would run, without starting anything."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import msgspec

from launch import checkpoint, command, dry_run
from launch.cluster import ROUTER_CONFIG
from launch.config import ClusterConfig, load_cluster
from launch.gpu.allocation import allocate, uses_gpus
from launch.gpu.cards import CardTable, load_cards, read_cards
from launch.gpu.place import Placement, PlacementError
from launch.gpu.table import cards_table, plan_table
from launch.ports import PortChooser


class PlanError(Exception):
    """A configuration cannot be placed; the message lists everything that is in the way."""


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`plan` and `cards`, for the parser of `graft`. They raise `ConfigError`, `PlanError`, `CardsError`."""
    plan = commands.add_parser("plan", help="show which worker would run on which GPU; start nothing")
    plan.add_argument("cfg", type=Path, help="cluster JSON, e.g. cfgs/cluster/homo_2gpu.json")
    plan.add_argument(
        "--cards", type=Path, metavar="FILE", help="plan for the GPUs of this table (`graft cards --json`)"
    )
    plan.add_argument("--host", metavar="NAME", help="which of the cluster's `hosts` is meant")
    shown = plan.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print the plan as JSON")
    shown.add_argument("--commands", action="store_true", help="print the commands, quoted for a shell")
    plan.set_defaults(command=_plan)

    cards = commands.add_parser("cards", help="show the GPUs of this machine and their links")
    cards.add_argument("--json", action="store_true", help="as a table for `graft plan --cards`")
    cards.set_defaults(command=_cards)


def commands_of(config: ClusterConfig, host: str | None, run_dir: Path, placements: Mapping[str, Placement]) -> str:
    """The command of each process of `config` on `host`, as lines for a shell, and the shell router's configuration as
    comments. Ports that are left open are chosen, and chosen anew at a start. Raises `PlanError`."""
    try:
        paths = {path: checkpoint.target(path) for _, path in config.paths(host)}
    except checkpoint.CheckpointError as error:
        raise PlanError(str(error)) from error
    choose_port = PortChooser({port for _, _, port in config.fixed_ports()})
    planned = command.plan(config, paths, choose_port, run_dir / ROUTER_CONFIG, placements)
    script = dry_run.script(planned, host)
    if planned.shell_router.host != host:
        return script
    document = msgspec.json.format(msgspec.json.encode(planned.router_config), indent=2).decode()
    lines = (f"## {line}" for line in document.splitlines())
    return "\n".join((script, f"## {ROUTER_CONFIG}, which a start writes for the shell router:", *lines))


def place_on(config: ClusterConfig, host: str | None, table: CardTable) -> Mapping[str, Placement]:
    """Placements of `config` on the cards of `table`. Raises `PlanError`."""
    try:
        return allocate(config, host, table)
    except PlacementError as error:
        lines = "\n".join(f"  - {problem}" for problem in error.problems)
        raise PlanError(f"cluster {config.part_name(host)} cannot be placed:\n{lines}") from error


def _plan(options: argparse.Namespace) -> int:
    config = load_cluster(options.cfg)
    config.check_host(options.host)
    table = CardTable()
    if options.cards is not None:
        table = load_cards(options.cards)
    elif uses_gpus(config, options.host):
        table = read_cards()
    placements = place_on(config, options.host, table)
    if options.commands:
        print(commands_of(config, options.host, Path("RUN_DIR"), placements))
    elif options.json:
        print(_document(config, options.host, table, placements))
    elif placements:
        print(plan_table(placements.values(), table))
    else:
        print(f"cluster {config.part_name(options.host)} runs nothing on GPUs")
    return 0


def _cards(options: argparse.Namespace) -> int:
    table = read_cards()
    print(msgspec.json.format(msgspec.json.encode(table)).decode() if options.json else cards_table(table))
    return 0


def _document(config: ClusterConfig, host: str | None, table: CardTable, placements: Mapping[str, Placement]) -> str:
    workers = [{**msgspec.to_builtins(one), "flags": one.flags, "env": dict(one.env)} for one in placements.values()]
    document = {"cluster": config.part_name(host), "cards": table.cards, "links": table.links, "workers": workers}
    return msgspec.json.format(msgspec.json.encode(document)).decode()
