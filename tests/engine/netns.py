"""Machines of a test: network namespaces on a switch of their own. Nothing of this machine's network is changed."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_OURS = "graft-test-"
_CLONE_NEWNET = 0x40000000


class NotSupported(Exception):
    """This kernel, or this user, cannot do it; the message says what is missing."""


@dataclass
class Network:
    """Hosts with one interface each, `eth0`, all on one switch, which is a bridge in a namespace of its own."""

    hosts: tuple[str, ...]
    prefix: str = field(default_factory=lambda: f"{_OURS}{os.getpid()}-")

    @property
    def switch(self) -> str:
        return self.prefix + "switch"

    def namespace(self, host: str) -> str:
        return self.prefix + host

    def address(self, host: str) -> str:
        return f"10.77.0.{self.hosts.index(host) + 1}"

    def command(self, host: str, *argv: str) -> tuple[str, ...]:
        """`argv` as it is run on `host`."""
        return ("ip", "netns", "exec", self.namespace(host), *argv)

    def build(self) -> None:
        """Raises `NotSupported`."""
        _run("ip", "netns", "add", self.switch)
        _run("ip", "-n", self.switch, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", self.switch, "link", "set", "bridge", "up")
        for host in self.hosts:
            namespace, port = self.namespace(host), f"to-{host}"
            _run("ip", "netns", "add", namespace)
            _run("ip", "-n", namespace, "link", "set", "lo", "up")
            _run("ip", "-n", self.switch, "link", "add", port, "type", "veth", "peer", "eth0", "netns", namespace)
            _run("ip", "-n", self.switch, "link", "set", port, "master", "bridge", "up")
            _run("ip", "-n", namespace, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
            _run("ip", "-n", namespace, "link", "set", "eth0", "up")

    def remove(self) -> None:
        """Whatever there is of it; interfaces go with their namespace."""
        for name in (*map(self.namespace, self.hosts), self.switch):
            subprocess.run(("ip", "netns", "delete", name), check=False, capture_output=True)

    def sent(self, host: str) -> int:
        """Bytes that `host` has sent so far."""
        return self._counted(host, "rx")

    def received(self, host: str) -> int:
        """Bytes that `host` has been sent so far."""
        return self._counted(host, "tx")

    @contextlib.contextmanager
    def shaped(self, *discipline: str) -> Iterator[None]:
        """What every host is sent goes through a queueing discipline of `tc`. Raises `NotSupported`."""
        shaped = []
        try:
            for host in self.hosts:
                _run("tc", "-n", self.switch, "qdisc", "add", "dev", f"to-{host}", "root", *discipline)
                shaped.append(host)
            yield
        finally:
            for host in shaped:
                _run("tc", "-n", self.switch, "qdisc", "delete", "dev", f"to-{host}", "root")

    def dropped(self, host: str) -> int:
        """Packets for `host` that its queueing discipline has thrown away."""
        (queue,) = json.loads(_run("tc", "-n", self.switch, "-s", "-j", "qdisc", "show", "dev", f"to-{host}", "root"))
        return int(queue["drops"])

    @contextlib.contextmanager
    def cut(self, *between: str) -> Iterator[None]:
        """The hosts `between` cannot reach one another, as if their link were down; all others can reach them."""
        try:
            self._isolate(between, "on")
            yield
        finally:
            self._isolate(between, "off")

    def run(self, host: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of `work` in an event loop whose sockets are those of `host`."""
        result: list[T] = []
        problem: list[BaseException] = []

        def inside() -> None:
            try:
                _enter(self.namespace(host))
                result.append(asyncio.run(work()))
            except BaseException as error:  # noqa: BLE001 - raised again in the test's own thread
                problem.append(error)

        # A thread can have a network of its own; it is dropped with the thread.
        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        if problem:
            raise problem[0]
        return result[0]

    def _isolate(self, hosts: tuple[str, ...], switched: str) -> None:
        for host in hosts:
            _run("ip", "-n", self.switch, "link", "set", f"to-{host}", "type", "bridge_slave", "isolated", switched)

    def _counted(self, host: str, direction: str) -> int:
        (link,) = json.loads(_run("ip", "-n", self.switch, "-s", "-j", "link", "show", f"to-{host}"))
        return int(link["stats64"][direction]["bytes"])


@contextlib.contextmanager
def network(*hosts: str) -> Iterator[Network]:
    """Raises `NotSupported`."""
    if os.geteuid() != 0:
        raise NotSupported("network namespaces need root")
    if shutil.which("ip") is None or shutil.which("tc") is None:
        raise NotSupported("network namespaces need `ip` and `tc` (iproute2)")
    _forget_dead()
    made = Network(hosts)
    try:
        made.build()
        yield made
    finally:
        made.remove()


def _forget_dead() -> None:
    """Remove namespaces that a killed test run has left."""
    for line in _run("ip", "netns", "list").splitlines():
        name = line.split()[0]
        pid = name.removeprefix(_OURS).partition("-")[0]
        if name.startswith(_OURS) and not Path(f"/proc/{pid}").exists():
            subprocess.run(("ip", "netns", "delete", name), check=False, capture_output=True)


def _enter(namespace: str) -> None:
    """Give the calling thread the network of `namespace`."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{namespace}") as handle:
        if libc.setns(handle.fileno(), _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


def _run(*argv: str) -> str:
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise NotSupported(f"`{' '.join(argv)}` failed: {done.stderr.strip()}")
    return done.stdout
