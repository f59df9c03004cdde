"""Where everything would run and by which commands, without starting anything."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from launch import checkpoint, command, dry_run
from launch.cluster import ROUTER_CONFIG
from launch.config import ClusterConfig
from launch.gpu.allocation import allocate
from launch.gpu.cards import CardTable
from launch.gpu.place import Placement, PlacementError
from launch.ports import PortChooser
from shell_router.errors import GraftError


class PlanError(GraftError):
    """A configuration cannot be placed; the message lists everything that is in the way."""

    exit_code = 2


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
