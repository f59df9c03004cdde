"""Benchmarks behind one interface: questions from the hub, from what is installed or ships with Graft, and scorers.

held = load_questions("gsm8k_sample")
with ScorerPool(held.scorer) as pool:
    scores = [pool.score(question, answer_to(question.prompt)) for question in held.questions]
print(held.origin.part(len(scores)))
"""

from experiments.questions.catalog import CATALOG
from experiments.questions.confidential import WITHHELD, shown, without_words
from experiments.questions.config import QuestionsConfig
from experiments.questions.pool import ScorerPool
from experiments.questions.question import Question
from experiments.questions.question_set import Origin, QuestionSet, load_questions, select
from experiments.questions.scores import Score
from experiments.questions.source import QuestionSource, open_questions

__all__ = [
    "CATALOG",
    "WITHHELD",
    "Origin",
    "Question",
    "QuestionSet",
    "QuestionSource",
    "QuestionsConfig",
    "Score",
    "ScorerPool",
    "load_questions",
    "open_questions",
    "select",
    "shown",
    "without_words",
]
