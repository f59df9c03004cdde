"""A cluster that runs: its processes from the first start to the last end.

The order of a start: models are built where they must be, all workers come up side by side, then each model's
sglang-router, then the shell router. Any failure on the way stops what has been started.

Of a cluster on several machines this is the part on one of them. What that needs from others it waits for.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from launch import checkpoint, command, probe, process, state
from launch.command import Command, Plan, Service, Worker
from launch.config import ClusterConfig
from launch.gpu.allocation import allocate, uses_gpus
from launch.gpu.cards import CardsError, read_cards
from launch.gpu.place import Placement, PlacementError
from launch.gpu.table import plan_table
from launch.ports import PortChooser
from launch.process import ChildProcess
from launch.progress import Progress
from shell_router.errors import GraftError

ROUTER_CONFIG = "shell_router.json"
"""The shell router's configuration, in the folder of the logs."""
POLL_S = 1.0
"""Between two looks at a process that starts. A worker's `/health` generates a token: do not ask it often."""
WATCH_S = 0.5
GRACE_S = 3.0
"""Between SIGTERM and SIGKILL. Workers keep nothing that would need a longer farewell."""
DRAIN_GRACE_S = 5.0
"""For the shell router to cancel what still runs when its time to drain is over, and to end."""


class ClusterError(GraftError):
    """The cluster did not come up, or one of its processes died. The message ends with the log of the culprit."""


@dataclass(frozen=True)
class _Start:
    """A process to start and how to tell that it has come up."""

    command: Command
    url: str
    host: str | None
    ready: Callable[[], bool]


