"""What must be true of this machine before a cluster is started on it. All problems are reported at once."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from launch import checkpoint, ports
from launch.config import ClusterConfig
from launch.gpu.allocation import allocate_here
from launch.gpu.cards import CardsError
from launch.gpu.place import PlacementError
from launch.home import graft_home
from shell_router.config import ConfigError, load_tree
from shell_router.errors import GraftError

MIN_PYTHON = (3, 11)
DISK_GB = 1.0
"""For a built checkpoint and logs."""
CPU_WORKER_GB = 2.0
"""Memory that a worker with a small model on the CPU engine was seen to take."""
_INSTALL = "`make setup` installs it for the CPU engine, `pip install 'graft-moa[gpu]'` for GPUs"


class PreflightError(GraftError):
    """The machine cannot run the cluster; the message lists everything that is in the way."""

    exit_code = 2


def check(config: ClusterConfig, host: str | None = None) -> None:
    """Raise `PreflightError` with one line for each thing that stands in the way of `config` on this machine.

    Of a cluster on several machines this one is `host`, and only its part is looked at. Raises `ConfigError` when that
    is not one of them.
    """
    config.check_host(host)
    # A model that is not there is in the way of its workers and of a plan.
    problems = tuple(dict.fromkeys(find_problems(config, host)))
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise PreflightError(f"cluster {config.part_name(host)} cannot start here:\n{lines}")


def find_problems(config: ClusterConfig, host: str | None = None) -> Iterator[str]:
    yield from _system()
    yield from _packages(config, host)
    yield from _processors(config, host)
    yield from _cards(config, host)
    yield from _ports(config, host)
    yield from _space(config, host)
    yield from _models(config, host)
    if config.has_shell_router(host):
        yield from _trees(config)
    yield from _keys(config, host)


def _system() -> Iterator[str]:
    if not sys.platform.startswith("linux"):
        yield f"SGLang needs Linux; this is {sys.platform}"
    if sys.version_info < MIN_PYTHON:
        found = ".".join(map(str, sys.version_info[:3]))
        yield f"Python {'.'.join(map(str, MIN_PYTHON))} or newer is needed; this is {found}"


def _packages(config: ClusterConfig, host: str | None) -> Iterator[str]:
    """Our own packages, and those of workers in the versions that the `gpu` extra pins.

    Metadata only: an import takes seconds.
    """
    engine = "gpu" if any(config.workers(host)) else ""
    try:
        requirements = importlib.metadata.requires("graft-moa") or []
    except importlib.metadata.PackageNotFoundError:
        yield "graft-moa is not installed, so SGLang cannot find its plugin; run `make setup` or `pip install -e .`"
        return
    for text in (*requirements, *(["torch"] if engine else [])):
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": engine}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield f"the package {requirement.name} is not installed; {_INSTALL}"
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            yield f"{requirement.name}{requirement.specifier} is needed, {version} is installed; {_INSTALL}"


def _processors(config: ClusterConfig, host: str | None) -> Iterator[str]:
    usable = os.sched_getaffinity(0)
    for worker in config.workers(host):
        missing = sorted(set(worker.config.cores) - usable)
        if missing:
            yield (
                f"{worker.path}.cores: there is no core {_listed(missing)} for this process; "
                f"it may use {_listed(sorted(usable))}"
            )
    on_gpu = any(worker.model.device == "cuda" for worker in config.workers(host))
    # The CPU engine compiles nothing.
    if on_gpu and "CC" not in os.environ and not any(map(shutil.which, ("cc", "gcc", "clang"))):
        yield "Triton compiles for the GPU and finds no C compiler; install gcc or clang, or set CC"


def _cards(config: ClusterConfig, host: str | None) -> Iterator[str]:
    try:
        allocate_here(config, host)
    except PlacementError as error:
        yield from error.problems
    except CardsError as error:
        yield str(error)


def _ports(config: ClusterConfig, host: str | None) -> Iterator[str]:
    if host is not None and not ports.is_mine(config.address(host)):
        yield f"$.hosts.{host}.address: {config.address(host)} is no address of this machine"
        return
    for path, address, port in config.fixed_ports(host):
        if ports.in_use(address, port):
            yield f"{path}: port {port} is in use; stop what listens there, or let 0 choose a free one"


def _space(config: ClusterConfig, host: str | None) -> Iterator[str]:
    home = graft_home()
    existing = next(path for path in (home, *home.parents) if path.exists())
    free_gb = shutil.disk_usage(existing).free / 1e9
    if free_gb < DISK_GB:
        yield f"{DISK_GB:g} GB of disk are needed in {home}, {free_gb:.1f} GB are free; set GRAFT_HOME to another place"
    on_cpu = sum(worker.model.device == "cpu" for worker in config.workers(host))
    available_gb = psutil.virtual_memory().available / 1e9
    if available_gb < on_cpu * CPU_WORKER_GB:
        yield (
            f"{on_cpu} workers on the CPU engine need about {on_cpu * CPU_WORKER_GB:g} GB of memory, "
            f"{available_gb:.1f} GB are available"
        )


def _models(config: ClusterConfig, host: str | None) -> Iterator[str]:
    for place, path in config.paths(host):
        try:
            checkpoint.check(path)
        except checkpoint.CheckpointError as error:
            yield f"{place}: {error}"
    needs_embedding = config.has_shell_router(host) and config.shell_router.embedding is not None
    if needs_embedding and not _installed("sentence_transformers"):
        yield (
            "$.shell_router.embedding: the package sentence-transformers is not installed; "
            "`pip install 'graft-moa[early-exit]'` installs it"
        )


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _keys(config: ClusterConfig, host: str | None) -> Iterator[str]:
    for place, variable in config.key_variables(host):
        if not os.environ.get(variable, "").strip():
            yield f"{place}: the environment variable {variable} is not set, or empty"


def _trees(config: ClusterConfig) -> Iterator[str]:
    served = {model.name for model in config.models}
    files: dict[str, str] = {}
    for t, path in enumerate(config.shell_router.trees):
        try:
            tree = load_tree(Path(path))
        except ConfigError as error:
            yield f"$.shell_router.trees[{t}]: {error}"
            continue
        unknown = sorted(tree.models - served)
        if unknown:
            yield (
                f"$.shell_router.trees[{t}]: {path} asks for model {_listed(unknown)}; "
                f"the cluster serves {_listed(sorted(served))}"
            )
        if tree.name in files:
            yield f"$.shell_router.trees[{t}]: {path} and {files[tree.name]} both name their tree {tree.name!r}"
        files[tree.name] = path


def _listed(values: list[int] | list[str]) -> str:
    return ", ".join(map(str, values))
