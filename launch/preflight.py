"""What must be true of this machine before a cluster is started on it. All problems are reported at once."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator

import psutil
from packaging.requirements import Requirement

from launch import ports
from launch.config import ClusterConfig
from launch.flags import review_flags
from launch.gpu import mps
from launch.gpu.allocation import allocate_here
from launch.gpu.cards import CardsError
from launch.gpu.place import Placement, PlacementError
from launch.home import graft_home
from launch.review import review
from launch.trial import try_trees
from shell_router.config import ConfigError
from shell_router.core.review import Remark
from shell_router.errors import GraftError
from shell_router.keys import load_keys

MIN_PYTHON = (3, 11)
DISK_GB = 1.0
"""For a built checkpoint and logs."""
CPU_WORKER_GB = 2.0
"""Memory that a worker with a small model on the CPU engine was seen to take."""
_TELEMETRY = (
    "opentelemetry-sdk",
    "opentelemetry-exporter-otlp-proto-grpc",
    "opentelemetry-exporter-otlp-proto-http",
)
_INSTALL = "`make setup` installs it for the CPU engine, `pip install 'graft-moa[gpu]'` for GPUs"


class PreflightError(GraftError):
    """The machine cannot run the cluster; the message lists everything that is in the way."""

    exit_code = 2


def check(config: ClusterConfig, host: str | None = None) -> tuple[str, ...]:
    """Raise `PreflightError` with one line for each thing that stands in the way of `config` on this machine.

    Of a cluster on several machines this one is `host`, and only its part is looked at. Raises `ConfigError` when that
    is not one of them. Answers what might not work, or might not be meant, a line each.
    """
    remarks = examine(config, host)
    problems = [remark.text for remark in remarks if remark.error]
    warnings = tuple(remark.text for remark in remarks if not remark.error)
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        more = "".join(f"\n  - warning: {warning}" for warning in warnings)
        raise PreflightError(f"cluster {config.part_name(host)} cannot start here:\n{lines}{more}")
    return warnings


def examine(config: ClusterConfig, host: str | None = None) -> tuple[Remark, ...]:
    """All there is to say of `config` on this machine, errors first. Raises `ConfigError` as `check` does."""
    config.check_host(host)
    placed, stand_in_the_way = _cards(config, host)
    found = [Remark(problem, error=True) for problem in (*_machine(config, host), *stand_in_the_way)]
    found += [Remark(line) for line in mps.advice(placed, os.environ)]
    found += review(config, host, os.environ)
    found += review_flags(config, host)
    if config.shell_router.trees and config.has_shell_router(host) and not any(map(_of_trees, found)):
        found += try_trees(config)
    # A model that is not there is in the way of its workers and of a plan.
    errors = dict.fromkeys(remark for remark in found if remark.error)
    places = {_place(remark) for remark in errors}
    warnings = dict.fromkeys(remark for remark in found if not remark.error and _place(remark) not in places)
    return (*errors, *warnings)


def _of_trees(remark: Remark) -> bool:
    return remark.error and remark.text.startswith("$.shell_router.trees")


def _place(remark: Remark) -> str:
    return remark.text.partition(": ")[0]


def find_problems(config: ClusterConfig, host: str | None = None) -> Iterator[str]:
    """What is in the way."""
    return (remark.text for remark in examine(config, host) if remark.error)


def _machine(config: ClusterConfig, host: str | None) -> Iterator[str]:
    yield from _system()
    yield from _packages(config, host)
    yield from _processors(config, host)
    yield from _ports(config, host)
    yield from _space(config, host)
    yield from _embedding(config, host)
    yield from _telemetry(config)
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


def _cards(config: ClusterConfig, host: str | None) -> tuple[tuple[Placement, ...], tuple[str, ...]]:
    """Where workers would run on this machine's GPUs, and what is in the way of that."""
    try:
        return tuple(allocate_here(config, host).values()), ()
    except PlacementError as error:
        return (), error.problems
    except CardsError as error:
        return (), (str(error),)


def _ports(config: ClusterConfig, host: str | None) -> Iterator[str]:
    if host is not None and not ports.is_mine(config.address(host)):
        yield f"$.hosts.{host}.address: {config.address(host)} is no address of this machine"
        return
    listen = config.shell_router.listen
    if listen is not None and config.has_shell_router(host) and not ports.is_mine(listen):
        yield f"$.shell_router.listen: {listen} is no address of this machine"
    for path, address, port in config.fixed_ports(host):
        if not ports.is_mine(address):
            continue
        if ports.is_forbidden(address, port):
            yield f"{path}: port {port} is for the system: this user may not listen on it"
        elif ports.in_use(address, port):
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


def _embedding(config: ClusterConfig, host: str | None) -> Iterator[str]:
    needs_embedding = config.has_shell_router(host) and config.shell_router.embedding is not None
    if needs_embedding and not _installed("sentence_transformers"):
        yield (
            "$.shell_router.embedding: the package sentence-transformers is not installed; "
            "`pip install 'graft-moa[early-exit]'` installs it"
        )


def _telemetry(config: ClusterConfig) -> Iterator[str]:
    """A worker that is to trace and cannot ends at once. SGLang wants both ways of export, whichever it takes."""
    if config.otlp_endpoint is None:
        return
    for package in _TELEMETRY:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield (
                f"$.otlp_endpoint: the package {package} is not installed; `pip install 'graft-moa[otel]'` installs it"
            )
            return


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _keys(config: ClusterConfig, host: str | None) -> Iterator[str]:
    for place, variable in config.key_variables(host):
        if not os.environ.get(variable, "").strip():
            yield f"{place}: the environment variable {variable} is not set, or empty"
    named = config.shell_router.keys
    if config.has_shell_router(host) and named is not None and (named.file or os.environ.get(named.env or "")):
        try:
            load_keys(named, os.environ)
        except ConfigError as error:
            yield f"$.shell_router.{error}"


def _listed(values: list[int] | list[str]) -> str:
    return ", ".join(map(str, values))
