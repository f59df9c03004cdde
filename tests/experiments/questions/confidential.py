"""Confidential questions whose words are made up, in a stand-in for the hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SECRETS = ("Which of these is the secret?", "it is the first choice", "the second", "the third", "the fourth")


class Hub:
    """Takes the place of the module `datasets`, and holds three questions of GPQA's form."""

    ids = tuple(f"gpqa_diamond-rec{number}" for number in range(3))

    def load_dataset(self, repository: str, config: str | None, *, split: str) -> list[Mapping[str, Any]]:
        question, right, *wrong = SECRETS
        return [
            {"Record ID": f"rec{number}", "Question": question, "Correct Answer": right}
            | {f"Incorrect Answer {place}": text for place, text in enumerate(wrong, 1)}
            for number in range(3)
        ]
