"""Dummy weights of which an answer depends on the whole prompt: SGLang's are so small that the last token decides.

For experiments without a checkpoint (`--load-format dummy`) that compare answers.
"""

from __future__ import annotations

from collections.abc import Mapping

from sglang_ext import compat
from sglang_ext.settings import dummy_weights


def hooks(environment: Mapping[str, str]) -> tuple[compat.Hook, ...]:
    """What draws them as wide as `environment` asks for; nothing if it does not. Raises `ValueError`."""
    bound = dummy_weights(environment)
    if bound is None:
        return ()

    def widen(
        model: object, low: float = -bound, high: float = bound, seed: int = 1234
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        return (model,), {"low": low, "high": high, "seed": seed}

    return (
        compat.Hook(
            compat.DUMMY_WEIGHTS,
            "before",
            widen,
            "an experiment compares answers of dummy weights: with SGLang's the last token alone decides",
        ),
    )