class Cluster:
    """The processes of one configuration, or of its part on `host`. Use as a context manager: they run inside it.

    Raises `ConfigError` when `host` does not say which part, see `ClusterConfig.check_host`.
    """

    def __init__(self, config: ClusterConfig, run_dir: Path, *, host: str | None = None, progress: bool = True) -> None:
        config.check_host(host)
        self.config = config
        self.host = host
        self.name = config.part_name(host)
        self.run_dir = run_dir.resolve()
        self._progress = progress
        self._children: list[ChildProcess] = []
        self._plan: Plan | None = None
        self._state: state.ClusterState | None = None

    @property
    def url(self) -> str:
        """Of the shell router."""
        return self._planned.shell_router.url

    @property
    def workers(self) -> tuple[Worker, ...]:
        """Those of other machines included."""
        return self._planned.workers

    @property
    def router_urls(self) -> dict[str, str]:
        """URL of the sglang-router of each model that has workers."""
        return {model.name: model.router.url for model in self._planned.models}

    def __enter__(self) -> Self:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._state, leftovers = state.claim(
            self.name, self.run_dir, elsewhere=not self.config.has_shell_router(self.host)
        )
        try:
            process.stop_groups([leftover.id.pid for leftover in leftovers], GRACE_S)
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End all processes and forget the cluster. Does nothing when that has been done.

        The shell router may drain first, while the workers still serve it. What interrupts the wait for that, such as
        a second Ctrl-C, kills all at once.
        """
        left, self._children = self._children, []
        try:
            # Without one of the others, runs cannot end well.
            if all(child.exit_code is None for child in left):
                router = [child for child in left if child.name == self._shell_router_name]
                process.stop(router, self.config.shell_router.limits.drain_s + DRAIN_GRACE_S)
                left = [child for child in left if child not in router]
            process.stop(left, GRACE_S)
        except KeyboardInterrupt:
            process.stop(left, 0.0)
            raise
        finally:
            if self._state is not None:
                self._state = None
                state.remove(self.name)

    def check(self) -> None:
        """Raise `ClusterError` when a process has died."""
        for child in self._children:
            if child.exit_code is not None:
                raise ClusterError(
                    f"{child.name} died with exit code {child.exit_code}; the end of {child.log}:\n{child.last_lines()}"
                )

    def watch(self) -> None:
        """Sleep until a process dies, then raise `ClusterError`. A signal handler that raises ends it too."""
        while True:
            self.check()
            time.sleep(WATCH_S)

    def restart(self, name: str) -> None:
        """Kill the worker `name` with all its children and start it anew; returns when it is ready.

        Raises `ClusterError` when it does not come up, `KeyError` when there is no such worker here.
        """
        worker = {worker.command.name: worker for worker in self.workers if worker.host == self.host}[name]
        dead = next(child for child in self._children if child.name == name)
        process.stop([dead], 0.0)
        self._children.remove(dead)
        with Progress(f"restarting {name}", 1, shown=self._progress, alike=False) as progress:
            self._bring_up([_worker_start(worker)], time.monotonic() + self.config.startup_timeout_s, progress)
        self._record(self.url)

    def flush_caches(self, wait_s: float = 20.0) -> None:
        """Empty the prefix cache of every worker, waiting up to `wait_s` for requests that still run.

        Raises `ClusterError` when a worker refuses.
        """
        for worker in self.workers:
            try:
                probe.flush_cache(worker.url, wait_s)
            except probe.ProbeError as error:
                self.check()
                raise ClusterError(str(error)) from error

    @property
    def _shell_router_name(self) -> str | None:
        return None if self._plan is None else self._plan.shell_router.command.name

    @property
    def _planned(self) -> Plan:
        assert self._plan is not None, "the cluster has not been started"
        return self._plan

    def _start(self) -> None:
        deadline = time.monotonic() + self.config.startup_timeout_s
        config_file = self.run_dir / ROUTER_CONFIG
        reserved = {port for _, _, port in self.config.fixed_ports()}
        plan = command.plan(self.config, self._paths(), PortChooser(reserved), config_file, self._placements())
        if self.config.has_shell_router(self.host):
            config_file.write_bytes(msgspec.json.format(msgspec.json.encode(plan.router_config), indent=2))
        self._plan = plan

        stages = self._stages(plan)
        title = f"starting {self.name}"
        with Progress(title, sum(map(len, stages)), shown=self._progress, alike=False) as progress:
            for stage in stages:
                self._bring_up(stage, deadline, progress)
        self._record(plan.shell_router.url)

    def _stages(self, plan: Plan) -> tuple[list[_Start], ...]:
        """What starts here, in order, and before it what that needs from other machines."""
        workers = [_worker_start(worker) for worker in plan.workers]
        needed = [_worker_start(w) for model in plan.models if model.router.host == self.host for w in model.workers]
        routers = [_service_start(model.router, "/readiness") for model in plan.models]
        front = _service_start(plan.shell_router, "/ready")
        return (
            [one for one in workers if one.host == self.host],
            [one for one in needed if one.host != self.host],
            [one for one in routers if one.host == self.host],
            [one for one in routers if one.host != self.host == front.host],
            [one for one in (front,) if one.host == self.host],
        )

    def _placements(self) -> Mapping[str, Placement]:
        """The GPUs of each process that runs on some; they are shown before anything starts."""
        if not uses_gpus(self.config, self.host):
            return {}
        try:
            table = read_cards()
            placements = allocate(self.config, self.host, table)
        except (PlacementError, CardsError) as error:
            raise ClusterError(str(error)) from error
        if self._progress:
            print(plan_table(placements.values(), table), file=sys.stderr, flush=True)
        return placements

    def _paths(self) -> dict[str, str]:
        """What each path of a model is resolved to, built where it must be."""
        resolved = {}
        wanted = {path: place for place, path in self.config.paths(self.host)}
        missing = [path for path in wanted if checkpoint.must_build(path)]
        shown = self._progress and bool(missing)
        with Progress("building checkpoints", len(missing), shown=shown, alike=False) as progress:
            for path, place in wanted.items():
                progress.begin(f"waiting for {path}")
                try:
                    resolved[path] = checkpoint.resolve(path)
                except checkpoint.CheckpointError as error:
                    raise ClusterError(f"{place}: {error}") from error
                if path in missing:
                    progress.end(f"{path} is ready")
        return resolved

    def _bring_up(self, starts: list[_Start], deadline: float, progress: Progress) -> None:
        """Start those of `starts` that belong here side by side, and wait for each to be ready."""
        for start in starts:
            if start.host == self.host:
                self._children.append(ChildProcess(start.command, start.url, self.run_dir))
                self._record(url=None)
            else:
                progress.tell(f"waiting for {self._called(start)}")
        waiting = list(starts)
        while True:
            for start in tuple(waiting):
                if self._is_ready(start):
                    waiting.remove(start)
                    progress.end(f"{self._called(start)} is ready")
            if not waiting:
                return
            names = [self._called(start) for start in waiting]
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"{', '.join(names)} did not come up within {self.config.startup_timeout_s:g} s "
                    f"(startup_timeout_s); logs are in {self.run_dir}"
                )
            progress.begin(f"waiting for {', '.join(names)}")
            time.sleep(POLL_S)

    def _called(self, start: _Start) -> str:
        """What a person is told it is."""
        name = start.command.name
        return name if start.host == self.host else f"{name} on host {start.host} ({start.url})"

    def _is_ready(self, start: _Start) -> bool:
        self.check()
        try:
            return start.ready()
        except probe.ProbeError as error:
            raise ClusterError(f"{self._called(start)}: {error}") from error

    def _record(self, url: str | None) -> None:
        """Bring the state file up to date."""
        assert self._state is not None
        self._state = msgspec.structs.replace(
            self._state, url=url, processes=tuple(child.state for child in self._children)
        )
        state.write(self._state)


def _worker_start(worker: Worker) -> _Start:
    # The status comes first: it costs nothing and is there as soon as the server listens; /health generates a token.
    return _Start(
        worker.command,
        worker.url,
        worker.host,
        lambda: probe.worker_status(worker.url, worker.role) is not None and probe.answers_ok(worker.url + "/health"),
    )


def _service_start(service: Service, ready_path: str) -> _Start:
    return _Start(service.command, service.url, service.host, lambda: probe.answers_ok(service.url + ready_path))
