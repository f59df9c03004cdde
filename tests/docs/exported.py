"""What the shell router and a worker's plugin export: their own text for Prometheus, after runs of every kind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from shell_router.core.append_cost import AppendCost
from shell_router.metrics import Metrics
from shell_router.service import Service
from shell_router.transport.fake import FakeEngine
from shell_router.transport.incremental import SessionCounts
from tests.shell_router.serving import limited_service
from tests.shell_router.telemetry.recorded import ended
from tests.shell_router.test_openai_schema import CASES

_WORKER = """
from prometheus_client import generate_latest
from sglang_ext.engine.metrics import DraftMetrics, SessionMetrics
from sglang_ext.protocol import DraftCounters
from sglang_ext.sessions import Limits, SessionTable
limits = Limits(
    page_size=4, vocabulary=9, max_prompt_tokens=64, max_sessions=1, max_held_tokens=64, max_ttl_s=1.0
)
SessionMetrics("prefill").publish(SessionTable(limits, clock=lambda: 0.0))
DraftMetrics().publish(DraftCounters(requests=1, without={"sampling": 1}))
print(generate_latest().decode())
"""


class Series(NamedTuple):
    """One of the exported series."""

    name: str
    labels: tuple[tuple[str, str], ...]


async def router_text() -> str:
    """Of a shell router, after runs that failed, were done, cut, degraded, exited early, had drafts or a stand-in."""
    metrics = Metrics(running=lambda: 0, queued=lambda: 0)
    metrics.watch_sessions(
        SessionCounts(open=lambda: 0, append_costs=lambda: {"http://p": AppendCost(pass_s=0.1, token_s=0.001)})
    )
    engines = (FakeEngine(drafts=2), FakeEngine(fail_at=lambda request: 2))
    services: list[Service] = [*map(limited_service, engines), *(case.service() for case in CASES.values())]
    for service in services:
        metrics.observe(await ended(service), 0.5)
    return metrics.render().decode()


def worker_text() -> str:
    """Of the plugin in a worker. In a process of its own: it keeps its metrics in the process's registry."""
    done = subprocess.run([sys.executable, "-c", _WORKER], capture_output=True, text=True, check=True)
    return done.stdout


def series_of(text: str) -> Iterable[Series]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield Series(sample.name, tuple(sorted(sample.labels.items())))


def labels_of(series: Iterable[Series]) -> dict[str, frozenset[str]]:
    """The labels of each name. Raises `ValueError` where they differ from series to series of one."""
    found: dict[str, frozenset[str]] = {}
    for name, labels in series:
        names = frozenset(dict(labels))
        if found.setdefault(name, names) != names:
            raise ValueError(f"{name} has labels {sorted(found[name])} and {sorted(names)}")
    return found
