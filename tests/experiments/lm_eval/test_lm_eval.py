"""lm-evaluation-harness, the real one, as a client; and what is made of its samples."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.lm_eval.command import compare, main
from experiments.lm_eval.harness import Sample, evaluate, install, write_task
from experiments.questions import QuestionsConfig, QuestionSource, open_questions
from launch.cluster import Cluster
from shell_router.errors import GraftError
from shell_router.transport.base import Delta, Finish, GenerateRequest
from shell_router.transport.fake import FakeEngine
from tests.shell_router.serving import fake_service, serving_service

COUNT = 6


@pytest.fixture
def source() -> Iterator[QuestionSource]:
    with open_questions(QuestionsConfig(source="gsm8k_sample", count=COUNT)) as source:
        yield source


def test_the_task_is_the_harnesss_own_on_our_questions(source: QuestionSource, tmp_path: Path) -> None:
    questions = source.questions[:COUNT]
    write_task(tmp_path, questions, {"mode": "blocking"})
    task = json.loads((tmp_path / "graft_gsm8k.yaml").read_text())
    assert task["generation_kwargs"]["graft"] == {"mode": "blocking"}
    items = Path(task["dataset_kwargs"]["data_files"]["test"]).read_text().splitlines()
    assert [json.loads(item)["id"] for item in items] == [question.id for question in questions]


def test_both_verdicts_are_told_item_by_item(source: QuestionSource) -> None:
    one, two, *_ = source.questions
    right = Sample(id=one.id, answer=f"So {one.answer}.", number=one.answer, right=True)
    wrong = Sample(id=two.id, answer="", number="[invalid]", right=False)
    both = compare("chat", source, [one, two], [right, wrong])
    assert (both.count, both.answered, both.harness_right, both.our_right, both.agree) == (2, 1, 1, 1, True)
    decimals = Sample(id=one.id, answer=f"{one.answer}.00", number=f"{one.answer}.00", right=False)
    assert compare("chat", source, [one], [decimals]).agree is False
    with pytest.raises(GraftError, match=f"did not judge {two.id}"):
        compare("chat", source, [one, two], [right])


BODIES: dict[str, tuple[str, dict[str, Any], int, str | None]] = {
    "a question": ("completions", {"prompt": "why?", "stop": ["Question:", "</s>", "<|im_end|>"]}, 200, None),
    "no stops": ("completions", {"prompt": "why?", "stop": []}, 200, None),
    "a list of one": ("completions", {"prompt": ["why?"], "stop": ["Q:"]}, 200, None),
    "a large seed": ("completions", {"prompt": "why?", "seed": 5_000_000_000}, 200, None),
    "a batch": ("completions", {"prompt": ["why?", "how?"]}, 400, "prompt"),
    "tokens": ("completions", {"prompt": [[1, 2, 3]]}, 400, "prompt[0]"),
    "log-likelihood": (
        "completions",
        {"prompt": "why?", "max_tokens": 1, "logprobs": 1, "echo": True},
        400,
        "echo",
    ),
    "a chat": ("chat/completions", {"messages": [{"role": "user", "content": "why?"}], "stop": ["Q:"]}, 200, None),
    "a prefilled answer": (
        "chat/completions",
        {"messages": [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "As"}]},
        400,
        "messages",
    ),
}
"""What the harness sends, by default and when it is asked to."""


@pytest.mark.parametrize("case", BODIES)
async def test_what_the_harness_sends_is_answered_or_refused_by_name(case: str) -> None:
    path, body, status, param = BODIES[case]
    common = {"model": "t", "max_tokens": 16, "temperature": 0.0, "seed": 1234}
    async with serving_service(fake_service(FakeEngine())) as client:
        # It sends an empty key when it has none.
        found, answer, _ = await client.call("POST", f"/v1/{path}", common | body, {"Authorization": "Bearer "})
    assert found == status, answer
    assert answer.get("error", {}).get("param") == param


class KnowingEngine(FakeEngine):
    """Its roots answer as they are told, question by question."""

    def __init__(self, answers: dict[str, str]) -> None:
        super().__init__()
        self._answers = answers

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        if not request.request_id.endswith("-root"):
            async for delta in super().generate(request):
                yield delta
            return
        prompt = bytes(token % 256 for token in request.input_ids).decode(errors="replace")
        text = next(answer for question, answer in self._answers.items() if question in prompt)
        assert request.stop == ("Question:", "</s>", "<|im_end|>")
        assert request.sampling.temperature == 0
        yield Delta((1,), (-0.5,), text, Finish("stop", len(request.input_ids), 1, 0))


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("api", ["completions", "chat"])
async def test_the_harness_scores_known_answers_as_we_do(
    api: Any, source: QuestionSource, tmp_path: Path, graft_home: Path
) -> None:
    said = ("The answer is {}.", "#### {}\nOr 7?", "${}", "{} or rather 1,234,567", "I do not know.", "#### 0.5 of {}")
    questions = source.questions[:COUNT]
    answers = {q.prompt: text.format(q.answer) for q, text in zip(questions, said, strict=True)}
    service = fake_service(KnowingEngine(answers), context_length=100_000)
    write_task(tmp_path, questions, {"mode": "blocking"})
    async with serving_service(service) as client:

        def ask() -> tuple[Sample, ...]:
            python = install()
            return evaluate(python, tmp_path, client.url, "t", api, max_tokens=64, timeout_s=250, api_key=None)

        samples = await asyncio.to_thread(ask)
    assert {sample.answer for sample in samples} == set(answers.values())
    result = compare(api, source, questions, samples)
    assert result.agree, result.items
    assert [item.our_right for item in result.items] == [True, True, True, False, False, False]
    assert {run.record().mode for run in service.runs()} == {"blocking"}, "our options come through"


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(1500)
def test_the_harness_on_a_real_cluster(tiny_cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--url", tiny_cluster.url, "--tree", "tree_3_1", "--count", "2", "--max-tokens", "24"]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [each["api"] for each in report["comparisons"]] == ["completions", "chat"]
    for each in report["comparisons"]:
        assert (each["count"], each["answered"], each["agree"]) == (2, 2, True)
