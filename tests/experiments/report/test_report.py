"""`graft report`: folders of known numbers in, three files out."""

from __future__ import annotations

import base64
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest

from experiments.kernel.environment import Environment
from experiments.kernel.folder import Session
from experiments.load.block import Block, BlockKey
from experiments.load.folder import LoadFolder
from experiments.load.ramp import Knee
from experiments.load.report import make_report
from experiments.questions import Origin, QuestionsConfig
from experiments.report.numbers import checks, slowest_path, timeline_runs, waterfall
from experiments.settings.aggregate import SettingAggregate
from experiments.settings.config import ExperimentConfig, SettingConfig
from experiments.settings.result import RunResult
from experiments.settings.summary import RunFolder, Summary, summarize
from graft.cli import WRONG
from graft.cli import main as graft
from shell_router.core.early_exit import Verdict
from shell_router.options import RunOptions
from shell_router.record import CheckRecord, RunRecord
from tests.commands import command
from tests.experiments.load.test_numbers import config as load_config
from tests.experiments.load.test_numbers import sample
from tests.experiments.records import make_record, make_result
from tests.fakes.shell_router import FakeRouter

main = command("report")
graft_run = command("run")

SECRET = "How many?"
"""The text of all questions of `make_result`."""
VOID = {"meta", "img", "br", "link"}
ENVIRONMENT = Environment(
    versions={"graft": "0.1.0", "sglang": None},
    commit="a" * 40,
    uncommitted_changes=False,
    platform="Linux",
    python="3.11.0",
    cpu="CPU <one> & only",
    cores=8,
    usable_cores=4,
    memory_bytes=2**34,
    gpus=(),
)
ORIGIN = Origin(benchmark="gsm8k", split="test", held=48, full_split="test", full_size=1319, read="the sample")
CONFIG = ExperimentConfig(
    name="small",
    cluster="none.json",
    settings=tuple(
        SettingConfig(name=mode, tree="tree_3_1", graft=RunOptions(mode=mode)) for mode in ("blocking", "spliced")
    ),
    questions=QuestionsConfig(source="gsm8k_sample", count=3),
)


def results() -> list[RunResult]:
    """Three questions in two settings, a warm-up and a run that failed, quoting its question."""
    runs = [make_result("blocking", question="w", warmup=True)]
    for number, latency in enumerate((20.0, 24.0, 22.0)):
        runs.append(make_result("blocking", question=f"q{number}", latency_s=latency))
        answer = "The answer is 17." if number == 1 else "The answer is 18."
        runs.append(make_result("spliced", question=f"q{number}", latency_s=latency * 0.75, answer=answer))
    runs.append(make_result("blocking", question="q3", error=f"the server said <no> to {SECRET!r}"))
    runs.append(make_result("spliced", question="q3"))
    return runs


def write_folder(
    path: Path,
    runs: list[RunResult] | None = None,
    environment: Environment = ENVIRONMENT,
    config: ExperimentConfig = CONFIG,
) -> Summary:
    made = results() if runs is None else runs
    folder = RunFolder.create(path, config)
    summary = summarize(
        name=path.name,
        config=config,
        origin=ORIGIN,
        sessions=[Session(url="http://127.0.0.1:1", environment=environment, started=1_700_000_000.0)],
        ended=1_700_000_600.0,
        plan=[run.step for run in made],
        results=made,
    )
    folder.finish(summary, timeline=False)
    return summary


def check(*, cancelled: tuple[str, ...] = (), error: str | None = None, **verdict: Any) -> CheckRecord:
    return CheckRecord(
        cluster=0,
        step=2,
        agents=("p1", "p2"),
        asked_s=1.0,
        answered_s=1.1,
        likeness=(0.7,),
        ballots=None,
        verdict=Verdict(**verdict) if verdict else None,
        error=error,
        cancelled=cancelled,
    )


CHECKS = (
    check(exits=True, quality=0.9, cancelled=("p3",)),
    check(exits=False, quality=0.25),
    check(exits=True, quality=0.95),
    check(error="the assessor is gone"),
    check(),
)


def report_of(out: Path) -> tuple[str, str, dict[str, Any]]:
    document: dict[str, Any] = json.loads((out / "report.json").read_text())
    return (out / "report.md").read_text(), (out / "report.html").read_text(), document


