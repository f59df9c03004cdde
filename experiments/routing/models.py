"""Fifteen models with published accuracies, of which the simulation's pool is made.

Accuracies in percent are those that the makers of Qwen2.5 publish of instruct models, their own and others', in
"Qwen2.5-LLM: Extending the boundary of LLMs" (https://qwenlm.github.io/blog/qwen2.5-llm/, September 2024, the tables
of Qwen2.5-72B, 14B, 7B and 3B-Instruct); the same are in the technical report, arXiv 2412.15115. Active parameters in
billions are those of the models' cards. Prices and speeds are nobody's: they are in proportion to active parameters.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from shell_router.core.pool import Price

BENCHMARKS = ("MMLU-Pro", "GPQA", "MATH", "GSM8K", "HumanEval", "MBPP")
_PRICE = 0.01
"""Of a million tokens of a prompt, for each billion of active parameters."""
_OUTPUT = 3.0
"""How much dearer an answer's tokens are."""


@dataclass(frozen=True)
class PublishedModel:
    """A model of the pool."""

    name: str
    billions: float
    """Active parameters."""
    accuracies: tuple[float, ...]
    """Percent, in the order of `BENCHMARKS`."""

    @property
    def mean(self) -> float:
        """Accuracy over all benchmarks, from 0 to 1: what the author of a tree can know of a model."""
        return statistics.fmean(self.accuracies) / 100

    @property
    def price(self) -> Price:
        return Price(input=_PRICE * self.billions, output=_OUTPUT * _PRICE * self.billions)

    def first_s(self, prompt_tokens: float) -> float:
        """To the first token."""
        return 0.05 + 2e-6 * self.billions * prompt_tokens

    @property
    def token_s(self) -> float:
        """Between two tokens."""
        return 0.006 + 4e-4 * self.billions


_POOL = (
    PublishedModel("llama3.1-405b", 405, (73.3, 51.1, 73.8, 96.8, 89.0, 84.5)),
    PublishedModel("mistral-large2", 123, (69.4, 52.0, 69.9, 92.7, 92.1, 80.0)),
    PublishedModel("qwen2.5-72b", 72.7, (71.1, 49.0, 83.1, 95.8, 86.6, 88.2)),
    PublishedModel("qwen2-72b", 72.7, (64.4, 42.4, 69.0, 93.2, 86.0, 80.2)),
    PublishedModel("llama3.1-70b", 70.6, (66.4, 46.7, 68.0, 95.1, 80.5, 84.2)),
    PublishedModel("qwen2.5-32b", 32.5, (69.0, 49.5, 83.1, 95.9, 88.4, 84.0)),
    PublishedModel("gemma2-27b", 27.2, (55.5, 38.4, 54.4, 90.4, 78.7, 81.0)),
    PublishedModel("qwen2-57b-a14b", 14.0, (52.8, 34.3, 49.1, 85.3, 79.9, 70.9)),
    PublishedModel("qwen2.5-14b", 14.7, (63.7, 45.5, 80.0, 94.8, 83.5, 82.0)),
    PublishedModel("gemma2-9b", 9.2, (52.1, 32.8, 44.3, 76.7, 68.9, 74.9)),
    PublishedModel("llama3.1-8b", 8.0, (48.3, 32.8, 51.9, 84.5, 72.6, 69.6)),
    PublishedModel("qwen2.5-7b", 7.6, (56.3, 36.4, 75.5, 91.6, 84.8, 79.2)),
    PublishedModel("qwen2-7b", 7.6, (44.1, 34.3, 52.9, 85.7, 79.9, 67.2)),
    PublishedModel("minicpm3-4b", 4.0, (43.0, 31.3, 46.6, 81.1, 74.4, 72.5)),
    PublishedModel("qwen2.5-3b", 3.1, (43.7, 30.3, 65.9, 86.7, 74.4, 72.7)),
)
POOL: Mapping[str, PublishedModel] = {model.name: model for model in _POOL}
BY_MEAN = sorted(POOL, key=lambda name: -POOL[name].mean)
"""The best first."""
