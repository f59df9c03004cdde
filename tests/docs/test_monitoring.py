"""What dashboards and alerts ask for is exported, under those names and with those labels; where Prometheus' own
`promtool` is at hand, that it takes each query, that each finds something, and that each alert fires when it should."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import yaml

from tests.docs.exported import Series, labels_of, router_text, series_of, worker_text
from tests.docs.pages import DASHBOARDS, GRAFANA, PROMETHEUS, Named, alerts, dashboard, filled_in, panels, queries
from tests.docs.promql import read

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not on PATH (Debian and Ubuntu: apt-get install prometheus)"
)
ROUTER = {"job": "graft-shell-router", "instance": "127.0.0.1:8000"}
WORKER = {"job": "graft-workers", "instance": "127.0.0.1:30001"}
OF_A_TARGET = frozenset({"job", "instance"})
"""Labels that Prometheus adds."""
SGLANG = re.compile(r"sglang:\w+")


@cache
def exported() -> tuple[Series, ...]:
    """All series of a shell router and of a worker's plugin, as Prometheus keeps them."""
    texts = ((ROUTER, asyncio.run(router_text())), (WORKER, worker_text()))
    return tuple(Series(name, (*labels, *target.items())) for target, text in texts for name, labels in series_of(text))


def labels_by_name(target: dict[str, str]) -> dict[str, frozenset[str]]:
    """Of what `target` exports."""
    return labels_of(series for series in exported() if target.items() <= dict(series.labels).items())


@cache
def of_sglang() -> frozenset[str]:
    """Names in SGLang's source; empty where it is not installed."""
    spec = importlib.util.find_spec("sglang")
    if spec is None or spec.submodule_search_locations is None:
        return frozenset()
    folder = Path(next(iter(spec.submodule_search_locations))) / "srt" / "observability"
    return frozenset(name for file in folder.glob("*.py") for name in SGLANG.findall(file.read_text()))


ASKED = [*queries(), *(Named(f"alert {rule['alert']}", rule["expr"]) for rule in alerts())]


@pytest.mark.parametrize("query", ASKED, ids=lambda query: query.place)
def test_what_is_asked_for_is_exported(query: Named) -> None:
    known, of_workers = labels_by_name(ROUTER), labels_by_name(WORKER)
    found = read(filled_in(query.text))
    assert found.matched, "it asks for something"
    labels: set[str] = set(OF_A_TARGET)
    for name, matched in found.matched.items():
        if name == "up":
            assert matched <= OF_A_TARGET
        elif SGLANG.fullmatch(name):
            assert not matched
            if of_sglang():
                assert name in of_sglang()
        else:
            assert name in known or name in of_workers, f"{name} is not exported"
            assert not (name in known and name in of_workers), (
                f"{name} is of routers and of workers: they would be added"
            )
            own = known.get(name) or of_workers[name]
            assert matched <= own, f"{name} has labels {sorted(own)}"
            labels |= own
    assert found.grouped <= labels


