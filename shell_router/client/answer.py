"""An answer as a client has it, with the clock where a user has it."""

from __future__ import annotations

import msgspec


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of all agents of the run."""

    prompt_tokens: int
    completion_tokens: int


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What the router tells of the run that an answer is from."""

    answered_by: str | None = None
    stand_in: bool = False
    """Whether that is not the root."""
    degraded: bool = False
    missing: dict[str, tuple[str, ...]] = {}
    """For agents that had to do without answers, whose."""
    early_exits: int = 0
    tokens_saved: int = 0

    def remarks(self) -> tuple[str, ...]:
        """What was not as in a run where all goes its way; nothing of one where it did."""
        remarks: list[str] = []
        if self.stand_in:
            remarks.append(f"{self.answered_by} answered in place of the root")
        if self.degraded:
            without = [f"{', '.join(whose)} for {agent}" for agent, whose in self.missing.items()]
            remarks.append(f"degraded: no answer of {'; of '.join(without)}" if without else "degraded")
        if self.early_exits:
            times = "once" if self.early_exits == 1 else f"{self.early_exits} times"
            remarks.append(f"exited early {times}, which saved up to {self.tokens_saved} tokens")
        return tuple(remarks)


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The root's whole answer. Times are seconds since the request was sent."""

    run_id: str
    text: str
    opened_s: float
    """First chunk: the run was admitted."""
    ttft_s: float | None
    """First piece of the text; None for an empty answer."""
    latency_s: float
    """End of the stream."""
    usage: Usage
    told: Told
