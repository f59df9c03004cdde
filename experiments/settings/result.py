"""What one run of an experiment came to."""

from __future__ import annotations

import msgspec

from experiments.settings.plan import Step
from shell_router.record import RunRecord


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """A run that was made, well or not. Times are seconds, as the client measured them."""

    order: int
    """Place in the order in which the experiment's runs were made, from 0."""
    step: Step
    started: float
    """Unix time, seconds."""
    flushed: bool
    """Whether the workers' caches were emptied just before."""
    forced: tuple[str, ...] = ()
    """Agents that were made to give recorded answers."""
    run_id: str | None
    """None when the run did not begin."""
    ttft_s: float | None
    """From sending the request to the first piece of the root's answer."""
    latency_s: float | None
    """From sending the request to the end of the root's answer."""
    answer: str | None
    correct: bool | None
    """As the benchmark's scorer judges `answer`; None when it cannot tell."""
    error: str | None
    """Why the run failed; None when it succeeded."""
    record: RunRecord | None
    """As the shell router answers it; also for a failed run, when it can be had."""

    @property
    def succeeded(self) -> bool:
        """Answer, record and event log are all there."""
        return self.error is None
