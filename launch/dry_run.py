"""The commands of a plan as lines for a shell."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping

from launch.command import Command, Plan


def lines(
    plan: Plan, host: str | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[str, str]]:
    """Name of each process of `plan` (of those on `host`) in the order of a start, and what starts it, quoted for a
    shell.

    `environment` is that of the launcher, by default this process's: it decides on variables that are set only where
    nothing else is said.
    """
    known = os.environ if environment is None else environment
    for command in _commands(plan, host):
        yield command.name, _line(command, known)


def _commands(plan: Plan, host: str | None) -> Iterator[Command]:
    yield from (worker.command for worker in plan.workers if worker.host == host)
    yield from (model.router.command for model in plan.models if model.router.host == host)
    if plan.shell_router.host == host:
        yield plan.shell_router.command


def _line(command: Command, environment: Mapping[str, str]) -> str:
    unset = {name: value for name, value in command.defaults.items() if name not in environment}
    settings = [f"{name}={value}" for name, value in sorted({**unset, **command.env}.items())]
    pinned = ["taskset", "-c", ",".join(map(str, command.cores))] if command.cores else []
    return shlex.join([*(["env", *settings] if settings else []), *pinned, *command.argv])
