"""What an answer tells of the run it comes from."""

from __future__ import annotations

from shell_router.handlers.openai_answers import GraftAccount, UsageAccount
from shell_router.record import RunRecord


def graft(record: RunRecord) -> GraftAccount:
    """The `graft` object of an answer, of a run that is done."""
    return {
        "run": record.id,
        "answered_by": record.answered_by,
        # Clients cannot know who the root is.
        "stand_in": record.answered_by != record.root.id,
        "degraded": record.degraded,
        "missing": record.missing,
        "early_exits": record.early_exits,
        "tokens_saved": record.tokens_saved,
    }


def usage(record: RunRecord) -> UsageAccount:
    """OpenAI's `usage` of all agents that were asked for an answer, also of those whose answers were cut short."""
    asked = [agent for agent in record.agents if agent.committed_s is not None]
    total = record.usage
    return {
        "prompt_tokens": total.prompt_tokens,
        "completion_tokens": total.completion_tokens,
        "total_tokens": total.prompt_tokens + total.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": total.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": total.thinking_tokens},
        "agents": [
            {
                "id": agent.id,
                "model": agent.model,
                "prompt_tokens": agent.prompt_tokens,
                "completion_tokens": agent.output_tokens,
                "cached_tokens": agent.cached_tokens,
            }
            for agent in asked
        ],
    }
