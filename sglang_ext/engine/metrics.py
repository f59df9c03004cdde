"""Sessions on the worker's `/metrics`."""

from __future__ import annotations

import msgspec

from sglang_ext.protocol import SessionCounters
from sglang_ext.sessions import SessionTable

_COUNTERS = {
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


class Metrics:
    """Mirrors a table's counters into Prometheus. Made in the scheduler process of the first rank only."""

    def __init__(self, role: str) -> None:
        # SGLang points prometheus_client at its multiprocess directory first.
        from prometheus_client import Counter, Gauge

        labels = {"role": role}
        self._counters = {
            name: Counter(f"graft_session_{name}", text, labels.keys()).labels(**labels)
            for name, text in _COUNTERS.items()
        }
        self._sessions = Gauge(
            "graft_sessions", "Sessions by state.", (*labels, "state"), multiprocess_mode="mostrecent"
        )
        self._held = Gauge(
            "graft_session_held_tokens", "Tokens whose KV is held for sessions.", labels, multiprocess_mode="mostrecent"
        ).labels(**labels)
        self._role = role
        self._seen = SessionCounters()

    def publish(self, table: SessionTable) -> None:
        counters = table.counters
        for name, counter in self._counters.items():
            if (grown := getattr(counters, name) - getattr(self._seen, name)) > 0:
                counter.inc(grown)
        self._seen = msgspec.structs.replace(counters)
        states = [session.state for session in table]
        for state in ("open", "committed"):
            self._sessions.labels(role=self._role, state=state).set(states.count(state))
        self._held.set(table.held_tokens())
