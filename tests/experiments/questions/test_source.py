"""What an experiment asks, and how it is judged."""

from __future__ import annotations

import importlib.util

import pytest

from experiments.questions import QuestionsConfig, open_questions


async def test_the_sample_is_judged_as_gsm8k_is() -> None:
    with open_questions(QuestionsConfig(source="gsm8k_sample", count=1)) as source:
        assert source.origin.held == len(source.questions) == 48
        for question in source.questions:
            assert source.prompt(question) == question.prompt
            assert await source.is_right(question, f"So the result is {question.answer}.")
            assert await source.is_right(question, f"So the answer is **{question.answer}** apples, 3 times 17.")
            assert not await source.is_right(question, "I do not know.")


async def test_a_benchmark_is_asked_with_its_own_prompt_and_judged_by_its_scorer() -> None:
    for module in ("sgl_eval", "math_verify"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    with open_questions(QuestionsConfig(source="aime2025", origin="offline", count=1)) as source:
        question = source.questions[0]
        assert source.prompt(question) == question.prompt != question.answer
        assert await source.is_right(question, f"Therefore \\boxed{{{question.answer}}}.")
        assert not await source.is_right(question, "\\boxed{-1}")
        assert source.origin.part(30).startswith("aime2025, test, all 30 questions (sgl-eval==")
