"""A cluster that runs: its processes from the first start to the last end.

The order of a start: models are built where they must be, all workers come up side by side, then each model's
sglang-router, then the shell router. Any failure on the way stops what has been started. From then on, what dies is
started again, if that is wanted; what does not come back ends all the rest.

Of a cluster on several machines this is the part on one of them. What that needs from others it waits for.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from launch import checkpoint, command, cpu, keeper, probe, process, state
from launch.command import Plan, Service, Worker
from launch.config import ClusterConfig
from launch.gpu.allocation import allocate, uses_gpus
from launch.gpu.cards import CardsError, read_cards
from launch.gpu.place import Placement, PlacementError
from launch.gpu.table import plan_table
from launch.home import HomeError
from launch.keeper import ClusterError, Keeper, ProcessLost, Start
from launch.ports import PortChooser
from launch.progress import Progress
from launch.state import Breakdown
from shell_router.errors import GraftError

ROUTER_CONFIG = "shell_router.json"
"""The shell router's configuration, in the folder of the logs."""
GRACE_S = 3.0
"""Between SIGTERM and SIGKILL. Workers keep nothing that would need a longer farewell."""
DRAIN_GRACE_S = 5.0
"""For the shell router to cancel what still runs when its time to drain is over, and to end."""


class Cluster:
    """The processes of one configuration, or of its part on `host`. Use as a context manager: they run inside it.

    Raises `ConfigError` when `host` does not say which part, see `ClusterConfig.check_host`.
    """

    def __init__(
        self,
        config: ClusterConfig,
        run_dir: Path,
        *,
        host: str | None = None,
        progress: bool = True,
        restart: bool = False,
    ) -> None:
        """With `restart` a thread of its own starts again what dies, and when that is given up ends all the rest."""
        config.check_host(host)
        self.config = config
        self.host = host
        self.name = config.part_name(host)
        self.run_dir = run_dir.resolve()
        self._progress = progress
        self._restart = restart
        self._keeper = Keeper(
            self.run_dir,
            state.path_of(self.name),
            config.startup_timeout_s,
            changed=self._record,
            tell=self._tell,
        )
        self._keeping = threading.Thread(target=self._keep, name=f"keeper of {self.name}", daemon=True)
        self._plan: Plan | None = None
        self._state: state.ClusterState | None = None
        self._ending = threading.Lock()
        self._broken: GraftError | None = None

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
            process.end(leftovers, GRACE_S)
            self._start()
            if self._restart:
                self._keeping.start()
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
        # Without one of the others, runs cannot end well.
        drain = self._keeper.healthy
        left = self._keeper.take()
        try:
            if drain:
                router = [child for child in left if child.name == self._shell_router_name]
                process.stop(router, self.config.shell_router.limits.drain_s + DRAIN_GRACE_S)
                left = [child for child in left if child not in router]
            process.stop(left, GRACE_S)
            if self._broken is not None and self._keeping.is_alive():
                # It ends the processes itself, and writes down why.
                self._keeping.join()
        except KeyboardInterrupt:
            process.stop(left, 0.0)
            raise
        finally:
            if self._let_go() is not None:
                state.remove(self.name)

    def check(self) -> None:
        """Raise `ClusterError` when a process has died, or, of a cluster that restarts what dies, did so for good."""
        if self._broken is not None:
            raise ClusterError(str(self._broken)) from self._broken
        if not self._restart:
            self._keeper.check()

    def watch(self) -> None:
        """Sleep until a process dies, for good if it may be restarted, then end the others and raise `ClusterError`.

        A signal handler that raises ends it too. What has happened is kept for `graft status`.
        """
        while True:
            if self._restart and not self._keeping.is_alive():
                self.check()
                raise ClusterError("what keeps the processes up has failed; see above")
            try:
                self.check()
            except ClusterError as error:
                if not self._restart:
                    self._break_down(error)
                raise
            time.sleep(keeper.WATCH_S)

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
        config = cpu.settled(self.config)
        plan = command.plan(config, self._paths(), PortChooser(reserved), config_file, self._placements())
        if self.config.has_shell_router(self.host):
            config_file.write_bytes(msgspec.json.format(msgspec.json.encode(plan.router_config), indent=2))
        self._plan = plan

        stages = self._stages(plan)
        title = f"starting {self.name}"
        with Progress(title, sum(map(len, stages)), shown=self._progress, alike=False) as progress:
            for stage in stages:
                self._bring_up(stage, deadline, progress)
        assert self._state is not None
        self._state = msgspec.structs.replace(self._state, url=plan.shell_router.url)
        self._record()

    def _stages(self, plan: Plan) -> tuple[list[Start], ...]:
        """What starts here, in order, and before it what that needs from other machines."""
        workers = [_worker_start(worker) for worker in plan.workers]
        needed = [_worker_start(w) for model in plan.models if model.router.host == self.host for w in model.workers]
        routers = [_service_start(model.router, "/readiness", "/liveness") for model in plan.models]
        front = _service_start(plan.shell_router, "/ready", "/health")
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

    def _bring_up(self, starts: list[Start], deadline: float, progress: Progress) -> None:
        """Start those of `starts` that belong here side by side, and wait for each to be ready."""
        for start in starts:
            if start.host == self.host:
                self._keeper.start(start)
            else:
                progress.tell(f"waiting for {self._called(start)}")
        self._wait_for(starts, deadline, progress)

    def _wait_for(self, starts: list[Start], deadline: float, progress: Progress) -> None:
        waiting = list(starts)
        while True:
            for start in tuple(waiting):
                if self._is_ready(start):
                    waiting.remove(start)
                    if start.host == self.host:
                        self._keeper.came_up(start.command.name)
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
            time.sleep(keeper.POLL_S)

    def _called(self, start: Start) -> str:
        """What a person is told it is."""
        name = start.command.name
        return name if start.host == self.host else f"{name} on host {start.host} ({start.url})"

    def _is_ready(self, start: Start) -> bool:
        self._keeper.check()
        try:
            return start.ready()
        except probe.ProbeError as error:
            raise ClusterError(f"{self._called(start)}: {error}") from error

    def _keep(self) -> None:
        """What the thread does: keep the processes up, and end them all when that fails."""
        try:
            self._keeper.keep()
        except GraftError as error:
            self._break_down(error)

    def _break_down(self, why: GraftError) -> None:
        """End what still runs, and leave word of it."""
        states = self._keeper.states
        self._broken = why
        left = self._keeper.take()
        known = self._let_go()
        try:
            process.stop(left, GRACE_S)
        finally:
            # Otherwise it was being stopped anyway.
            if known is not None:
                breakdown = Breakdown(at=time.time(), why=why.why if isinstance(why, ProcessLost) else str(why))
                state.write(msgspec.structs.replace(known, processes=states, breakdown=breakdown))

    def _let_go(self) -> state.ClusterState | None:
        """What the state file says, for who ends the cluster; None for a second one."""
        with self._ending:
            known, self._state = self._state, None
            return known

    def _tell(self, text: str) -> None:
        if self._progress:
            # Who has read it may be gone, and the cluster goes on.
            with contextlib.suppress(OSError):
                print(f"graft: {text}", file=sys.stderr, flush=True)

    def _record(self) -> None:
        """Bring the state file up to date."""
        if self._state is None:
            return
        self._state = msgspec.structs.replace(self._state, processes=self._keeper.states)
        try:
            state.write(self._state)
        except HomeError as error:
            if self._state.url is None:
                raise
            # A full disk is no reason to end what serves.
            self._tell(str(error))


def _worker_start(worker: Worker) -> Start:
    # The status comes first: it costs nothing and is there as soon as the server listens; /health generates a token.
    def serves() -> bool:
        return probe.worker_status(worker.url, worker.role) is not None and probe.answers_ok(worker.url + "/health")

    return Start(worker.command, worker.url, worker.host, ready=serves, alive=serves)


def _service_start(service: Service, ready_path: str, alive_path: str) -> Start:
    return Start(
        service.command,
        service.url,
        service.host,
        ready=lambda: probe.answers_ok(service.url + ready_path),
        alive=lambda: probe.answers_ok(service.url + alive_path),
    )
