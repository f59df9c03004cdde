"""What an experiment asks: the questions of one source, and what answers to them are worth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from experiments.questions.confidential import shown
from experiments.questions.config import QuestionsConfig
from experiments.questions.pool import ScorerPool
from experiments.questions.question import Question
from experiments.questions.question_set import QuestionSet, load_questions
from experiments.questions.scores import Score


class QuestionSource:
    """The questions of a set as they may be shown. Their words and their scoring are had from here alone."""

    def __init__(self, held: QuestionSet, pool: ScorerPool) -> None:
        self.origin = held.origin
        self.questions = tuple(map(shown, held.questions))
        self._held = {question.id: question for question in held.questions}
        self._pool = pool

    def prompt(self, question: Question) -> str:
        """What is sent."""
        return self._held[question.id].prompt

    def score(self, question: Question, text: str) -> Score:
        """What `text` is worth as an answer to `question`."""
        return self._pool.score(self._held[question.id], text)

    async def is_right(self, question: Question, text: str) -> bool | None:
        """Whether `text` answers `question`; None when that cannot be told."""
        score = await self._pool.score_async(self._held[question.id], text)
        return None if score.unverifiable else score.correct


@contextmanager
def open_questions(config: QuestionsConfig) -> Iterator[QuestionSource]:
    """The source that `config` names. Raises `ConfigError` when it cannot be had, or its answers cannot be scored."""
    held = load_questions(config.source, where=config.origin)
    with ScorerPool(held.scorer) as pool:
        yield QuestionSource(held, pool)
