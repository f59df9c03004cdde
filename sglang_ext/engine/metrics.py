"""Sessions and drafts on the worker's `/metrics`. Made in the scheduler process of the first rank only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from sglang_ext.exported import Exported
from sglang_ext.protocol import DraftCounters, SessionCounters
from sglang_ext.sessions import SessionTable

_SESSIONS = {
    "opened": "Sessions opened.",
    "refused": "Opens refused for want of a place.",
    "committed": "Sessions committed.",
    "closed": "Sessions closed before their commit.",
    "expired": "Sessions that ended because nobody called them for longer than their time to live.",
    "lost": "Sessions that ended by a fault or for want of memory; their callers fall back to a plain request.",
    "appends": "Appends taken.",
    "appended_tokens": "Tokens appended.",
    "early_pages": "KV pages pushed to the decode worker before the commit.",
    "commit_pages": "KV pages pushed to the decode worker at the commit and after it.",
    "lets_go": "Times the KV of a session was let go.",
    "recomputed_tokens": "Tokens computed again because their KV had been let go.",
}
_DRAFTS = {
    "requests": "Requests decoded with drafts.",
    "steps": "Steps of requests that are decoded with drafts.",
    "drafted": "Tokens that were drafted and verified.",
    "accepted": "Drafted tokens that became an answer's.",
}
_SESSIONS_NOW = Exported("graft_sessions", "gauge", "Sessions by state.", ("role", "state"))
_HELD = Exported("graft_session_held_tokens", "gauge", "Tokens whose KV is held for sessions.", ("role",))
_WITHOUT = Exported("graft_drafts_without_total", "counter", "Requests decoded without drafts.", ("reason",))


def exported() -> Iterator[Exported]:
    """All of them."""
    yield _SESSIONS_NOW
    yield _HELD
    for name, text in _SESSIONS.items():
        yield Exported(f"graft_session_{name}_total", "counter", text, ("role",))
    for name, text in _DRAFTS.items():
        yield Exported(f"graft_drafts_{name}_total", "counter", text)
    yield _WITHOUT


class _Counters:
    """Numbers that only grow, mirrored into Prometheus: each by its name behind a prefix, all with the same labels."""

    def __init__(self, prefix: str, texts: Mapping[str, str], labels: Mapping[str, str]) -> None:
        # SGLang points prometheus_client at its multiprocess directory first.
        from prometheus_client import Counter

        counters = {name: Counter(f"{prefix}_{name}", text, tuple(labels)) for name, text in texts.items()}
        self._counters = {name: each.labels(**labels) if labels else each for name, each in counters.items()}
        self._seen = dict.fromkeys(texts, 0)

    def publish(self, counts: msgspec.Struct) -> None:
        """`counts` has a field of each name."""
        for name, counter in self._counters.items():
            if (grown := getattr(counts, name) - self._seen[name]) > 0:
                counter.inc(grown)
                self._seen[name] += grown


class SessionMetrics:
    """Mirrors a table."""

    def __init__(self, role: str) -> None:
        from prometheus_client import Gauge

        self._counters = _Counters("graft_session", _SESSIONS, {"role": role})
        self._sessions, held = (
            Gauge(each.name, each.meaning, each.labels, multiprocess_mode="mostrecent")
            for each in (_SESSIONS_NOW, _HELD)
        )
        self._held = held.labels(role=role)
        self._role = role

    def publish(self, table: SessionTable) -> None:
        counters: SessionCounters = table.counters
        self._counters.publish(counters)
        states = [session.state for session in table]
        for state in ("open", "committed"):
            self._sessions.labels(role=self._role, state=state).set(states.count(state))
        self._held.set(table.held_tokens())


class DraftMetrics:
    """Mirrors what a drafter counts."""

    def __init__(self) -> None:
        from prometheus_client import Counter

        self._counters = _Counters("graft_drafts", _DRAFTS, {})
        self._without = Counter(_WITHOUT.name, _WITHOUT.meaning, _WITHOUT.labels)
        self._seen: dict[str, int] = {}

    def publish(self, counts: DraftCounters) -> None:
        self._counters.publish(counts)
        for reason, count in counts.without.items():
            self._without.labels(reason=reason).inc(count - self._seen.get(reason, 0))
        self._seen = dict(counts.without)
