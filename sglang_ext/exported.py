"""What is said of a metric, for those who want to know which there are before anything is counted."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Exported(NamedTuple):
    """A metric of Prometheus'. The `name` of a counter ends with `_total`."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    labels: tuple[str, ...] = ()
