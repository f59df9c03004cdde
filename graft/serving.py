"""A cluster for as long as a program wants it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from launch import preflight, shipped
from launch.cluster import Cluster
from launch.config import ClusterConfig, load_cluster
from launch.home import new_log_dir
from shell_router.client import AsyncClient, Client
from shell_router.errors import GraftError


class Served:
    """A cluster that is up."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def check(self) -> None:
        """Raise `ClusterError` when the cluster has broken down."""
        self._cluster.check()

    @property
    def url(self) -> str:
        """Base URL of its shell router, whose `/v1` is OpenAI's API."""
        return self._cluster.url

    def client(self, *, api_key: str | None = None, run_timeout_s: float | None = None) -> Client:
        """A client of its shell router; close it, or use it as a context manager."""
        return Client(self.url, api_key=api_key, run_timeout_s=run_timeout_s)

    def async_client(self, *, api_key: str | None = None, run_timeout_s: float | None = None) -> AsyncClient:
        """The same for programs with an event loop."""
        return AsyncClient(self.url, api_key=api_key, run_timeout_s=run_timeout_s)


@contextlib.contextmanager
def serve(cluster: str | Path | ClusterConfig, *, progress: bool = False, restart: bool = True) -> Iterator[Served]:
    """Start a cluster (its JSON's path, the name of a shipped one, or what a JSON says); stop it when the context ends.

    Takes a minute with real workers; `progress` shows on stderr what is waited for. Logs are in `$GRAFT_HOME/logs`.
    A process that dies is started again, a bounded number of times, with `progress` told on stderr; after that the
    cluster ends, and so `Served.check` and the end of the context raise `ClusterError`. Without `restart` the others
    go on alone.
    Raises `GraftError`: the JSON is wrong, this machine cannot run it, or it does not come up.
    """
    config = cluster if isinstance(cluster, ClusterConfig) else load_cluster(shipped.cluster(str(cluster)))
    preflight.check(config)
    with Cluster(config, new_log_dir(config.name), progress=progress, restart=restart) as running:
        try:
            yield Served(running)
        except GraftError:
            # What a client saw of it is less than what is known here.
            if restart:
                running.check()
            raise
        if restart:
            running.check()
