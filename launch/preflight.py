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
from launch.command import LOCALHOST
from launch.config import ClusterConfig
from launch.home import graft_home
from shell_router.config import ConfigError, load_tree

MIN_PYTHON = (3, 11)
DISK_GB = 1.0
"""For a built checkpoint and logs."""
CPU_WORKER_GB = 2.0
"""Memory that a worker with a small model on the CPU engine was seen to take."""
_GPUS = Path("/proc/driver/nvidia/gpus")
_INSTALL = "`make setup` installs it for the CPU engine, `pip install 'graft-moa[gpu]'` for GPUs"


class PreflightError(Exception):
    """The machine cannot run the cluster; the message lists everything that is in the way."""


def check(config: ClusterConfig) -> None:
    """Raise `PreflightError` with one line for each thing that stands in the way of `config` on this machine."""
    problems = tuple(find_problems(config))
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise PreflightError(f"cluster {config.name} cannot start here:\n{lines}")


def find_problems(config: ClusterConfig) -> Iterator[str]:
    yield from _system()
    yield from _packages(config)
    yield from _processors(config)
    yield from _ports(config)
    yield from _space(config)
    yield from _models(config)
    yield from _trees(config)
    yield from _keys(config)


def _system() -> Iterator[str]:
    if not sys.platform.startswith("linux"):
        yield f"SGLang needs Linux; this is {sys.platform}"
    if sys.version_info < MIN_PYTHON:
        found = ".".join(map(str, sys.version_info[:3]))
        yield f"Python {'.'.join(map(str, MIN_PYTHON))} or newer is needed; this is {found}"


def _packages(config: ClusterConfig) -> Iterator[str]:
    """Our own packages, and those of workers in the versions that the `gpu` extra pins.

    Metadata only: an import takes seconds.
    """
    engine = "gpu" if any(config.workers()) else ""
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


def _processors(config: ClusterConfig) -> Iterator[str]:
    usable = os.sched_getaffinity(0)
    gpus = len(list(_GPUS.iterdir())) if _GPUS.is_dir() else 0
    for path, _, worker in config.workers():
        missing = sorted(set(worker.cores) - usable)
        if missing:
            yield (
                f"{path}.cores: there is no core {_listed(missing)} for this process; "
                f"it may use {_listed(sorted(usable))}"
            )
        missing = sorted(gpu for gpu in worker.gpus if gpu >= gpus)
        if missing:
            yield f"{path}.gpus: there is no GPU {_listed(missing)}; the NVIDIA driver shows {gpus}"
    on_gpu = any(model.device == "cuda" for model in config.models)
    # The CPU engine compiles nothing.
    if on_gpu and "CC" not in os.environ and not any(map(shutil.which, ("cc", "gcc", "clang"))):
        yield "Triton compiles for the GPU and finds no C compiler; install gcc or clang, or set CC"


def _ports(config: ClusterConfig) -> Iterator[str]:
    for path, port in config.fixed_ports():
        host = config.shell_router.host if path == "$.shell_router.port" else LOCALHOST
        if ports.in_use(host, port):
            yield f"{path}: port {port} is in use; stop what listens there, or let 0 choose a free one"


def _space(config: ClusterConfig) -> Iterator[str]:
    home = graft_home()
    existing = next(path for path in (home, *home.parents) if path.exists())
    free_gb = shutil.disk_usage(existing).free / 1e9
    if free_gb < DISK_GB:
        yield f"{DISK_GB:g} GB of disk are needed in {home}, {free_gb:.1f} GB are free; set GRAFT_HOME to another place"
    on_cpu = sum(model.device == "cpu" for _, model, _ in config.workers())
    available_gb = psutil.virtual_memory().available / 1e9
    if available_gb < on_cpu * CPU_WORKER_GB:
        yield (
            f"{on_cpu} workers on the CPU engine need about {on_cpu * CPU_WORKER_GB:g} GB of memory, "
            f"{available_gb:.1f} GB are available"
        )


def _models(config: ClusterConfig) -> Iterator[str]:
    for place, path in config.paths():
        try:
            checkpoint.check(path)
        except checkpoint.CheckpointError as error:
            yield f"{place}: {error}"
    if config.shell_router.embedding is not None and not _installed("sentence_transformers"):
        yield (
            "$.shell_router.embedding: the package sentence-transformers is not installed; "
            "`pip install 'graft-moa[early-exit]'` installs it"
        )


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _keys(config: ClusterConfig) -> Iterator[str]:
    for place, variable in config.key_variables():
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
