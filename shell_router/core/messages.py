"""Messages of a conversation, and what a chat template says of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Message:
    """A chat message of the conversation."""

    role: str
    content: str


class TemplateRefusal(ValueError):
    """A chat template does not take the messages; in its own words."""
