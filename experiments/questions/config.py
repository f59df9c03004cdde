"""Which questions an experiment asks, as its JSON says it."""

from __future__ import annotations

from typing import Literal

import msgspec

from shell_router.config import NonNegativeInt, PositiveInt

SAMPLE = "gsm8k_sample"


class QuestionsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which questions are asked: `count` items of a source, from item `start` on."""

    source: Literal[
        "gsm8k_sample",
        "aime2025",
        "bbh",
        "gpqa_diamond",
        "gsm8k",
        "hmmt_feb_2025",
        "humaneval_plus",
        "ifbench",
        "math500",
        "mmlu",
        "mmlu_prox_lite",
    ]
    """A small sample that ships with Graft, or a benchmark (`graft questions list`)."""
    origin: Literal["auto", "hub", "offline"] = "auto"
    """Where a benchmark is read: `auto` takes what is installed, else the hub."""
    count: PositiveInt
    start: NonNegativeInt = 0
