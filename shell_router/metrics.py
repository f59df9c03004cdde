"""What Prometheus is told. It comes from the records of runs that have ended and from counts that are kept anyway, so
nothing is on a token's way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, get_args

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from sglang_ext.exported import Exported
from shell_router.record import AgentRecord, Fallback, RunRecord
from shell_router.transport.incremental import SessionCounts

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)
_SECONDS_A_CHECK = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SECONDS_A_TOKEN = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1)


class _Metric(NamedTuple):
    name: str
    meaning: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_RUN = ("tree", "mode")

_COUNTERS = {
    "runs": _Metric("graft_runs_total", "Runs that have ended, by outcome.", (*_RUN, "outcome")),
    "tokens": _Metric(
        "graft_agent_tokens_total",
        "Tokens of all agents whose answer was asked for: of prompts, of these cached, of answers, of these thinking.",
        ("kind",),
    ),
    "prefill": _Metric(
        "graft_prefill_seconds_total",
        "Prefill of successors: hidden beside decoding precursors, and exposed after the last one's end.",
        ("visibility",),
    ),
    "appended_tokens": _Metric("graft_appended_tokens_total", "Prompt tokens sent in appends."),
    "appends": _Metric("graft_appends_total", "Appends to prompts that were still being written."),
    "hidden_tokens": _Metric(
        "graft_hidden_prefill_tokens_total",
        "Prompt tokens whose append had answered before the last precursor ended, without those taken back.",
    ),
    "taken_back": _Metric(
        "graft_taken_back_tokens_total", "Tokens sent in appends that turned out not to belong to the prompt."
    ),
    "held_back": _Metric(
        "graft_held_back_tokens_total",
        "Tokens of answers that are tokenized again and could be used only when these had ended.",
    ),
    "retokenized": _Metric(
        "graft_retokenized_prompts_total", "Prompts sent that hold answers which were tokenized again."
    ),
    "exits": _Metric(
        "graft_early_exits_total",
        "Checks that made agents needless, by the run's mode and that of its exit policy.",
        (*_RUN, "exit_mode"),
    ),
    "checks": _Metric(
        "graft_exit_checks_total",
        "Checks of a cluster's answers: `exit` made agents needless, `nobody_left` came too late for that, "
        "after `goes_on` all was waited for, `error` has no verdict, and at `unanswered` the run was over "
        "first.",
        ("tree", "outcome"),
    ),
    "saved": _Metric(
        "graft_tokens_saved_total",
        "Tokens that cancelled and skipped answers might have had and were not generated, by the run's "
        "outcome: what `done` has is what early exits saved.",
        ("tree", "outcome"),
    ),
    "freed": _Metric(
        "graft_kv_freed_tokens_total",
        "Tokens whose KV was given back because an agent was cancelled, by the run's outcome.",
        ("tree", "outcome"),
    ),
    "agents": _Metric(
        "graft_agents_total", "Agents of runs that have ended; `skipped` were never asked.", ("model", "state")
    ),
    "retries": _Metric(
        "graft_answer_retries_total", "How often an answer was asked for again, because a request failed.", ("model",)
    ),
    "resumes": _Metric(
        "graft_answers_resumed_total", "Answers that broke off and were gone on with where they were.", ("model",)
    ),
    "resumed_tokens": _Metric(
        "graft_resumed_tokens_total", "Tokens that these answers had when they were last gone on with.", ("model",)
    ),
    "draft_steps": _Metric(
        "graft_draft_steps_total",
        "Steps in which answers were decoded with drafts; each made a token beside the drafts that were accepted.",
        ("model", "layer"),
    ),
    "drafts": _Metric(
        "graft_draft_tokens_total",
        "Tokens that were drafted in these steps, accepted as the answer's or refused.",
        ("model", "layer", "outcome"),
    ),
    "degraded": _Metric("graft_runs_degraded_total", "Runs that are done although an agent failed.", _RUN),
    "stood_in": _Metric(
        "graft_runs_stood_in_total",
        "Runs answered by another agent than the root: `bypass` because the answers it would have read "
        "agreed, `fallback` because it failed or the deadline had come.",
        (*_RUN, "reason"),
    ),
}
_HISTOGRAMS = {
    "run": _Metric("graft_run_seconds", "A run that is done, from its start to the end of the answer.", _RUN, _SECONDS),
    "ttft": _Metric("graft_ttft_seconds", "From a run's start to the first token of its answer.", _RUN, _SECONDS),
    "queue": _Metric("graft_queue_seconds", "Wait for a place, before a run's start.", _RUN, _SECONDS),
    "tpot": _Metric(
        "graft_tpot_seconds",
        "Time per token of the root after its first, of runs that are done. A stand-in's answer comes at once.",
        _RUN,
        _SECONDS_A_TOKEN,
    ),
    "check": _Metric(
        "graft_exit_check_seconds", "A check of a cluster's answers, until it had answered.", _RUN, _SECONDS_A_CHECK
    ),
}
_RUNNING = Exported("graft_runs_running", "gauge", "Runs that execute.")
_QUEUED = Exported("graft_runs_queued", "gauge", "Runs that wait for a place.")
_OPEN = Exported("graft_sessions_open", "gauge", "Sessions of incremental prefill that are open.")
_OPENED = Exported("graft_sessions_opened_total", "counter", "Sessions of incremental prefill opened on a pair.")
_APPENDS = Exported(
    "graft_session_appends_total", "counter", "Appends that sessions have answered, opens with tokens too."
)
_APPENDED = Exported("graft_session_appended_tokens_total", "counter", "Prompt tokens of these appends.")
_FALLBACKS = Exported(
    "graft_session_fallbacks_total",
    "counter",
    "Prompts that were meant for a session and went as plain requests.",
    ("reason",),
)
_COST = Exported(
    "graft_append_cost_seconds",
    "gauge",
    "What an append costs on a prefill worker: its `pass`, its `call`, each `token` and each `pair` of a token and one "
    "before it.",
    ("worker", "of"),
)
_PRICE = Exported(
    "graft_append_price",
    "gauge",
    "How much of the time of an append's pass others go without: 0 on a worker that has nothing else to do, 1 where "
    "decode has the same card.",
    ("worker",),
)


def exported() -> Iterator[Exported]:
    """All of them, those of sessions too, which a router has whose workers have any."""
    yield from (_RUNNING, _QUEUED)
    yield from (Exported(each.name, "counter", each.meaning, each.labels) for each in _COUNTERS.values())
    yield from (Exported(each.name, "histogram", each.meaning, each.labels) for each in _HISTOGRAMS.values())
    yield from (_OPEN, _OPENED, _APPENDS, _APPENDED, _FALLBACKS, _COST, _PRICE)


class Metrics:
    """The metrics of one application, in a registry of its own."""

    def __init__(self, *, running: Callable[[], int], queued: Callable[[], int]) -> None:
        """`running` and `queued` count runs now; they are asked when the metrics are."""
        self._registry = CollectorRegistry()
        self._counters = {
            key: Counter(each.name, each.meaning, each.labels, registry=self._registry)
            for key, each in _COUNTERS.items()
        }
        self._histograms = {
            key: Histogram(each.name, each.meaning, each.labels, buckets=each.buckets, registry=self._registry)
            for key, each in _HISTOGRAMS.items()
        }
        for each, value in ((_RUNNING, running), (_QUEUED, queued)):
            Gauge(each.name, each.meaning, registry=self._registry).set_function(value)

    def observe(self, record: RunRecord, queued_s: float) -> None:
        """Take up a run that has ended, after `queued_s` seconds in the queue."""
        tree, mode = record.tree, record.mode
        self._counters["runs"].labels(tree, mode, record.state).inc()
        self._histograms["queue"].labels(tree, mode).observe(queued_s)
        if record.ttft_s is not None:
            self._histograms["ttft"].labels(tree, mode).observe(record.ttft_s)
        if record.state == "done" and record.duration_s is not None:
            self._histograms["run"].labels(tree, mode).observe(record.duration_s)
            root = record.root
            if record.answered_by != root.id:
                bypassed = any(root.id in check.cancelled for check in record.checks)
                self._counters["stood_in"].labels(tree, mode, "bypass" if bypassed else "fallback").inc()
            elif (tpot := _seconds_per_token(root)) is not None:
                self._histograms["tpot"].labels(tree, mode).observe(tpot)
        if record.degraded:
            self._counters["degraded"].labels(tree, mode).inc()
        for check in record.checks:
            self._counters["checks"].labels(tree, check.outcome).inc()
            if check.answered_s is not None:
                self._histograms["check"].labels(tree, mode).observe(check.answered_s - check.asked_s)
            if check.outcome == "exit":
                self._counters["exits"].labels(tree, mode, record.early_exit.mode).inc()
        self._counters["saved"].labels(tree, record.state).inc(record.tokens_saved)
        self._counters["freed"].labels(tree, record.state).inc(record.kv_freed_tokens)
        for agent in record.agents:
            self._observe_agent(agent)

    def watch_sessions(self, counts: SessionCounts) -> None:
        """Tell of `counts` as well; they are read when the metrics are."""
        self._registry.register(_Sessions(counts))

    def render(self) -> bytes:
        """All metrics as `CONTENT_TYPE`."""
        return generate_latest(self._registry)

    def _observe_agent(self, agent: AgentRecord) -> None:
        self._counters["agents"].labels(agent.model, agent.state).inc()
        self._counters["retries"].labels(agent.model).inc(max(0, agent.attempts - 1))
        self._counters["resumes"].labels(agent.model).inc(agent.resumed_tokens > 0)
        self._counters["resumed_tokens"].labels(agent.model).inc(agent.resumed_tokens)
        self._counters["hidden_tokens"].inc(agent.hidden_prefill_tokens)
        self._counters["taken_back"].inc(agent.taken_back_tokens)
        if agent.committed_s is not None:
            self._counters["held_back"].inc(agent.held_back_tokens)
            # The end of an answer may always change, so that something of each is held back.
            self._counters["retokenized"].inc(agent.held_back_tokens > 0)
            self._counters["tokens"].labels("prompt").inc(agent.prompt_tokens)
            self._counters["tokens"].labels("cached").inc(agent.cached_tokens)
            self._counters["tokens"].labels("completion").inc(agent.output_tokens)
            self._counters["tokens"].labels("thinking").inc(agent.thinking_tokens)
        if (drafts := agent.drafts) is not None:
            place = (agent.model, str(agent.layer))
            self._counters["draft_steps"].labels(*place).inc(drafts.steps)
            self._counters["drafts"].labels(*place, "accepted").inc(drafts.accepted)
            self._counters["drafts"].labels(*place, "refused").inc(max(0, drafts.drafted - drafts.accepted))
        if agent.precursors:
            self._counters["prefill"].labels("hidden").inc(agent.hidden_prefill_s)
            self._counters["prefill"].labels("exposed").inc(agent.exposed_prefill_s or 0)
        self._counters["appends"].inc(len(agent.chunks))
        self._counters["appended_tokens"].inc(sum(chunk.tokens for chunk in agent.chunks))


class _Sessions(Collector):
    """Sessions of incremental prefill."""

    def __init__(self, counts: SessionCounts) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        counts = self._counts
        yield GaugeMetricFamily(_OPEN.name, _OPEN.meaning, counts.open())
        for each, value in (
            (_OPENED, counts.opened),
            (_APPENDS, counts.appends),
            (_APPENDED, counts.appended_tokens),
        ):
            yield CounterMetricFamily(each.name, each.meaning, value)
        fallbacks = CounterMetricFamily(_FALLBACKS.name, _FALLBACKS.meaning, labels=_FALLBACKS.labels)
        for reason in get_args(Fallback):
            fallbacks.add_metric([reason], counts.fallbacks[reason])
        yield fallbacks
        costs = GaugeMetricFamily(_COST.name, _COST.meaning, labels=_COST.labels)
        for worker, cost in counts.append_costs().items():
            for of, seconds in (
                ("pass", cost.pass_s),
                ("call", cost.call_s),
                ("token", cost.token_s),
                ("pair", cost.pair_s),
            ):
                costs.add_metric([worker, of], seconds)
        yield costs
        prices = GaugeMetricFamily(_PRICE.name, _PRICE.meaning, labels=_PRICE.labels)
        for worker, cost in counts.append_costs().items():
            prices.add_metric([worker], cost.price)
        yield prices


def _seconds_per_token(agent: AgentRecord) -> float | None:
    if agent.first_token_s is None or agent.ended_s is None or agent.output_tokens < 2:
        return None
    return (agent.ended_s - agent.first_token_s) / (agent.output_tokens - 1)
