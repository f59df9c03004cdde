"""Tables of scores, from folders of runs and from what clients have said."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from experiments.questions import load_questions, shown
from experiments.scores.command import trained
from experiments.scores.observed import at_router, in_folder, said, voted
from launch.checkpoint import resolve
from shell_router.app import build_app
from shell_router.config import ConfigError, EmbeddingConfig
from shell_router.core.early_exit import BallotKind, ExitOverride
from shell_router.handlers.keys import SERVICE
from shell_router.record import FeedbackRecord, RunRecord
from shell_router.scores import ScoreRow, ScoreTable, embedder_name, load_scores
from shell_router.transport.fake import FakeEngine
from tests.commands import command
from tests.fakes.assessor import FakeAssessor
from tests.shell_router.pools import pool_config, pool_tree
from tests.shell_router.recorded_runs import record_run
from tests.shell_router.serving import CHAT_PATH, fake_service, serving
from tests.waiting import until

main = command("score")


async def all_asked() -> RunRecord:
    return (await record_run(fake_service(FakeEngine(), pool_tree(pool_config(ask=4))))).record


def folder_of(path: Path, record: RunRecord, answers: dict[str, str]) -> Path:
    """A folder as `graft run` writes it, of one run in which agents gave `answers`, and of its warm-up."""
    question = shown(load_questions("gsm8k_sample").questions[0])
    agents = tuple(msgspec.structs.replace(each, text=answers.get(each.id, each.text)) for each in record.agents)
    line = {
        "step": {"question": msgspec.to_builtins(question), "warmup": False},
        "record": msgspec.to_builtins(msgspec.structs.replace(record, agents=agents)),
    }
    warmup = line | {"step": {"question": msgspec.to_builtins(question), "warmup": True}}
    none = line | {"record": None}
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"questions": {"source": "gsm8k_sample", "count": 1}}))
    (path / "runs.jsonl").write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in (warmup, line, none)))
    return path


async def test_answers_in_a_folder_are_judged_by_their_benchmark(tmp_path: Path) -> None:
    question = load_questions("gsm8k_sample").questions[0]
    right = f"#### {question.answer}"
    record = await all_asked()
    folder = folder_of(
        tmp_path / "runs", record, {"best": right, "good": "#### 123456", "bad": "no idea", "fair": right}
    )
    (observation,) = in_folder(folder, "t")
    assert observation.question == question.prompt
    assert observation.scores == {"best": 1.0, "good": 0.0, "bad": 0.0, "fair": 1.0}
    assert observation.models["best"] == "dear"
    assert list(in_folder(folder, "another")) == []


async def test_a_table_is_written_that_a_router_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = await all_asked()
    out = tmp_path / "scores.json"
    folder = folder_of(tmp_path / "runs", record, {"best": "#### 18"})
    assert main([str(folder), "--tree", "t", "--out", str(out)]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["rows"] == 1
    assert {each["agent"] for each in report["members"]} == {"best", "good", "fair", "bad"}
    tables = load_scores([str(out)], {"t": pool_tree()}, EmbeddingConfig(path="-"))
    assert set(tables["t"].models) == {"best", "good", "fair", "bad"}


async def test_feedback_is_of_who_is_named_or_of_all_that_was_read() -> None:
    record = await all_asked()
    feedback = (FeedbackRecord(score=1.0, agent="root", at=0), FeedbackRecord(score=0.0, agent="bad", at=0))
    own, whole = said(msgspec.structs.replace(record, feedback=feedback))
    assert (own.scores, own.weight) == ({"bad": 0.0}, 1.0)
    assert (whole.scores, whole.weight) == ({"best": 1.0, "good": 1.0, "fair": 1.0}, 0.5)
    assert list(said(record)) == []


async def test_a_router_is_asked_what_was_said_of_its_runs() -> None:
    app = build_app(fake_service(FakeEngine(), pool_tree()), body_bytes=10_000)
    async with serving(app) as client:
        body = {"model": "t", "messages": [{"role": "user", "content": "why?"}]}
        _, answer, _ = await client.call("POST", CHAT_PATH, body)
        await until(lambda: app[SERVICE].running == 0)
        assert (await client.call("POST", f"/v1/runs/{answer['id']}/feedback", {"score": 1}))[0] == 200
        (observation,) = await at_router(client.url, "t", None)
        assert (observation.question, observation.scores) == ("why?", {"best": 1.0, "good": 1.0})


async def voted_run() -> RunRecord:
    """Of four answers, on which all were compared."""
    service = fake_service(FakeEngine(), pool_tree(pool_config(ask=4)))
    record = (await record_run(service, early_exit=ExitOverride(mode="vote", ballots="text"))).record
    assert record.checks
    return record


def with_ballots(record: RunRecord, ballots: dict[str, int | None]) -> RunRecord:
    check = msgspec.structs.replace(record.checks[-1], agents=tuple(ballots), ballots=tuple(ballots.values()))
    return msgspec.structs.replace(record, checks=(*record.checks[:-1], check))


async def test_who_votes_with_the_most_was_right_by_half() -> None:
    record = with_ballots(await voted_run(), {"best": 0, "good": 0, "fair": None, "bad": 0})
    observation = voted(record)
    assert observation is not None
    assert (observation.scores, observation.weight) == ({"best": 1.0, "good": 1.0, "fair": 0.0, "bad": 1.0}, 0.5)
    assert observation.models["best"] == "dear"
    left = voted(record, {"best", "good"})
    assert left is not None
    assert left.scores == {"fair": 0.0, "bad": 1.0}


async def test_without_a_majority_votes_tell_nothing() -> None:
    record = await voted_run()
    for ballots in (
        {"best": 0, "good": 0, "fair": 1, "bad": 1},
        {"best": None, "good": None, "fair": None, "bad": None},
        {"best": 0},
        {"best": 0, "good": 0, "fair": 1, "bad": 2},
    ):
        assert voted(with_ballots(record, dict(ballots))) is None
    assert voted(msgspec.structs.replace(record, checks=())) is None


async def test_votes_are_for_answers_that_nobody_judged(tmp_path: Path) -> None:
    record = with_ballots(await voted_run(), {"best": 0, "good": 0, "fair": 1, "bad": 0})
    folder = folder_of(tmp_path / "runs", record, {"best": "#### 1", "good": "#### 2", "fair": "#### 3", "bad": "-"})
    assert [each.weight for each in in_folder(folder, "t", votes=True)] == [1.0], "the scorer knew all of them"
    app = build_app(fake_service(FakeEngine(), pool_tree(pool_config(ask=3)), assessor=Agreeing()), body_bytes=10_000)
    async with serving(app) as client:
        exit_ = {"mode": "vote", "ballots": "text"}
        body = {"model": "t", "messages": [{"role": "user", "content": "why?"}], "graft": {"early_exit": exit_}}
        _, answer, _ = await client.call("POST", CHAT_PATH, body)
        await until(lambda: app[SERVICE].running == 0)
        assert await at_router(client.url, "t", None) == []
        (vote,) = await at_router(client.url, "t", None, votes=True)
        assert (vote.question, vote.weight) == ("why?", 0.5)
        assert len(vote.scores) >= 2
        assert set(vote.scores.values()) == {1.0}
        assert (await client.call("POST", f"/v1/runs/{answer['id']}/feedback", {"score": 0}))[0] == 200
        (feedback,) = await at_router(client.url, "t", None, votes=True)
        assert set(feedback.scores.values()) == {0.0}, "a client's word is more than a vote"


class Agreeing(FakeAssessor):
    """All vote for the same."""

    async def ballots(self, answers: Sequence[str], kind: BallotKind) -> list[int | None]:
        return [0] * len(answers)


async def test_runs_of_two_models_make_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = await all_asked()
    other = tuple(msgspec.structs.replace(each, model="another") for each in record.agents)
    folders = [
        folder_of(tmp_path / "one", record, {"best": "#### 1"}),
        folder_of(tmp_path / "two", msgspec.structs.replace(record, agents=other), {"best": "#### 1"}),
    ]
    out = tmp_path / "scores.json"
    assert main([*map(str, folders), "--tree", "t", "--out", str(out)]) == 2
    assert "in one run and of 'another' in another" in capsys.readouterr().err
    assert not out.exists()


def test_nothing_to_learn_from_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--tree", "t", "--out", str(tmp_path / "scores.json")])
    assert main([str(tmp_path / "none"), "--tree", "t", "--out", str(tmp_path / "scores.json")]) == 2
    with pytest.raises(ConfigError):
        list(in_folder(tmp_path, "t"))


@pytest.mark.heavy
def test_a_head_is_trained_over_a_real_model_in_a_process_of_its_own(tmp_path: Path) -> None:
    kinds = {1.0: "How many apples are {} apples and {} apples?", 0.0: "Who was king of France in the year {}{}?"}
    rows = tuple(
        ScoreRow(question=kinds[score].format(number, number + 1), scores={"best": score})
        for number in range(100)
        for score in kinds
    )
    table = ScoreTable(tree="t", models={"best": "dear"}, rows=rows)
    path = resolve("builtin:all-minilm-l6-v2")
    head = trained(table, path)
    assert (head.embedder, head.dimension) == (embedder_name(path), 384)
    assert head.members["best"].brier < 0.05 < head.members["best"].brier_constant
    with pytest.raises(ConfigError, match="--head: "):
        trained(table, str(tmp_path / "nothing"))