def test_labels_in_legends_are_there() -> None:
    known = labels_by_name(WORKER) | labels_by_name(ROUTER)
    for query in queries():
        found = read(filled_in(query.text))
        of_metrics: set[str] = set().union(*(known.get(name, OF_A_TARGET) for name in found.matched))
        assert query.labels <= (found.grouped or of_metrics), query.place


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_a_dashboard_can_be_provisioned(path: Path) -> None:
    document = dashboard(path)
    assert document["uid"]
    assert "id" not in document, "Grafana gives it"
    everything = document["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    squares: set[tuple[int, int]] = set()
    for panel in everything:
        at = panel["gridPos"]
        own = set(itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])))
        assert at["x"] + at["w"] <= 24
        assert not own & squares, f"{panel['title']} lies over another panel"
        squares |= own
    for panel in panels(path):
        assert panel["targets"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert {source["uid"] for source in sources} == {"${datasource}"}
    names = {variable["name"] for variable in document["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(everything))) - {"__rate_interval"}
    assert used <= names


def test_provisioning_is_read_as_grafana_does() -> None:
    sources = yaml.safe_load((GRAFANA / "provisioning" / "datasources.yaml").read_text())
    boards = yaml.safe_load((GRAFANA / "provisioning" / "dashboards.yaml").read_text())
    assert sources["apiVersion"] == boards["apiVersion"] == 1
    assert [source["type"] for source in sources["datasources"]] == ["prometheus"]
    assert [provider["type"] for provider in boards["providers"]] == ["file"]
    interval = yaml.safe_load((PROMETHEUS / "prometheus.yaml").read_text())["global"]["scrape_interval"]
    assert sources["datasources"][0]["jsonData"]["timeInterval"] == interval


def promtool(*arguments: str) -> None:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def line(name: str, values: str, labels: dict[str, str]) -> dict[str, str]:
    """A series of promtool's tests."""
    told = ",".join(f"{label}={json.dumps(value)}" for label, value in labels.items())
    return {"series": f"{name}{{{told}}}", "values": values}


def check_in_promtool(folder: Path, series: Sequence[dict[str, str]], expected: dict[str, str], at: str) -> None:
    """`expected` has for queries the samples that they must give at `at`, as `labels value`."""
    tests = [
        {
            "expr": query,
            "eval_time": at,
            "exp_samples": [
                {"labels": labels, "value": float(value)} for labels, value in re.findall(r"(\{[^}]*\}) (\S+)", samples)
            ],
        }
        for query, samples in expected.items()
    ]
    shutil.copy(PROMETHEUS / "alerts.yaml", folder)
    document = {
        "rule_files": ["alerts.yaml"],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": list(series), "promql_expr_test": tests}],
    }
    (folder / "test.yaml").write_text(yaml.safe_dump(document))
    promtool("test", "rules", str(folder / "test.yaml"))


@needs_promtool
def test_prometheus_takes_its_configuration() -> None:
    promtool("check", "config", str(PROMETHEUS / "prometheus.yaml"))


@needs_promtool
def test_prometheus_takes_every_query_and_each_finds_something(tmp_path: Path) -> None:
    """On series with the names and labels that are exported, each of which grows by one a minute."""
    grown = [line(name, "0+1x30", dict(labels)) for name, labels in exported() if not name.endswith("_created")]
    grown += [line("up", "1x30", target) for target in (ROUTER, WORKER)]
    grown += [
        line(name, "0+1x30", WORKER)
        for name in sorted({name for query in ASKED for name in SGLANG.findall(query.text)})
    ]
    found = {f"clamp_max(count({filled_in(query.text)}), 1)": "{} 1" for query in queries()}
    check_in_promtool(tmp_path, grown, found, "20m")


RUNS = {"tree": "t", "mode": "spliced"}
HEALTHY: list[tuple[str, dict[str, str], str]] = [
    ("up", ROUTER, "1x40"),
    ("up", WORKER, "1x40"),
    ("graft_runs_total", {**RUNS, "outcome": "done"}, "0+10x40"),
    ("graft_runs_total", {**RUNS, "outcome": "failed"}, "0x40"),
    ("graft_runs_degraded_total", RUNS, "0x40"),
    *(("graft_queue_seconds_bucket", {**RUNS, "le": le}, "0+10x40") for le in ("0.1", "15", "30", "+Inf")),
    *(("graft_ttft_seconds_bucket", {**RUNS, "le": le}, "0+10x40") for le in ("8", "60", "120", "+Inf")),
    ("graft_answer_retries_total", {"model": "m"}, "0x40"),
    ("graft_agents_total", {"model": "m", "state": "done"}, "0+100x40"),
    ("graft_agents_total", {"model": "m", "state": "skipped"}, "0+100x40"),
    ("graft_session_fallbacks_total", {"reason": "not_offered"}, "0+50x40"),
    ("graft_session_fallbacks_total", {"reason": "saturated"}, "0x40"),
    ("graft_sessions_opened_total", {}, "0+50x40"),
    ("graft_session_lost_total", {**WORKER, "role": "decode"}, "0x40"),
    ("graft_session_expired_total", {**WORKER, "role": "decode"}, "0x40"),
    ("graft_exit_checks_total", {"tree": "t", "outcome": "exit"}, "0+10x40"),
    ("graft_exit_checks_total", {"tree": "t", "outcome": "error"}, "0x40"),
    ("sglang:token_usage", WORKER, "0.5x40"),
]
TROUBLES: dict[str, list[tuple[str, dict[str, str], str]]] = {
    "GraftShellRouterDown": [("up", ROUTER, "0x40")],
    "GraftWorkerDown": [("up", {**WORKER, "job": "serving/graft-workers"}, "0x40")],
    "GraftRunsFail": [("graft_runs_total", {**RUNS, "outcome": "failed"}, "0+1x40")],
    "GraftRunsDegraded": [("graft_runs_degraded_total", RUNS, "0+2x40")],
    "GraftRunsWait": [("graft_queue_seconds_bucket", {**RUNS, "le": le}, "0+5x40") for le in ("0.1", "15")],
    "GraftFirstTokenSlow": [("graft_ttft_seconds_bucket", {**RUNS, "le": le}, "0+5x40") for le in ("8", "60")],
    "GraftAnswersAskedAgain": [("graft_answer_retries_total", {"model": "m"}, "0+10x40")],
    "GraftSessionsFallBack": [("graft_session_fallbacks_total", {"reason": "saturated"}, "0+10x40")],
    "GraftSessionsLost": [("graft_session_lost_total", {**WORKER, "role": "decode"}, "0+1x40")],
    "GraftSessionsExpire": [("graft_session_expired_total", {**WORKER, "role": "decode"}, "0+1x40")],
    "GraftExitChecksFail": [("graft_exit_checks_total", {"tree": "t", "outcome": "error"}, "0+3x40")],
    "GraftKvPoolFull": [("sglang:token_usage", WORKER, "0.97x40")],
}


def with_trouble(trouble: str | None) -> list[dict[str, str]]:
    """All that is well, and in its place what is not."""
    changed = {
        (name, tuple(sorted(labels.items()))): values for name, labels, values in TROUBLES.get(trouble or "", [])
    }
    kept = {(name, tuple(sorted(labels.items()))): values for name, labels, values in HEALTHY}
    return [line(name, values, dict(labels)) for (name, labels), values in (kept | changed).items()]


def test_each_alert_has_its_trouble() -> None:
    assert {rule["alert"] for rule in alerts()} == TROUBLES.keys()
    assert {rule["labels"]["severity"] for rule in alerts()} == {"critical", "warning"}


@needs_promtool
@pytest.mark.parametrize("trouble", [None, *TROUBLES])
def test_each_alert_fires_when_it_should_and_no_other(tmp_path: Path, trouble: str | None) -> None:
    expected = "" if trouble is None else f'{{alertname="{trouble}"}} 1'
    firing = 'count by (alertname) (ALERTS{alertstate="firing"})'
    check_in_promtool(tmp_path, with_trouble(trouble), {firing: expected}, "35m")
