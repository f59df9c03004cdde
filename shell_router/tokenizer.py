"""A model's tokenizer and chat template, as files say them. Needs neither torch nor SGLang."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

from shell_router.config import ConfigError
from shell_router.core.prompt import ChatTokenizer, Message
from shell_router.core.retokenize import Pieces, PieceTokenizer, Vocabulary

_FOR_IDS = ("added_tokens", "normalizer", "pre_tokenizer", "model")
"""The parts of `tokenizer.json` that ids depend on; others are for decoding, or for what a caller asks to be added."""


class Tokenizer(ChatTokenizer, PieceTokenizer, Protocol):
    """What the router needs of a model's tokenizer."""

    @property
    def fingerprint(self) -> str:
        """Equal for two tokenizers that give the same ids for every text."""


class _Streaming:
    """A second instance of a tokenizer, for text that streams; transformers sets its own anew at each call."""

    def __init__(self, written: str) -> None:
        """`written` is `tokenizer.json`."""
        from tokenizers import Tokenizer

        self._backend: Any = Tokenizer.from_str(written)
        self._backend.no_padding()
        self._backend.no_truncation()
        # It may trim the space from a token's span.
        self._backend.post_processor = None
        self._backend.encode_special_tokens = True
        parts = json.loads(written)
        self._left_out = _left_out(parts)
        added = [token["content"] for token in parts["added_tokens"]]
        self.vocabulary = Vocabulary(
            added, self._backend.get_vocab(with_added_tokens=False) if _only_joins(parts) else ()
        )

    def pieces(self, text: str) -> Pieces:
        encoding = self._backend.encode(text, add_special_tokens=False)
        spans, words = encoding.offsets, encoding.word_ids
        if not self._left_out.isdisjoint(text.encode()):
            # The spans behind such a byte in its word are off by it.
            starts = dict(zip(reversed(words), (start for start, _ in reversed(spans)), strict=True))
            ends = dict(zip(words, (end for _, end in spans), strict=True))
            spans = [(starts[word], ends[word]) for word in words]
        return Pieces(encoding.ids, spans, words, encoding.tokens)


def _only_joins(parts: Mapping[str, Any]) -> bool:
    """Whether tokens inside a word follow from which pieces of the vocabulary it can be joined of, and from no more.

    `parts` is `tokenizer.json`. Affixes make a piece depend on where in its word it is. And where the byte-level
    pre-tokenizer puts a space before the text, the spans of tokens in that word are off by a byte: no place there can
    be told from them.
    """
    model = parts["model"]
    affixes = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    space_first = any(step["add_prefix_space"] for step in _byte_level(parts))
    return model["type"] in {"BPE", "Unigram"} and not affixes and not space_first


def _left_out(parts: Mapping[str, Any]) -> frozenset[int]:
    """The bytes that a byte-level vocabulary has no piece for, and no unknown token either: they vanish."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    model = parts["model"]
    if not any(_byte_level(parts)) or model["type"] != "BPE" or model["unk_token"] is not None:
        return frozenset()
    return frozenset(byte for byte, spelling in bytes_to_unicode().items() if spelling not in model["vocab"])


def _byte_level(parts: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    before = parts["pre_tokenizer"] or {}
    return (step for step in before.get("pretokenizers", [before]) if step.get("type") == "ByteLevel")


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

    def pieces(self, text: str) -> Pieces:
        """What `encode` makes of `text` with `special` off, token by token."""
        return self._streaming.pieces(text)

    @property
    def vocabulary(self) -> Vocabulary:
        """What streaming needs to know. Takes one or two seconds for a large vocabulary, when first asked for."""
        return self._streaming.vocabulary

    @cached_property
    def fingerprint(self) -> str:
        """Equal for two tokenizers only if they give the same ids for every text. Takes a second as well, once."""
        parts = json.loads(self._tokenizer.backend_tokenizer.to_str())
        written = json.dumps([parts[part] for part in _FOR_IDS], sort_keys=True)
        return hashlib.sha256(written.encode()).hexdigest()

    @cached_property
    def _streaming(self) -> _Streaming:
        return _Streaming(self._tokenizer.backend_tokenizer.to_str())
