"""As much of the Kubernetes API as sglang-router asks for: the pods of a namespace, listed and watched."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from aiohttp import web

from tests.fakes.server import LocalServer

NAMESPACE = "graft"


class FakeKubernetes(LocalServer):
    """Serves pods; use as `async with`. A client finds it by `kubeconfig`."""

    def __init__(self, folder: Path) -> None:
        self.kubeconfig = folder / "kubeconfig.json"
        self._pods: dict[str, dict[str, Any]] = {}
        self._version = 1
        self._watches: list[asyncio.Queue[bytes]] = []
        super().__init__([web.get(f"/api/v1/namespaces/{NAMESPACE}/pods", self._serve)])

    def run(self, name: str, ip: str, template: Mapping[str, Any], *, ready: bool = True) -> None:
        """Have a pod of `template` at `ip`, or change the one of that name."""
        kind = "MODIFIED" if name in self._pods else "ADDED"
        metadata = {key: template["metadata"][key] for key in ("labels", "annotations") if key in template["metadata"]}
        self._tell(
            kind,
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": NAMESPACE, "uid": name, **metadata},
                "spec": {"containers": [{"name": "worker"}]},
                "status": {
                    "phase": "Running",
                    "podIP": ip,
                    "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
                },
            },
        )

    def begin_deletion(self, name: str) -> None:
        """What a cluster says first of a pod that is deleted, which still runs and is ready."""
        pod = json.loads(json.dumps(self._pods[name]))
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        self._tell("MODIFIED", pod)

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        named = {"name": "test"}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{**named, "context": {"cluster": "test", "user": "test"}}],
            "clusters": [{**named, "cluster": {"server": self.url}}],
            "users": [{**named, "user": {}}],
        }
        self.kubeconfig.write_text(json.dumps(config))
        return self

    def _tell(self, kind: str, pod: dict[str, Any]) -> None:
        self._version += 1
        pod["metadata"]["resourceVersion"] = str(self._version)
        self._pods[pod["metadata"]["name"]] = pod
        for watch in self._watches:
            watch.put_nowait(json.dumps({"type": kind, "object": pod}).encode() + b"\n")

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("watch") != "true":
            metadata = {"resourceVersion": str(self._version)}
            listing = {"apiVersion": "v1", "kind": "PodList", "metadata": metadata, "items": list(self._pods.values())}
            return web.json_response(listing)
        watch: asyncio.Queue[bytes] = asyncio.Queue()
        response = web.StreamResponse(headers={"content-type": "application/json"})
        await response.prepare(request)
        self._watches.append(watch)
        while True:
            await response.write(await watch.get())
