"""What docs/ has for Prometheus and Grafana."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
PROMETHEUS = DOCS / "prometheus"
GRAFANA = DOCS / "grafana"
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))
_LABEL = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_VARIABLE = re.compile(r"\$\{?(\w+)\}?")


class Named(NamedTuple):
    """A query and where it stands."""

    place: str
    text: str
    labels: frozenset[str] = frozenset()
    """Those that the legend shows."""


def dashboard(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def panels(path: Path) -> list[dict[str, Any]]:
    """Those that show something: rows are headings."""
    return [panel for panel in dashboard(path)["panels"] if panel["type"] != "row"]


def queries() -> Iterator[Named]:
    """All queries of the dashboards, as they stand there."""
    for path in DASHBOARDS:
        for panel in panels(path):
            for target in panel["targets"]:
                legend = target["legendFormat"]
                labels = frozenset(_LABEL.findall(legend))
                yield Named(f"{path.stem}: {panel['title']}: {legend}", target["expr"], labels)


def alerts() -> list[dict[str, Any]]:
    document = yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def filled_in(text: str) -> str:
    """`text` without Grafana's variables: any tree, any mode, a rate over five minutes."""
    return _VARIABLE.sub(lambda found: "5m" if found[1] == "__rate_interval" else ".*", text)
