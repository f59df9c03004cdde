"""Benchmarks behind one interface: items with prompts, from the hub or from what is installed, and their scorers.

benchmark = load("gsm8k", count=50)
with ScorerPool() as pool:
    scores = [pool.score(item, answer_to(item.prompt)) for item in benchmark.items]
print(benchmark.label)
"""

from experiments.questions.catalog import names
from experiments.questions.item import Benchmark, BenchmarkError, Item, redacted
from experiments.questions.load import load
from experiments.questions.pool import ScorerPool, score
from experiments.questions.scores import Score

__all__ = ["Benchmark", "BenchmarkError", "Item", "Score", "ScorerPool", "load", "names", "redacted", "score"]
