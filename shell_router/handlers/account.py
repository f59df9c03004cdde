"""What an answer tells of the run it comes from."""

from __future__ import annotations

from typing import Any

from shell_router.record import RunRecord


def early_exits(record: RunRecord) -> int:
    """How many checks made agents needless."""
    return sum(check.outcome == "exit" for check in record.checks)


def graft(record: RunRecord) -> dict[str, Any]:
    """The `graft` object of an answer, of a run that is done."""
    return {
        "run": record.id,
        "answered_by": record.answered_by,
        # Clients cannot know who the root is.
        "stand_in": record.answered_by != record.agents[-1].id,
        "degraded": record.degraded,
        "missing": record.missing,
        "early_exits": early_exits(record),
        "tokens_saved": record.tokens_saved,
    }


def usage(record: RunRecord) -> dict[str, Any]:
    """OpenAI's `usage` of all agents that were asked for an answer, also of those whose answers were cut short."""
    asked = [agent for agent in record.agents if agent.committed_s is not None]
    prompt = sum(agent.prompt_tokens for agent in asked)
    completion = sum(agent.output_tokens for agent in asked)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(agent.cached_tokens for agent in asked)},
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
