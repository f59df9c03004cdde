"""Seconds of a model on a card: of a prompt's tokens, and of a decode step.

A prompt of n tokens takes `prefill_s + n * prefill_token_s`. A decode step with b requests that hold c tokens each
takes `step_s + b * (step_request_s + c * step_context_token_s)`, so that one of them pays

    step_s / b + step_request_s + c * step_context_token_s

for each token of its answer. Both are seconds of each card that the worker has.

**Estimated** they are a roofline: a token is two operations for each parameter that it meets, at the card's published
rate; a step reads the weights that its requests meet, and the KV of what they hold, at its published bandwidth, and the
operations come on top. No real worker is as fast; what counts is how models and cards compare. Attention's own
operations, and what a worker does between steps, are left out. A worker on k cards takes a k-th of each, without what
passes between them. Of a mixture's experts b requests meet 1 - (1 - a)^b, with a for what one of them meets. Drafts
are not counted on.

**A profile** (`graft profile`) has what was measured, in the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from launch.gpu.program.classes import RequestClass
from launch.gpu.program.specs import SPECS
from launch.gpu.sizes import ModelSize
from shell_router.config import PositiveInt, load_json

Seconds = Annotated[float, Meta(ge=0)]
Key = tuple[str, str, int]
"""A model's path as in a cluster JSON, the name of a card, how many of them."""


class CostRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model on one kind of card."""

    model: str
    """Its `path` in a cluster JSON."""
    card: str
    """As `graft cards` names it."""
    tp_size: PositiveInt = 1
    prefill_s: Seconds = 0.0
    """Of a prompt, whatever its length."""
    prefill_token_s: Seconds
    step_s: Seconds
    """Of a decode step, however many requests are in it."""
    step_request_s: Seconds
    step_context_token_s: Seconds = 0.0
    """Of a token that a request holds in the KV pool; a measured row has it in `step_request_s`."""

    def __post_init__(self) -> None:
        if self.prefill_s + self.prefill_token_s <= 0 or self.step_s + self.step_request_s <= 0:
            raise ValueError("A prompt and a decode step take some time")

    @property
    def key(self) -> Key:
        return (self.model, self.card, self.tp_size)

    def prefill(self, asked: RequestClass) -> float:
        """Seconds of one prompt of `asked`."""
        return self.prefill_s + asked.prompt_tokens * self.prefill_token_s

    def decode(self, asked: RequestClass, batch: int) -> float:
        """Seconds that one answer of `asked` takes of a worker that decodes `batch` of them side by side."""
        step = self.step_s / batch + self.step_request_s + asked.context_tokens * self.step_context_token_s
        return asked.answer_tokens * step


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was measured, on any number of models and cards."""

    rows: Annotated[tuple[CostRow, ...], Meta(min_length=1)]

    def __post_init__(self) -> None:
        seen: set[Key] = set()
        for n, row in enumerate(self.rows):
            if row.key in seen:
                raise ValueError(f"{row.model} on {row.tp_size} x {row.card} is there twice - at `$.rows[{n}]`")
            seen.add(row.key)


def load_profile(path: Path) -> Profile:
    """Read the profile at `path`. Raises `ConfigError` naming the file and the JSON path."""
    return load_json(path, Profile)


def rows_for(profile: Profile, wanted: Sequence[Key]) -> tuple[Mapping[Key, CostRow], tuple[str, ...]]:
    """The rows of `profile` for `wanted`; and what it lacks, each a line."""
    known = {row.key: row for row in profile.rows}
    found = {key: known[key] for key in wanted if key in known}
    listed = ", ".join(f"{model} on {count} x {card}" for model, card, count in known)
    lacking = tuple(
        f"$.rows: nothing is known of {model} on {count} x {card}; there are {listed}"
        for model, card, count in wanted
        if (model, card, count) not in known
    )
    return found, lacking


def estimate(model: str, size: ModelSize, card: str, tp_size: int, batch: int) -> CostRow:
    """What the model at `model` would take on `tp_size` cards of a kind, by their published numbers.

    `not_estimated` must have nothing against it."""
    assert size.parameters is not None
    spec = SPECS[card]
    bytes_each = (size.weight_bytes - size.vision_bytes) / size.parameters.all
    token = 2 * size.parameters.met() / spec.flops / tp_size
    return CostRow(
        model=model,
        card=card,
        tp_size=tp_size,
        prefill_token_s=token,
        step_s=size.parameters.met(batch) * bytes_each / spec.bytes_per_s / tp_size,
        step_request_s=token,
        step_context_token_s=size.kv_on_card(tp_size) / spec.bytes_per_s,
    )


def not_estimated(size: ModelSize, dtype: str, cards: Iterable[str]) -> str | None:
    """Why nothing can be estimated of a model of this size, served as `dtype`, on `cards`; None when it can."""
    if dtype == "float32":
        return "float32 has no published rate on tensor cores, so it cannot be estimated"
    if size.parameters is None:
        return "its config.json does not tell how many parameters a token meets, so it cannot be estimated"
    unknown = sorted(set(cards) - SPECS.keys())
    if unknown:
        return f"the published numbers of {', '.join(unknown)} are not known, so it cannot be estimated"
    return None
