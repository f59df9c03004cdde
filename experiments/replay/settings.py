"""The early-exit settings of a command line: overrides as JSON, and sweeps over one number each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from decimal import Decimal

import msgspec

from shell_router.config import ConfigError
from shell_router.core.early_exit import ExitOverride
from shell_router.documents import DocumentError, decode_document

SWEPT = ("tau", "gamma", "threshold")
_MOST = 1000


class SettingsError(ConfigError):
    """A setting is wrong; the message says which."""


def parse_settings(overrides: Sequence[str], sweeps: Sequence[str]) -> tuple[ExitOverride, ...]:
    """Each override with each value of each sweep, in the order given. Raises `SettingsError`."""
    bases = [_override(text) for text in overrides] or ([ExitOverride()] if sweeps else [])
    values = [list(_sweep(text)) for text in sweeps]
    settings = [
        msgspec.structs.replace(base, **dict(chosen)) for base in bases for chosen in itertools.product(*values)
    ]
    if len(settings) > _MOST:
        raise SettingsError(f"{len(settings)} settings are too many: at most {_MOST}")
    return tuple(settings)


def describe(override: ExitOverride) -> str:
    """The fields that are set, in one short line."""
    fields = msgspec.to_builtins(override)
    given = (f"{name}={value}" for name, value in fields.items())
    return " ".join(given) or "as recorded"


def _override(text: str) -> ExitOverride:
    try:
        return decode_document(text.encode(errors="surrogateescape"), ExitOverride)
    except DocumentError as error:
        raise SettingsError(f"--early-exit {text}: {error}") from error


def _sweep(text: str) -> Iterator[tuple[str, float]]:
    """The field and a value, from the first to the last of `field=first:last:step`."""
    name, _, numbers = text.partition("=")
    if name not in SWEPT:
        raise SettingsError(f"--sweep {text}: a sweep is over {', '.join(SWEPT)}")
    try:
        # Decimals: 0.1 thrice is to be 0.3.
        first, last, step = map(Decimal, numbers.split(":"))
        count = int((last - first) / step) + 1
    except (ValueError, ArithmeticError) as error:
        raise SettingsError(f"--sweep {text}: it must be {name}=FIRST:LAST:STEP, like {name}=0.3:0.9:0.1") from error
    if not (0 <= first <= last <= 1 and step > 0):
        raise SettingsError(f"--sweep {text}: it must go up from FIRST to LAST, within 0 and 1")
    if count > _MOST:
        raise SettingsError(f"--sweep {text}: {count} values are too many: at most {_MOST}")
    for number in range(count):
        yield name, float(first + number * step)
