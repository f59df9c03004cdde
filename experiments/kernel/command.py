"""What the commands of the experiments have in common: exit codes, and how they are interrupted."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

EXIT_FAILED = 1
"""A run, a check or the cluster failed."""
EXIT_USAGE = 2
"""Wrong cfg or command line."""
EXIT_INTERRUPTED = 130


@contextlib.contextmanager
def terminate_like_interrupt() -> Iterator[None]:
    """A supervisor's SIGTERM and a closed terminal's SIGHUP keep what is finished, just as Ctrl-C does."""
    # `nohup` has SIGHUP ignored, and that stays.
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(_number: int, _frame: object) -> None:
    # While runs are made, asyncio answers SIGINT by cancelling what is in flight: nothing is torn in the middle.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # So a shell without job control starts what is in the background.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.raise_signal(signal.SIGINT)
