"""Which SGLang this extension runs with, and how a worker ends that has another."""

from __future__ import annotations

import functools
import importlib.metadata
import logging
from typing import NoReturn

logger = logging.getLogger(__name__)

SUPPORTED_SGLANG = ("0.5.22", "0.5.23")


class IncompatibleEngine(Exception):
    """The installed SGLang is not one this extension was written for."""


@functools.cache
def sglang_version() -> str:
    """Read once: every description asks for it."""
    return importlib.metadata.version("sglang")


def check_version() -> None:
    """Raise `IncompatibleEngine` when the installed SGLang is not a supported version."""
    found = sglang_version()
    if found not in SUPPORTED_SGLANG:
        raise IncompatibleEngine(f"sglang {found} is installed; this extension supports {', '.join(SUPPORTED_SGLANG)}")


def refuse(problems: list[str]) -> None:
    """Raise `IncompatibleEngine` with all `problems`, if there are any."""
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise IncompatibleEngine(f"sglang {sglang_version()} lacks what this extension uses:{listed}")


def fail(error: Exception) -> NoReturn:
    """End this process: a worker without the extension must not look like one that has it."""
    logger.critical("graft: the SGLang extension cannot run here: %s", error)
    raise SystemExit(f"graft: the SGLang extension cannot run here: {error}") from error
