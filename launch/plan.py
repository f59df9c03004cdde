"""Where everything would run and by which commands, without starting anything."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from launch import checkpoint, command, cpu, dry_run
from launch.cluster import ROUTER_CONFIG
from launch.command import Plan
from launch.config import ClusterConfig
from launch.gpu.allocation import allocate
from launch.gpu.cards import CardTable
from launch.gpu.place import Placement, PlacementError
from launch.gpu.program.optimum import Optimum, Wish, optimise
from launch.ports import PortChooser
from shell_router.errors import GraftError


class PlanError(GraftError):
    """A configuration cannot be placed; the message lists everything that is in the way."""

    exit_code = 2


def commands_of(config: ClusterConfig, host: str | None, run_dir: Path, placements: Mapping[str, Placement]) -> str:
    """The command of each process of `config` on `host`, as lines for a shell, and the shell router's configuration as
    comments. Ports that are left open are chosen, and chosen anew at a start. Raises `PlanError`."""
    planned = _planned(config, host, run_dir, placements, checkpoint.target)
    shown = [f"# {name}\n{line}" for name, line in dry_run.lines(planned, host)]
    if planned.shell_router.host == host:
        document = _router_config(planned).decode()
        shown.append(f"## {ROUTER_CONFIG}, which a start writes for the shell router:")
        shown += [f"## {line}" for line in document.splitlines()]
    return "\n".join(shown)


def write_scripts(
    config: ClusterConfig, host: str | None, folder: Path, placements: Mapping[str, Placement]
) -> tuple[Path, ...]:
    """A script for each process of `config` on `host`, for who starts them by hand, in the order of a start; and what
    they need: the shell router's configuration, builtin models. Raises `PlanError`."""
    folder.mkdir(parents=True, exist_ok=True)
    planned = _planned(config, host, folder.resolve(), placements, checkpoint.resolve)
    if planned.shell_router.host == host:
        (folder / ROUTER_CONFIG).write_bytes(_router_config(planned))
    scripts: list[Path] = []
    for name, line in dry_run.lines(planned, host):
        script = folder / f"{name}.sh"
        script.write_text(
            f'#!/usr/bin/env bash\n# {name} of cluster {config.name}; more flags are passed on.\nexec {line} "$@"\n'
        )
        script.chmod(0o755)
        scripts.append(script)
    return tuple(scripts)


def _planned(
    config: ClusterConfig,
    host: str | None,
    run_dir: Path,
    placements: Mapping[str, Placement],
    resolve: Callable[[str], str],
) -> Plan:
    try:
        paths = {path: resolve(path) for _, path in config.paths(host)}
    except checkpoint.CheckpointError as error:
        raise PlanError(str(error)) from error
    choose_port = PortChooser({port for _, _, port in config.fixed_ports()})
    return command.plan(cpu.settled(config), paths, choose_port, run_dir / ROUTER_CONFIG, placements)


def _router_config(planned: Plan) -> bytes:
    return msgspec.json.format(msgspec.json.encode(planned.router_config), indent=2)


def place_on(config: ClusterConfig, host: str | None, table: CardTable) -> Mapping[str, Placement]:
    """Placements of `config` on the cards of `table`. Raises `PlanError`."""
    with _told_of(config, host):
        return allocate(config, host, table)


def optimise_on(config: ClusterConfig, host: str | None, table: CardTable, wish: Wish) -> Optimum:
    """The best workers of `config` for the load of its trees, on the cards of `table`.

    Raises `PlanError`, `ConfigError`, `SolverError`.
    """
    with _told_of(config, host):
        return optimise(config, table, wish)


@contextlib.contextmanager
def _told_of(config: ClusterConfig, host: str | None) -> Iterator[None]:
    """What keeps `config` from being placed, as a `PlanError`."""
    try:
        yield
    except PlacementError as error:
        lines = "\n".join(f"  - {problem}" for problem in error.problems)
        raise PlanError(f"cluster {config.part_name(host)} cannot be placed:\n{lines}") from error