class Page(HTMLParser):
    """Checks that tags are closed in their order; collects what a browser would look at."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        assert not any(name.startswith("on") for name in names)
        assert tag not in ("script", "link", "iframe", "object")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def row(markdown: str, name: str) -> list[str]:
    """The cells of the first row of a table that begins with `name`."""
    line = next(line for line in markdown.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip().replace("\\", "") for cell in line.strip("|").split("|")[1:]]


def test_the_numbers_are_those_of_the_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = write_folder(tmp_path / "run")
    assert graft(["report", str(tmp_path / "run")]) == 0
    written = json.loads(capsys.readouterr().out.splitlines()[-1])
    out = tmp_path / "run" / "report"
    paths = {name: str(out / f"report.{ending}") for name, ending in (("markdown", "md"), ("html", "html"))}
    pictures = [str(out / f"run-{name}.svg") for name in ("accuracy", "waterfall", "timeline")]
    assert written == {"runs": ["run"], "loads": [], **paths, "pictures": pictures, "json": str(out / "report.json")}
    assert all(Path(picture).read_bytes().startswith(b"<svg") for picture in pictures)

    markdown, html, document = report_of(out)
    (run,) = document["runs"]
    stored = json.loads((tmp_path / "run" / "summary.json").read_text())["aggregates"]
    assert run["settings"] == stored["settings"]
    assert run["comparisons"] == stored["comparisons"]
    assert run["counts"] == {"planned": 9, "made": 9, "measured": 8, "warmups": 1, "recordings": 0, "failed": 1}
    assert run["question_ids"] == ["q0", "q1", "q2", "q3"]
    assert run["mean_latency_s"]["blocking"]["value"] == pytest.approx(22.0)

    first, second = summary.aggregates.settings
    for text in (markdown.replace("\\", ""), Page(html).text):
        for setting in (first, second):
            assert setting.latency_s is not None
            assert setting.accuracy is not None
            assert f"{setting.latency_s.median:.2f} s ({setting.latency_s.min:.2f} - " in text
            low, high = setting.accuracy.low, setting.accuracy.high
            assert low is not None
            assert high is not None
            assert f"{100 * setting.accuracy.value:.1f} [{100 * low:.1f}, {100 * high:.1f}]" in text
        assert "2023-11-14 22:13 UTC to 2023-11-14 22:23 UTC" in text
        assert "CPU <one> & only, 4 of 8 cores, 16 GiB" in text
        assert "aaaaaaaaaaaa" in text
        assert "q3/0/blocking" in text
    (comparison,) = summary.aggregates.comparisons
    assert comparison.latency is not None
    assert comparison.latency.ratio is not None
    assert row(markdown, "end to end, ratio")[0].startswith(f"{comparison.latency.ratio.value:.3f}")
    assert row(markdown, "pairs complete") == ["3 of 4"]
    assert row(markdown, "questions for one point") == [f"{comparison.questions_for_one_point:,}"]
    assert "Incomplete pairs of spliced / blocking: q3/0." in markdown


def test_no_text_of_a_question_is_in_any_file(tmp_path: Path) -> None:
    write_folder(tmp_path / "run")
    assert main([str(tmp_path / "run")]) == 0
    markdown, html, document = report_of(tmp_path / "run" / "report")
    for text in (markdown, html, json.dumps(document)):
        assert "How many" not in text
    assert document["runs"][0]["failures"][0]["reason"] == "the server said <no> to '(question)'"


def test_nothing_is_told_about_a_confidential_question_but_its_id(tmp_path: Path) -> None:
    runs = []
    for run in (make_result("blocking", error="500: which of these"), make_result("spliced", answer="A")):
        question = msgspec.structs.replace(run.step.question, prompt="(withheld)", confidential=True)
        runs.append(msgspec.structs.replace(run, step=msgspec.structs.replace(run.step, question=question)))
    runs[1] = msgspec.structs.replace(runs[1], correct=None)
    config = msgspec.structs.replace(CONFIG, questions=QuestionsConfig(source="gpqa_diamond", count=1))
    write_folder(tmp_path / "run", runs, config=config)
    assert main([str(tmp_path / "run")]) == 0
    markdown, html, document = report_of(tmp_path / "run" / "report")
    for text in (markdown, html, json.dumps(document)):
        assert "which of these" not in text
        assert "q1/0/blocking" in text
    assert row(markdown, "questions") == ["1 question of gsm8k, test: a part of 1,319 (the sample)"]
    assert row(markdown, "answers nobody could judge") == ["0", "1"]


def test_the_page_is_well_formed_and_needs_nothing_else(tmp_path: Path) -> None:
    write_folder(tmp_path / "run", [*results(), exiting()])
    assert main([str(tmp_path / "run")]) == 0
    _, html, _ = report_of(tmp_path / "run" / "report")
    page = Page(html)
    assert not re.search(r"https?:", html)
    assert "url(" not in html
    assert "@import" not in html
    assert "prefers-color-scheme: dark" in html
    assert len(page.links) == 4, "accuracy, waterfall, timeline, Q"
    for link in page.links:
        kind, _, data = link.partition(";base64,")
        assert kind == "data:image/svg+xml"
        picture = base64.b64decode(data)
        assert picture.startswith(b"<svg")
        # Names of XML dialects are no references.
        places = re.findall(rb'https?:[^"]*', picture)
        assert set(places) <= {b"http://www.w3.org/2000/svg", b"http://www.w3.org/1999/xlink"}
        assert all(target.startswith(b"#") for target in re.findall(rb'href="([^"]*)"', picture))
        assert b"How many" not in picture


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    write_folder(tmp_path / "run", [*results(), exiting()])
    for out in ("a", "b"):
        assert main([str(tmp_path / "run"), "--out", str(tmp_path / out)]) == 0
    for name in ("report.md", "report.html", "report.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def exiting() -> RunResult:
    record = msgspec.structs.replace(make_record("spliced"), checks=CHECKS)
    return make_result("spliced", question="q4", record=record)


def test_checks_are_told_by_outcome() -> None:
    assert [each.outcome for each in CHECKS] == ["exit", "goes_on", "nobody_left", "error", "unanswered"]
    found = checks([*results(), exiting()], "spliced")
    assert found.checks == 5
    assert set(found.outcomes.values()) == {1}
    assert [(each.value, each.outcome) for each in found.qualities] == [
        (0.9, "exit"),
        (0.25, "goes_on"),
        (0.95, "nobody_left"),
    ]
    assert found.quality is not None
    assert (found.quality.median, found.quality.min, found.quality.max) == (0.9, 0.25, 0.95)
    assert checks(results(), "spliced").checks == 0


def test_the_waterfall_follows_the_agents_that_were_waited_for() -> None:
    record = make_record("spliced", layers=(9, 3, 1))
    path = slowest_path(record)
    assert [agent.id for agent in path] == ["p9", "a3", "s1"]
    for before, agent in itertools.pairwise(path):
        assert agent.ready_s == before.ended_s
    proposers, root = waterfall(results(), "spliced").layers
    assert (proposers.waiting_s.median, proposers.exposed_s.median, proposers.decode_s.median) == (0.0, 2.0, 10.0)
    assert root.waiting_s.median == 12.0
    assert root.hidden_s.median == root.exposed_s.median == 1.0
    assert root.waiting_s.n == 4
    blocking = waterfall(results(), "blocking").layers[-1]
    assert (blocking.hidden_s.median, blocking.exposed_s.median, blocking.waiting_s.n) == (0.0, 2.0, 3)


def test_an_agent_that_stands_in_ends_the_path() -> None:
    record: RunRecord = msgspec.structs.replace(make_record("blocking"), answered_by="p2")
    assert [agent.id for agent in slowest_path(record)] == ["p2"]


def test_folders_of_two_machines_stand_side_by_side_and_are_no_pairs(tmp_path: Path) -> None:
    summaries = [write_folder(tmp_path / "here" / "run")]
    other = msgspec.structs.replace(ENVIRONMENT, cpu="Another CPU", commit="b" * 40)
    summaries.append(write_folder(tmp_path / "there" / "run", environment=other))
    folders = [str(tmp_path / place / "run") for place in ("here", "there")]
    assert main([*folders, "--out", str(tmp_path / "out")]) == 0
    markdown, html, document = report_of(tmp_path / "out")
    Page(html)
    assert [run["label"] for run in document["runs"]] == ["run", "run (2)"]
    assert document["differences"] == {"machine": True, "versions": False, "commit": True, "config": False}
    assert "They differ in machine and commit." in markdown
    assert "no paired comparison" in markdown
    for label in ("run", "run (2)"):
        assert f"| blocking | {label} |" in markdown
    assert len(document["runs"][0]["comparisons"]) == 1, "pairs only within a folder"


def test_a_folder_of_graft_run_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "small.json").write_bytes(msgspec.json.encode(CONFIG))
    with FakeRouter() as router:
        assert graft_run([str(tmp_path / "small.json"), "--url", router.url, "--runs-dir", str(tmp_path / "r")]) == 0
    (folder,) = (tmp_path / "r").iterdir()
    assert main([str(folder)]) == 0
    capsys.readouterr()
    markdown, html, document = report_of(folder / "report")
    Page(html)
    summary = msgspec.json.decode((folder / "summary.json").read_bytes(), type=Summary)
    settings = msgspec.convert(document["runs"][0]["settings"], tuple[SettingAggregate, ...])
    assert settings == summary.aggregates.settings
    for result in summary.results:
        assert result.step.question.prompt not in markdown
        assert result.step.question.prompt not in html


def test_for_a_repository_the_markdown_shows_its_pictures_and_nothing_is_large_or_of_this_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = msgspec.structs.replace(CONFIG, cluster=str(tmp_path / "none.json"))
    write_folder(tmp_path / "run", [*results(), exiting()], config=config)
    write_load(tmp_path / "load")
    out = tmp_path / "docs" / "small"
    folders = [str(tmp_path / name) for name in ("run", "load")]
    assert main([*folders, "--no-html", "--out", str(out)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["html"] is None
    shown = re.findall(r"!\[.*\]\((.*)\)", (out / "report.md").read_text())
    assert shown == [f"run-{name}.svg" for name in ("accuracy", "waterfall", "timeline", "exits")] + ["load-load.svg"]
    assert row((out / "report.md").read_text(), "cluster of the cfg") == ["none.json"]
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(files) == {"report.md", "report.json", *shown}
    assert sum(map(len, files.values())) < 500_000
    for name, content in files.items():
        assert str(tmp_path).encode() not in content, name
        assert str(Path.cwd()).encode() not in content, name


def test_every_setting_has_its_timeline_on_the_question_of_the_median_latency(tmp_path: Path) -> None:
    names = ("blocking", "spliced", "resend")
    settings = (*CONFIG.settings, SettingConfig(name="resend", tree="tree_3_1", graft=RunOptions(transport="resend")))
    config = msgspec.structs.replace(CONFIG, settings=settings)
    runs = [
        make_result(name, question=f"q{number}", latency_s=latency)
        for number, latency in enumerate((30.0, 10.0, 20.0, 15.0))
        for name in names
        if (number, name) != (3, "resend")
    ]
    shown = timeline_runs(config, runs)
    assert [(run.step.setting, run.step.question.id) for run in shown] == [(name, "q2") for name in names]
    assert timeline_runs(config, [make_result("spliced")]) == ()
    write_folder(tmp_path / "run", runs, config=config)
    assert main([str(tmp_path / "run")]) == 0
    markdown, _, _ = report_of(tmp_path / "run" / "report")
    assert "q2/0, the median run of blocking, and the same question and seed in spliced and resend" in markdown


def test_what_was_not_made_is_told(tmp_path: Path) -> None:
    runs = results()
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    places = [ENVIRONMENT, msgspec.structs.replace(ENVIRONMENT, cpu="Another CPU", uncommitted_changes=True)]
    summary = summarize(
        name="run",
        config=CONFIG,
        origin=ORIGIN,
        sessions=[Session(url="http://127.0.0.1:1", environment=place, started=1_700_000_000.0) for place in places],
        ended=1_700_000_600.0,
        plan=[run.step for run in runs],
        results=[msgspec.structs.replace(run, flushed=False) for run in runs[:4]],
    )
    folder.finish(summary, timeline=False)
    assert main([str(tmp_path / "run")]) == 0
    markdown, _, _ = report_of(tmp_path / "run" / "report")
    assert "Interrupted: 5 of 9 planned runs were not made." in markdown
    assert "Not every run began with empty caches" in markdown
    assert "Another CPU" in row(markdown, "machine")[0]
    assert row(markdown, "commit") == ["aaaaaaaaaaaa; aaaaaaaaaaaa with uncommitted changes"]


def test_only_failures_still_make_a_report(tmp_path: Path) -> None:
    write_folder(tmp_path / "run", [make_result("blocking", error="gone"), make_result("spliced", error="gone")])
    assert main([str(tmp_path / "run")]) == 0
    markdown, html, _ = report_of(tmp_path / "run" / "report")
    assert Page(html).links == []
    assert row(markdown, "runs (failed)") == ["1 (1)", "1 (1)"]


def test_a_single_setting_has_no_pairs(tmp_path: Path) -> None:
    config = msgspec.structs.replace(CONFIG, settings=CONFIG.settings[:1])
    write_folder(tmp_path / "run", [make_result("blocking")], config=config)
    assert main([str(tmp_path / "run")]) == 0
    markdown, html, _ = report_of(tmp_path / "run" / "report")
    assert "Paired comparisons" not in markdown
    assert len(Page(html).links) == 3


def write_load(path: Path) -> None:
    """Two rates; all runs are over the deadline."""
    config = load_config()
    folder = LoadFolder.create(path, config)
    folder.begin(Session(url="http://127.0.0.1:1", environment=ENVIRONMENT, started=0.0))
    for rate in (1.0, 2.0):
        for setting in config.settings:
            samples = tuple(sample(2.5 + at, latency=1.0 + rate + at / 10) for at in range(8))
            key = BlockKey(setting=setting.name, rate=rate, index=0)
            block = Block(key=key, started=0.0, wall_s=12.0, flushed=True, samples=samples, router_queue_s=0.1)
            folder.add(block)
    knee = Knee(setting="blocking", held=1.0, failed=2.0, finished=True, verdicts=())
    report = make_report(folder, (knee,), interrupted=False)
    folder.report_file.write_bytes(msgspec.json.encode(report))


def test_a_load_test_has_its_curve(tmp_path: Path) -> None:
    write_load(tmp_path / "load")
    write_folder(tmp_path / "run")
    before = (tmp_path / "load" / "report.json").read_bytes()
    assert main([str(tmp_path / "load"), str(tmp_path / "run")]) == 0
    markdown, html, document = report_of(tmp_path / "load" / "report")
    assert len(Page(html).links) == 4
    (load,) = document["loads"]
    original = json.loads(before)
    assert load["settings"] == original["settings"]
    assert load["knees"] == original["knees"]
    assert load["comparisons"] == original["comparisons"]
    assert row(markdown, "foreign requests") == ["none"]
    assert row(markdown.partition("## load: load")[2], "made") == ["1970-01-01 00:00 UTC to 1970-01-01 00:00 UTC"]
    assert row(markdown, "spliced / blocking")[:2] == ["1/s", "1"]
    cells = row(markdown.partition("## load: load")[2], "blocking")
    assert cells[:4] == ["1/s", "1 of 1", "8", "8"]
    assert cells[5] == "0.0"
    assert document["differences"] is None
    assert "load: load" in markdown
    assert (tmp_path / "load" / "report.json").read_bytes() == before


def damage(path: Path) -> list[str]:
    write_folder(path)
    (path / "summary.json").write_text('{"name": "x"}')
    return [str(path)]


def unfinished(path: Path) -> list[str]:
    RunFolder.create(path, CONFIG)
    return [str(path)]


def empty(path: Path) -> list[str]:
    path.mkdir()
    return [str(path)]


def twice(path: Path) -> list[str]:
    write_folder(path)
    return [str(path), f"{path}/../{path.name}"]


def onto_itself(path: Path) -> list[str]:
    write_folder(path)
    return [str(path), "--out", str(path)]


def onto_a_load_test(path: Path) -> list[str]:
    write_folder(path)
    write_load(path.parent / "load")
    return [str(path), "--out", str(path.parent / "load")]


def onto_a_file(path: Path) -> list[str]:
    write_folder(path)
    return [str(path), "--out", str(path / "summary.json")]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: [str(path)], "there is no folder"),
        (empty, "is no folder of `graft run`"),
        (unfinished, "--resume"),
        (damage, "damaged, or was written by another version"),
        (twice, "named twice"),
        (onto_itself, "a report goes to a folder of its own"),
        (onto_a_load_test, "a report goes to a folder of its own"),
        (onto_a_file, "cannot be written"),
    ],
)
def test_what_is_wrong_is_told(make: Any, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(make(tmp_path / "run")) == WRONG
    captured = capsys.readouterr()
    assert captured.out == ""
    assert told in captured.err
    assert captured.err.count("\n") == 1
