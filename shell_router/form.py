"""What a client asks of the run's own answer, beyond how it is sampled."""

from __future__ import annotations

import msgspec


class AnswerForm(msgspec.Struct, frozen=True, kw_only=True):
    """It is for the root alone: other agents answer as their tree has them."""

    json_schema: str | None = None
    """The answer is JSON that this schema (itself JSON) allows."""
    logit_bias: dict[str, float] = {}
    """Added to the score of tokens, by their ids."""
    logprobs: bool = False
    """Whether the client wants the log-probabilities of the answer's tokens."""
    top_logprobs: int = 0
    """And those of the likeliest others at each place, how many."""

    @property
    def plain(self) -> bool:
        """Whether it has to be asked for in a request of its own, with the whole prompt: a session of incremental
        prefill has neither a grammar nor other tokens' log-probabilities."""
        return self.json_schema is not None or self.top_logprobs > 0


ANY_FORM = AnswerForm()
