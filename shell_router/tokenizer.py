"""A model's tokenizer and chat template, as files say them. Needs neither torch nor SGLang."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shell_router.config import ConfigError
from shell_router.core.prompt import Message


class HubTokenizer:
    """The tokenizer in a checkpoint directory or under a hub id (`tokenizer.json` and a chat template)."""

    def __init__(self, path: str) -> None:
        """Raises `ConfigError` when there is no tokenizer or no chat template at `path`."""
        from transformers import PreTrainedTokenizerFast

        try:
            self._tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise ConfigError(f"no tokenizer can be loaded from {path}: {error}") from error
        if self._tokenizer.chat_template is None:
            raise ConfigError(f"the tokenizer in {path} has no chat template")

    def render(self, messages: Sequence[Message]) -> str:
        rendered = self._tokenizer.apply_chat_template(
            [{"role": message.role, "content": message.content} for message in messages],
            tokenize=False,
            add_generation_prompt=True,
        )
        assert isinstance(rendered, str)
        return rendered

    def encode(self, text: str, *, special: bool) -> list[int]:
        ids = self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=not special)
        return [int(token) for token in ids]
