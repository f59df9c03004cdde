"""What Prometheus is told. It comes from the records of runs that have ended and from counts that are kept anyway, so
nothing is on a token's way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import get_args

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from shell_router.record import AgentRecord, CheckRecord, Fallback, RunRecord
from shell_router.transport.incremental import SessionCounts

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)
_SECONDS_A_CHECK = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SECONDS_A_TOKEN = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1)


class Metrics:
    """The metrics of one application, in a registry of its own."""

    def __init__(self, *, running: Callable[[], int], queued: Callable[[], int]) -> None:
        """`running` and `queued` count runs now; they are asked when the metrics are."""
        self._registry = CollectorRegistry()
        self._runs = self._counter("graft_runs_total", "Runs that have ended, by outcome.", "tree", "mode", "outcome")
        self._run = self._histogram("graft_run_seconds", "A run that is done, from its start to the end of the answer.")
        self._ttft = self._histogram("graft_ttft_seconds", "From a run's start to the first token of its answer.")
        self._queue = self._histogram("graft_queue_seconds", "Wait for a place, before a run's start.")
        self._tpot = self._histogram(
            "graft_tpot_seconds",
            "Time per token of the root after its first, of runs that are done. A stand-in's answer comes at once.",
            _SECONDS_A_TOKEN,
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
        self._hidden_tokens = self._counter(
            "graft_hidden_prefill_tokens_total",
            "Prompt tokens whose append had answered before the last precursor ended, without those taken back.",
        )
        self._taken_back = self._counter(
            "graft_taken_back_tokens_total", "Tokens sent in appends that turned out not to belong to the prompt."
        )
        self._held_back = self._counter(
            "graft_held_back_tokens_total",
            "Tokens of answers that are tokenized again and could be used only when these had ended.",
        )
        self._retokenized = self._counter(
            "graft_retokenized_prompts_total", "Prompts sent that hold answers which were tokenized again."
        )
        self._exits = self._counter(
            "graft_early_exits_total",
            "Checks that made agents needless, by the run's mode and that of its exit policy.",
            "tree",
            "mode",
            "exit_mode",
        )
        self._checks = self._counter(
            "graft_exit_checks_total",
            "Checks of a cluster's answers: `exit` made agents needless, `no_exit` did not or came too late, `error` "
            "has no verdict, and at `unanswered` the run was over first.",
            "tree",
            "outcome",
        )
        self._check = self._histogram(
            "graft_exit_check_seconds", "A check of a cluster's answers, until it had answered.", _SECONDS_A_CHECK
        )
        self._saved = self._counter(
            "graft_tokens_saved_total",
            "Tokens that cancelled and skipped answers might have had and were not generated, by the run's outcome: "
            "what `done` has is what early exits saved.",
            "tree",
            "outcome",
        )
        self._freed = self._counter(
            "graft_kv_freed_tokens_total",
            "Tokens whose KV was given back because an agent was cancelled, by the run's outcome.",
            "tree",
            "outcome",
        )
        self._agents = self._counter(
            "graft_agents_total", "Agents of runs that have ended; `skipped` were never asked.", "model", "state"
        )
        self._retries = self._counter(
            "graft_answer_retries_total", "How often an answer was asked for again, because a request failed.", "model"
        )
        self._resumes = self._counter(
            "graft_answers_resumed_total", "Answers that broke off and were gone on with where they were.", "model"
        )
        self._resumed_tokens = self._counter(
            "graft_resumed_tokens_total", "Tokens that these answers had when they were last gone on with.", "model"
        )
        self._degraded = self._counter(
            "graft_runs_degraded_total", "Runs that are done although an agent failed.", "tree", "mode"
        )
        self._stood_in = self._counter(
            "graft_runs_stood_in_total",
            "Runs answered by another agent than the root: `bypass` because the answers it would have read agreed, "
            "`fallback` because it failed or the deadline had come.",
            "tree",
            "mode",
            "reason",
        )
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
            root = _root(record)
            if record.answered_by != root.id:
                bypassed = any(root.id in check.cancelled for check in record.checks)
                self._stood_in.labels(tree, mode, "bypass" if bypassed else "fallback").inc()
            elif (tpot := _seconds_per_token(root)) is not None:
                self._tpot.labels(tree, mode).observe(tpot)
        if record.degraded:
            self._degraded.labels(tree, mode).inc()
        for check in record.checks:
            outcome = _outcome(check)
            self._checks.labels(tree, outcome).inc()
            if check.answered_s is not None:
                self._check.labels(tree, mode).observe(check.answered_s - check.asked_s)
            if outcome == "exit":
                self._exits.labels(tree, mode, record.early_exit.mode).inc()
        self._saved.labels(tree, record.state).inc(record.tokens_saved)
        self._freed.labels(tree, record.state).inc(record.kv_freed_tokens)
        for agent in record.agents:
            self._observe_agent(agent)

    def watch_sessions(self, counts: SessionCounts) -> None:
        """Tell of `counts` as well; they are read when the metrics are."""
        self._registry.register(_Sessions(counts))

    def render(self) -> bytes:
        """All metrics as `CONTENT_TYPE`."""
        return generate_latest(self._registry)

    def _observe_agent(self, agent: AgentRecord) -> None:
        self._agents.labels(agent.model, agent.state).inc()
        self._retries.labels(agent.model).inc(max(0, agent.attempts - 1))
        self._resumes.labels(agent.model).inc(agent.resumed_tokens > 0)
        self._resumed_tokens.labels(agent.model).inc(agent.resumed_tokens)
        self._hidden_tokens.inc(agent.hidden_prefill_tokens)
        self._taken_back.inc(agent.taken_back_tokens)
        if agent.committed_s is not None:
            self._held_back.inc(agent.held_back_tokens)
            # The end of an answer may always change, so that something of each is held back.
            self._retokenized.inc(agent.held_back_tokens > 0)
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


def _outcome(check: CheckRecord) -> str:
    if check.error is not None:
        return "error"
    if check.verdict is None:
        return "unanswered"
    return "exit" if check.cancelled else "no_exit"


def _seconds_per_token(agent: AgentRecord) -> float | None:
    if agent.first_token_s is None or agent.ended_s is None or agent.output_tokens < 2:
        return None
    return (agent.ended_s - agent.first_token_s) / (agent.output_tokens - 1)
