"""Questions that must not be shown are in no file, no output and no message, nor are the answers to them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest

from experiments.questions import (
    WITHHELD,
    Question,
    QuestionsConfig,
    load_questions,
    open_questions,
    shown,
    without_words,
)
from graft.cli import FAILED, WRONG
from tests.commands import command
from tests.experiments.questions.confidential import SECRETS, Hub
from tests.experiments.records import make_record
from tests.fakes.shell_router import FakeRouter, Reply

main = command("run")


def leaks(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


def test_nothing_that_is_printed_of_a_question_tells_what_it_says(
    confidential_hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for question in load_questions("gpqa_diamond", where="hub").questions:
        logging.getLogger("test").debug("%s %r", question, [question])
        kept = shown(question)
        texts = f"{question}{question!r}{question.__rich_repr__()}{kept!r}{msgspec.json.encode(kept)!r}{caplog.text}"
        assert question.id in texts
        assert not leaks(texts)
        assert not kept.choices
        assert not kept.meta


def test_what_is_kept_of_other_questions() -> None:
    question = Question(id="x", prompt="3?", answer="3", choices=("3", "4"), meta={"question": "3"})
    assert "3?" in repr(question)
    assert shown(question) == Question(id="x", prompt="3?", answer="3")
    # As result files have had them from the beginning.
    assert json.loads(msgspec.json.encode(shown(question))) == {"id": "x", "question": "3?", "answer": "3"}
    kept = b'{"id": "x", "question": "3?", "answer": "3", "confidential": false}'
    assert msgspec.json.decode(kept, type=Question) == shown(question)


def test_a_source_asks_and_judges_what_it_does_not_show(confidential_hub: Hub) -> None:
    with open_questions(QuestionsConfig(source="gpqa_diamond", origin="hub", count=1)) as source:
        question, right = source.questions[0], load_questions("gpqa_diamond", where="hub").questions[0].answer
        assert (question.prompt, question.answer) == (WITHHELD, WITHHELD)
        assert SECRETS[0] in source.prompt(question)
        assert source.score(question, f"Answer: {right}").correct


def test_what_is_withheld_of_a_record() -> None:
    record = make_record("spliced")
    agents = tuple(msgspec.structs.replace(agent, error="the server said: What is") for agent in record.agents)
    bare = without_words(msgspec.structs.replace(record, agents=agents, error="the server said: What is"))
    assert "the server said" not in str(bare)
    assert record.question not in str(bare)
    assert record.agents[-1].text not in str(bare)
    assert bare.duration_s == record.duration_s
    assert [agent.output_tokens for agent in bare.agents] == [agent.output_tokens for agent in record.agents]


def cfg(folder: Path, **changes: Any) -> Path:
    document = {
        "name": "t",
        "cluster": "x.json",
        "settings": [{"name": "a", "tree": "tree_3_1"}, {"name": "b", "tree": "tree_3_1"}],
        "questions": {"source": "gpqa_diamond", "origin": "hub", "count": 1},
        "warmup": 0,
    }
    file = folder / "cfg.json"
    file.write_text(json.dumps(document | changes))
    return file


def written(folder: Path) -> str:
    return "".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())


def test_questions_and_answers_of_a_run_are_in_no_file_and_no_output(
    confidential_hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with FakeRouter() as router:
        argv = [str(cfg(tmp_path)), "--url", router.url, "--runs-dir", str(tmp_path), "--name", "t"]
        assert main(argv) == 0
        assert len(router.asks) == 2
        assert all(SECRETS[0] in ask.question for ask in router.asks), "it is asked all the same"
    files = written(tmp_path / "t")
    out, err = capfd.readouterr()
    assert not leaks(files + out + err)
    assert WITHHELD in files
    assert "The answer is" not in files + out + err
    assert "equal answers -" in out, "of withheld answers nobody can say that they are equal"


def test_a_message_that_repeats_a_question_is_withheld(
    confidential_hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with FakeRouter(lambda ask: Reply(stream_error=f"cannot answer: {ask.question}")) as router:
        argv = [str(cfg(tmp_path)), "--url", router.url, "--runs-dir", str(tmp_path), "--name", "t"]
        assert main(argv) == FAILED
    out, err = capfd.readouterr()
    assert not leaks(written(tmp_path / "t") + out + err)


def test_answers_cannot_be_replayed(confidential_hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([str(cfg(tmp_path, replay_answers=True))]) == WRONG
    assert "$.replay_answers" in capfd.readouterr().err
