"""Recorded runs that decide again, by other settings, from what was recorded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from experiments.replay.command import make_report
from experiments.replay.redecide import Decision, redecide
from experiments.replay.settings import SettingsError, describe, parse_settings
from experiments.replay.source import Recorded, SourceError, fetch, load
from graft import cli
from shell_router.client import ClientError
from shell_router.core.early_exit import BypassPolicy, ExitOverride, ExitPolicy, draw
from shell_router.core.events import Assessed, Event, Finished, Started, Tokens
from shell_router.core.plan import Plan, PlanOptions
from shell_router.core.tree import Sampling, Tree
from shell_router.prepare import RunRequest
from shell_router.record import RunHead, RunRecord
from shell_router.replay.verify import replay
from shell_router.run import Run
from shell_router.transport.base import GenerateRequest
from shell_router.transport.fake import FakeEngine
from shell_router.transport.resend import ResendSessions
from tests.commands import command
from tests.fakes.assessor import FakeAssessor
from tests.shell_router.recorded_runs import (
    EXITS,
    QUESTION,
    UnevenEngine,
    UnlikeAssessor,
    assert_replayed,
    configured,
    record_run,
    wide,
)
from tests.shell_router.serving import fake_service, serving_service
from tests.shell_router.trees import agent, segments, tree, tree_4_2_1

main = command("replay")


async def test_a_record_of_an_older_router_lacks_something_and_can_still_be_decided_again() -> None:
    service = fake_service(UnevenEngine(3), wide(), assessor=UnlikeAssessor())
    run = await record_run(service, early_exit=EXITS["never"])
    document = json.loads(msgspec.json.encode(run.record))
    del document["chunk_policy"]
    for each in document["agents"]:
        del each["replay"]
    older = Recorded(name="old", record=msgspec.convert(document, RunRecord), log=run.log)
    missing = replay(older.record, older.log).missing
    assert missing is not None
    assert "`replay`" in missing
    override = ExitOverride(threshold=0.3)
    expected = redecide(run, override)
    assert expected.certainty != "unknown"
    assert msgspec.structs.replace(redecide(older, override), run="run-0") == expected
    report = make_report([older], [override])
    assert not report.ok
    assert len(report.settings[0].decisions) == 1


@pytest.mark.parametrize("mode", ["blocking", "spliced"])
@pytest.mark.parametrize("exit_", EXITS)
async def test_the_recorded_setting_changes_nothing(mode: str, exit_: str) -> None:
    for seed in range(6):
        of = (tree_4_2_1(), wide())[seed % 2]
        service = fake_service(UnevenEngine(seed), of, assessor=UnlikeAssessor())
        run = await record_run(service, seed, mode=mode, early_exit=EXITS[exit_])
        decision = redecide(run, ExitOverride())
        exits = sum(1 for check in run.record.checks if check.cancelled)
        assert decision == Decision(run=run.name, certainty="exact", exits=exits)


def by_hand(of: Tree, policy: ExitPolicy, events: Sequence[Event]) -> Recorded:
    """The run of which `events` are the log, with times that one can count with."""
    plan = Plan(of, segments(of), PlanOptions(mode="blocking", early_exit=policy), page_sizes={})
    head = RunHead(id="run-1", mode="blocking", seed=0, created=0.0, question="why?")
    sessions = ResendSessions(FakeEngine())
    request = GenerateRequest(request_id="r", model="m", input_ids=(), sampling=Sampling())
    run = Run(head, plan, {each.id: sessions(request, max_prompt_tokens=9) for each in of.agents}, FakeAssessor())
    for event in events:
        plan.step(event)
    recorded = Recorded(name="run-1", record=run.record(), log=tuple(events))
    assert recorded.record.state == "done"
    assert_replayed(recorded)
    return recorded


def said(agent_id: str, *times: tuple[float, int]) -> list[Event]:
    """An answer that came in pieces, each of so many tokens at a time, and ended with the last, of which none is."""
    *pieces, (end, none) = times
    assert none == 0
    count = sum(tokens for _, tokens in pieces)
    return [
        *(Tokens(at=at, agent=agent_id, ids=(7,) * n, logprobs=(0.0,) * n, text="x" * n) for at, n in pieces),
        Finished(
            at=end, agent=agent_id, reason="length", prompt_tokens=9, completion_tokens=count, cached_tokens=0
        ),
    ]  # fmt: skip


NEVER = ExitPolicy(mode="threshold", threshold=1.0)
PROPOSERS: list[Event] = [
    *said("p1", (1.0, 4), (2.0, 0)),
    *said("p2", (1.0, 3), (3.0, 0)),
    Assessed(at=3.5, cluster=0, step=2, likeness=(0.5,)),
    *said("p3", (1.0, 2), (4.0, 5), (6.0, 3), (7.0, 0)),
]


def in_order(events: Sequence[Event]) -> list[Event]:
    return [Started(at=0.0), *sorted(events, key=lambda each: each.at)]


def three() -> Recorded:
    """Two of three proposers are compared at 3.5 s and found half alike; the third is waited for until 7 s."""
    of = tree(*(agent(f"p{n}") for n in (1, 2, 3)), agent("root", ["p1", "p2", "p3"]))
    return by_hand(of, NEVER, in_order([*PROPOSERS, *said("root", (8.0, 6), (10.0, 0))]))


def saved(run: Recorded, override: ExitOverride) -> tuple[str, int, int, float]:
    each = redecide(run, override)
    return (each.certainty, each.exits, each.tokens_saved, each.seconds_saved)


def test_a_sweep_is_what_one_gets_by_hand() -> None:
    # All are sure of themselves (C = 1), so Q is the root of B = 1 - |0.5 - tau| / max(tau, 1 - tau).
    # tau 0.6, 0.7: B = 1 - 0.1/0.6 = 0.833, 1 - 0.2/0.7 = 0.714, so Q = 0.91, 0.85: at least 0.8, an exit at 3.5 s.
    # tau 0.8, 0.9: B = 0.625, 0.556, so Q = 0.79, 0.75.
    # At 3.5 s the third has 2 of its 10 tokens, and the root starts 3.5 s earlier than at 7 s.
    settings = parse_settings(['{"threshold": 0.8}'], ["tau=0.6:0.9:0.1"])
    assert [describe(each) for each in settings] == [f"tau={tau} threshold=0.8" for tau in (0.6, 0.7, 0.8, 0.9)]
    run = three()
    exits, stays = ("exact", 1, 8, 3.5), ("exact", 0, 0, 0.0)
    assert [saved(run, each) for each in settings] == [exits, exits, stays, stays]
    report = make_report([run, run], settings)
    assert report.ok
    sums = [(each.exact.runs, each.exact.tokens_saved, each.exact.seconds_saved) for each in report.settings]
    assert sums == [(2, 16, 7.0), (2, 16, 7.0), (2, 0, 0.0), (2, 0, 0.0)]
    assert [each.tokens_generated for each in report.settings] == [2 * (4 + 3 + 10 + 6)] * 4


def test_another_mode_draws_as_the_run_would_have() -> None:
    run = three()
    quality = (1 - 0.2 / 0.7) ** 0.5
    drawn = draw(0, 0, 2)
    assert saved(run, ExitOverride(mode="default"))[1] == (1 if drawn < quality else 0)
    # In mode `paper` one answer is checked by itself: Q = (1 - 0.3 / 0.7) ** 0.5.
    alone, both = draw(0, 0, 1), (1 - (2.5 / 3 - 0.7) / 0.7) ** 0.5
    expected = ("exact", 1, 13, 5.0) if alone < (1 - 0.3 / 0.7) ** 0.5 else ("exact", int(drawn < both), 8, 3.5)
    assert saved(run, ExitOverride(mode="paper"))[:2] == expected[:2]


def test_beyond_what_was_recorded_nothing_is_known() -> None:
    early = [*PROPOSERS[:5], *said("p3", (1.0, 2), (9.0, 0))[:1], *said("root", (5.0, 6), (7.0, 0))]
    of = tree(*(agent(f"p{n}") for n in (1, 2, 3)), agent("root", ["p1", "p2", "p3"]))
    run = by_hand(of, ExitPolicy(mode="threshold"), in_order(early))
    assert run.record.checks[0].cancelled == ("p3",)
    assert saved(run, ExitOverride()) == ("exact", 1, 0, 0.0)
    decision = redecide(run, ExitOverride(threshold=0.9))
    assert decision.certainty == "unknown"
    assert decision.reason == "cluster 0 would have gone on with 2 answers, and the run exited there"
    vote = redecide(three(), ExitOverride(mode="vote", ballots="text"))
    assert (vote.certainty, vote.reason) == ("unknown", "cluster 0: p1, p2 were not compared")
    unseen = [event for event in PROPOSERS if not isinstance(event, Assessed)]
    blind = by_hand(of, ExitPolicy(), in_order([*unseen, *said("root", (8.0, 6), (10.0, 0))]))
    assert redecide(blind, ExitOverride(mode="default")).reason == "cluster 0: p1, p2 were not compared"


def test_a_root_that_would_be_left_out() -> None:
    bypass = BypassPolicy(agreement=0.4)
    # The root is not asked at all: its 6 tokens, and all after 3.5 s.
    assert saved(three(), ExitOverride(threshold=0.8, bypass=bypass)) == ("exact", 1, 8 + 6, 6.5)
    # Without an exit all three are compared at the end, which the run had no use for.
    decision = redecide(three(), ExitOverride(bypass=bypass))
    assert decision.reason == "cluster 0: p1, p2, p3 were not compared"
    # But for a run that was made to compare them, at 7.2 s.
    of = tree(*(agent(f"p{n}") for n in (1, 2, 3)), agent("root", ["p1", "p2", "p3"]))
    compared = Assessed(at=7.2, cluster=0, step=3, likeness=(0.5, 0.5, 0.5))
    events = in_order([*PROPOSERS, compared, *said("root", (8.0, 6), (10.0, 0))])
    never = msgspec.structs.replace(NEVER, bypass=BypassPolicy(agreement=1.0, confidence=1.0))
    run = by_hand(of, never, events)
    certainty, exits, tokens, seconds = saved(run, ExitOverride(bypass=bypass))
    assert (certainty, exits, tokens) == ("exact", 1, 6)
    assert seconds == pytest.approx(2.8)
    # And one that has no use for it does not wait for the comparison.
    assert saved(run, ExitOverride(bypass=None))[:3] == ("exact", 0, 0)
    assert saved(run, ExitOverride(bypass=None))[3] == pytest.approx(0.2)


def test_what_reads_less_is_assumed_to_be_as_alike() -> None:
    names = ["p1", "p2", "p3"]
    middle = [agent(f"a{n}", names) for n in (1, 2, 3)]
    of = tree(*map(agent, names), *middle, agent("root", ["a1", "a2", "a3"]))
    later = [
        *said("a1", (8.0, 2), (9.0, 0)),
        *said("a2", (8.0, 2), (10.0, 0)),
        Assessed(at=10.5, cluster=1, step=2, likeness=(0.5,)),
        *said("a3", (9.0, 1), (11.0, 1), (12.0, 0)),
        *said("root", (13.0, 3), (14.0, 0)),
    ]
    run = by_hand(of, NEVER, in_order([*PROPOSERS, *later]))
    # The aggregators start 3.5 s earlier, and the second exit spares the root 1.5 s more.
    decision = redecide(run, ExitOverride(threshold=0.8))
    assert (decision.certainty, decision.exits, decision.earlier) == ("assumed", 2, ("p3", "a3"))
    assert (decision.tokens_saved, decision.seconds_saved) == (8 + 1, 5.0)
    assert decision.reason == "cluster 1 was checked, of which a1, a2 would have read less"


async def test_an_earlier_exit_is_the_exit_of_a_run_with_that_setting() -> None:
    """What is foretold of a run that went through all checks is what the same run does when it may exit."""
    foretold = 0
    for seed in range(10):
        of = configured(
            [
                *(agent(f"p{n}", max_new_tokens=14 + 4 * n) for n in range(1, 6)),
                agent("root", [f"p{n}" for n in range(1, 6)]),
            ]
        )
        runs = []
        for threshold in (1.0, 0.5):
            engine = FakeEngine()
            service = fake_service(engine, of, assessor=UnlikeAssessor())
            options = ExitOverride(mode="threshold", threshold=threshold)
            runs.append(await record_run(service, seed, mode="blocking", early_exit=options))
        whole, short = runs
        decision = redecide(whole, ExitOverride(threshold=0.5))
        assert decision.certainty == "exact"
        likeness = [check.likeness for check in short.record.checks]
        assert likeness == [check.likeness for check in whole.record.checks][: len(likeness)]
        assert decision.exits == sum(1 for check in short.record.checks if check.cancelled)
        foretold += decision.exits
    assert foretold > 0


@pytest.mark.parametrize("seed", range(6))
async def test_after_a_run_through_all_checks_no_setting_is_unknown(seed: int) -> None:
    mode = ("blocking", "spliced")[seed % 2]
    service = fake_service(UnevenEngine(seed), wide(), assessor=UnlikeAssessor())
    run = await record_run(service, seed, mode=mode, early_exit=EXITS["never"])
    modes = [f'{{"mode": "{each}"}}' for each in ("default", "paper", "threshold")]
    settings = parse_settings(modes, ["tau=0:1:0.25", "gamma=0:1:0.5"])
    decisions = [redecide(run, each) for each in settings]
    assert {each.certainty for each in decisions} == {"exact"}
    assert any(each.tokens_saved for each in decisions)
    assert all(each.tokens_saved >= 0 and each.seconds_saved >= 0 for each in decisions)


# The command


def keep(folder: Path, *runs: Recorded) -> None:
    """What `graft run` leaves behind of `runs`, and of one that never began."""
    (folder / "events").mkdir(parents=True)
    lines: list[Any] = [{"order": 0, "step": {"name": "lost", "warmup": False}, "record": None}]
    for number, run in enumerate(runs):
        record = msgspec.structs.replace(run.record, id=f"run-{number}")
        lines.append({"order": number, "step": {"name": f"q{number}", "warmup": number == 0}, "record": record})
        log = b"".join(msgspec.json.encode(event) + b"\n" for event in run.log)
        (folder / "events" / f"run-{number}.jsonl").write_bytes(log)
    (folder / "runs.jsonl").write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


def test_a_folder_is_replayed_and_swept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep(tmp_path / "runs", three(), three(), three())
    arguments = ["replay", str(tmp_path / "runs"), "--early-exit", '{"threshold": 0.8}', "--sweep", "tau=0.7:0.8:0.1"]
    assert cli.main(arguments) == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert sum(line.endswith("bit for bit") for line in table) == 3
    report = json.loads(last)
    assert report["ok"] is True
    assert [each["name"] for each in report["runs"]] == ["q0", "q1", "q2"]
    first, second = report["settings"]
    assert first["early_exit"] == {"tau": 0.7, "threshold": 0.8}
    assert first["exact"] == {"runs": 2, "exits": 2, "tokens_saved": 16, "seconds_saved": 7.0}, "without the warm-up"
    assert second["exact"]["exits"] == 0


def test_a_record_with_its_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = three()
    record, log = tmp_path / "run.json", tmp_path / "log.txt"
    record.write_bytes(msgspec.json.encode(run.record))
    # As `curl` gets it from `/v1/runs/{id}/events`.
    stream = [b"data: " + msgspec.json.encode(event) + b"\n\n" for event in run.log]
    log.write_bytes(b"".join(stream) + b"data: [DONE]\n\n")
    assert main([str(record), "--events", str(log)]) == 0
    log.write_bytes(b"".join(stream[:-1]))
    assert main([str(record), "--events", str(log)]) == 1
    out = capsys.readouterr().out
    assert "run-1 differs:" in out
    assert "the log ends after" in out
    assert json.loads(out.splitlines()[-1])["ok"] is False
    assert main([str(record)]) == 2
    assert "run.jsonl: No such file" in capsys.readouterr().err


async def test_a_run_of_a_router() -> None:
    service = fake_service(FakeEngine())
    run = service.start(RunRequest(tree="t", conversation=QUESTION))
    async with serving_service(service) as client:
        (recorded,) = await fetch(client.url, run.head.id, None)
        with pytest.raises(ClientError, match="there is no run 'run-x'"):
            await fetch(client.url, "run-x", None)
    assert_replayed(recorded)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a folder or a record"),
        (["x", "--url", "http://h"], "name a folder or a record"),
        (["--url", "http://h"], "--url and --run go together"),
        (["--url", "http://h", "--run", "r", "--events", "e"], "--events goes with a record"),
    ],
)
def test_a_wrong_command_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "sweeps", "message"),
    [
        (["{"], [], "--early-exit {"),
        (['{"taw": 1}'], [], "unknown field `taw`"),
        (['{"tau": 2}'], [], "<= 1.0"),
        ([], ["mode=0:1:1"], "a sweep is over tau, gamma, threshold"),
        ([], ["tau=0:1"], "FIRST:LAST:STEP"),
        ([], ["tau=0:1:0"], "FIRST:LAST:STEP"),
        ([], ["tau=0:x:1"], "FIRST:LAST:STEP"),
        ([], ["tau=0.9:0.3:0.1"], "it must go up"),
        ([], ["tau=0.3:0.9:-0.1"], "it must go up"),
        ([], ["tau=0:2:0.1"], "it must go up"),
        ([], ["tau=0:1:0.0001"], "too many"),
        ([], ["tau=0:1:0.01", "gamma=0:1:0.01"], "too many"),
    ],
)
def test_wrong_settings(overrides: list[str], sweeps: list[str], message: str) -> None:
    with pytest.raises(SettingsError) as refused:
        parse_settings(overrides, sweeps)
    assert message in str(refused.value)


def test_sweeps_make_a_grid() -> None:
    settings = parse_settings(['{"mode": "default"}', '{"mode": "paper"}'], ["tau=0.1:0.3:0.1", "gamma=0.5:0.5:1"])
    assert [(each.mode, each.tau, each.gamma) for each in settings] == [
        (mode, tau, 0.5) for mode in ("default", "paper") for tau in (0.1, 0.2, 0.3)
    ]
    assert parse_settings([], []) == ()


def test_no_runs(tmp_path: Path) -> None:
    for path, message in ((tmp_path, "runs.jsonl: No such file"), (tmp_path / "x.json", "x.json: No such file")):
        with pytest.raises(SourceError, match=message):
            load(path)
    (tmp_path / "runs.jsonl").write_bytes(b'{"step": {"name": "q", "warmup": false}, "record": null}\n')
    with pytest.raises(SourceError, match="it has no run with a record"):
        load(tmp_path)
    (tmp_path / "runs.jsonl").write_bytes(b"{}")
    with pytest.raises(SourceError, match="missing required field `step`"):
        load(tmp_path)
    with pytest.raises(SourceError, match="one JSON document"):
        load(tmp_path / "runs.jsonl")
