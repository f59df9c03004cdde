"""What Prometheus is told. It comes from the records of runs that have ended and from counts that are kept anyway, so
nothing is on a token's way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import get_args

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from shell_router.record import AgentRecord, Fallback, RunRecord
from shell_router.transport.incremental import SessionCounts

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)
_SECONDS_A_TOKEN = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1)


class Metrics:
    """The metrics of one application, in a registry of its own."""

    def __init__(self, *, running: Callable[[], int], queued: Callable[[], int]) -> None:
        """`running` and `queued` count runs now; they are asked when the metrics are."""
        self._registry = CollectorRegistry()
        self._runs = self._counter("graft_runs_total", "Runs that have ended, by outcome.", "tree", "mode", "outcome")
        self._run = self._histogram("graft_run_seconds", "A run that is done, from its start to the end of the answer.")
        self._ttft = self._histogram("graft_ttft_seconds", "From a run's start to the first token of its root.")
        self._queue = self._histogram("graft_queue_seconds", "Wait for a place, before a run's start.")
        self._tpot = self._histogram(
            "graft_tpot_seconds", "Time per token of the root after its first, of runs that are done.", _SECONDS_A_TOKEN
        )
        self._tokens = self._counter(
            "graft_agent_tokens_total",
            "Tokens of all agents whose answer was asked for: of prompts, of these cached, and of answers.",
            "kind",
        )
        self._prefill = self._counter(
            "graft_prefill_seconds_total",
            "Prefill of successors: hidden beside decoding precursors, and exposed after the last one's end.",
            "visibility",
        )
        self._appended_tokens = self._counter("graft_appended_tokens_total", "Prompt tokens sent in appends.")
        self._appends = self._counter("graft_appends_total", "Appends to prompts that were still being written.")
        self._gauge("graft_runs_running", "Runs that execute.", running)
        self._gauge("graft_runs_queued", "Runs that wait for a place.", queued)

    def observe(self, record: RunRecord, queued_s: float) -> None:
        """Take up a run that has ended, after `queued_s` seconds in the queue."""
        tree, mode = record.tree, record.mode
        self._runs.labels(tree, mode, record.state).inc()
        self._queue.labels(tree, mode).observe(queued_s)
        if record.ttft_s is not None:
            self._ttft.labels(tree, mode).observe(record.ttft_s)
        if record.duration_s is not None:
            self._run.labels(tree, mode).observe(record.duration_s)
            tpot = _seconds_per_token(_root(record))
            if tpot is not None:
                self._tpot.labels(tree, mode).observe(tpot)
        for agent in record.agents:
            self._observe_agent(agent)

    def watch_sessions(self, counts: SessionCounts) -> None:
        """Tell of `counts` as well; they are read when the metrics are."""
        self._registry.register(_Sessions(counts))

    def render(self) -> bytes:
        """All metrics as `CONTENT_TYPE`."""
        return generate_latest(self._registry)

    def _observe_agent(self, agent: AgentRecord) -> None:
        if agent.committed_s is not None:
            self._tokens.labels("prompt").inc(agent.prompt_tokens)
            self._tokens.labels("cached").inc(agent.cached_tokens)
            self._tokens.labels("completion").inc(agent.output_tokens)
        if agent.precursors:
            self._prefill.labels("hidden").inc(agent.hidden_prefill_s)
            self._prefill.labels("exposed").inc(agent.exposed_prefill_s or 0)
        self._appends.inc(len(agent.chunks))
        self._appended_tokens.inc(sum(chunk.tokens for chunk in agent.chunks))

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(name, meaning, labels, registry=self._registry)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
        return Histogram(name, meaning, ("tree", "mode"), buckets=buckets, registry=self._registry)

    def _gauge(self, name: str, meaning: str, value: Callable[[], int]) -> None:
        Gauge(name, meaning, registry=self._registry).set_function(value)


class _Sessions(Collector):
    """Sessions of incremental prefill."""

    def __init__(self, counts: SessionCounts) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        counts = self._counts
        yield GaugeMetricFamily("graft_sessions_open", "Sessions of incremental prefill that are open.", counts.open())
        for name, meaning, value in (
            ("graft_sessions_opened", "Sessions of incremental prefill opened on a pair.", counts.opened),
            ("graft_session_appends", "Appends that sessions have answered, opens with tokens too.", counts.appends),
            ("graft_session_appended_tokens", "Prompt tokens of these appends.", counts.appended_tokens),
        ):
            yield CounterMetricFamily(name, meaning, value)
        fallbacks = CounterMetricFamily(
            "graft_session_fallbacks",
            "Prompts that were meant for a session and went as plain requests.",
            labels=["reason"],
        )
        for reason in get_args(Fallback):
            fallbacks.add_metric([reason], counts.fallbacks[reason])
        yield fallbacks


def _root(record: RunRecord) -> AgentRecord:
    read = {precursor for agent in record.agents for precursor in agent.precursors}
    return next(agent for agent in record.agents if agent.id not in read)


def _seconds_per_token(agent: AgentRecord) -> float | None:
    if agent.first_token_s is None or agent.ended_s is None or agent.output_tokens < 2:
        return None
    return (agent.ended_s - agent.first_token_s) / (agent.output_tokens - 1)
