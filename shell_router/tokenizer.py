"""A model's tokenizer and chat template, as files say them. Needs neither torch nor SGLang."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from shell_router.chat_template import ChatTemplate
from shell_router.config import ConfigError
from shell_router.control_tokens import Unforgeable, unforgeable
from shell_router.core.apart import Divider, Piece
from shell_router.core.messages import Message
from shell_router.core.passing import AddedToken
from shell_router.core.prompt import Before, ChatTokenizer
from shell_router.core.retokenize import Pieces, PieceTokenizer, Vocabulary

_ANCHORS = ("a", ".", "\n")
"""Text that others may stand behind: at a text's beginning some tokenizers put a space."""

_COMPOSING = frozenset({"NFC", "NFD", "NFKC", "NFKD"})
_JOINED = 4
"""Characters that these may make one."""

_OTHER_TOKENIZERS = ("*.model", "*.tiktoken", "tekken.json", "vocab.json", "vocab.txt", "merges.txt", "*.spm")
"""Files of SentencePiece, tiktoken, Mistral's tekken, and slow tokenizers."""

_FOR_IDS = ("added_tokens", "normalizer", "pre_tokenizer", "model")
"""The parts of `tokenizer.json` that ids depend on; others are for decoding, or for what a caller asks to be added."""


class Tokenizer(ChatTokenizer, PieceTokenizer, Protocol):
    """What the router needs of a model's tokenizer."""

    @property
    def most_characters(self) -> int | None:
        """Of text that one token can stand for; None where that has no bound."""

    def render(self, messages: Sequence[Message], arguments: Mapping[str, object]) -> str:
        """The chat template around `messages`, as text. Raises `TemplateRefusal`."""

    @property
    def added(self) -> Mapping[int, AddedToken]:
        """The added tokens by id."""

    @property
    def chat_template(self) -> str:
        """As it is written."""

    @property
    def fingerprint(self) -> str:
        """Equal for two tokenizers that give the same ids for every text."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, control tokens as they are spelled."""

    def text_of(self, ids: Sequence[int], *, special: bool) -> str:
        """What an engine makes of `ids`; control tokens are left out unless `special`."""

    @property
    def vocabulary_size(self) -> int:
        """Ids below it are tokens of the model. It is that of the checkpoint's embeddings, which may be more than the
        tokenizer has words for, or fewer; where no `config.json` tells it, that of the tokenizer."""


def _embedded(path: str) -> int | None:
    """How many tokens the checkpoint at `path` has embeddings for; None when it does not say."""
    try:
        written = json.loads((Path(path) / "config.json").read_bytes())
    except (OSError, ValueError):
        return None
    sizes = (written.get("text_config", {}).get("vocab_size"), written.get("vocab_size"))
    return next((size for size in sizes if isinstance(size, int)), None)


class _Plain:
    """The ids of text as such, whatever it spells."""

    def __init__(self, tokens: Unforgeable) -> None:
        from tokenizers import Tokenizer

        self._tokens = tokens
        # An instance of our own: transformers sets its one anew at each call.
        self._backend: Any = Tokenizer.from_str(tokens.written)
        self._backend.no_padding()
        self._backend.no_truncation()

    @cached_property
    def vocabulary(self) -> Vocabulary:
        pieces: Mapping[str, int] = {}
        if _only_joins(self._parts):
            pieces = self._backend.get_vocab(with_added_tokens=False)
        return Vocabulary(self._tokens.text, pieces.keys() - self._tokens.hidden)

    @cached_property
    def _left_out(self) -> frozenset[int]:
        return _left_out(self._parts)

    @cached_property
    def _parts(self) -> Mapping[str, Any]:
        parts: Mapping[str, Any] = json.loads(self._tokens.written)
        return parts

    @cached_property
    def most_characters(self) -> int | None:
        """Where each character costs a byte at least, and normalization joins no more than `_JOINED` to one."""
        steps = self._parts["normalizer"] or {}
        named = {step["type"] for step in steps.get("normalizers", [steps]) if step}
        if self._parts["model"]["type"] != "BPE" or not any(_byte_level(self._parts)) or not named <= _COMPOSING:
            return None
        longest = max(map(len, self._backend.get_vocab(with_added_tokens=False).keys() - self._tokens.hidden))
        return _JOINED * max(longest, *map(len, self._tokens.text)) if self._tokens.text else _JOINED * longest

    def encode(self, text: str) -> list[int]:
        # Unlike `encode`, it lets other threads run meanwhile.
        (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=False)
        ids: list[int] = encoding.ids
        return ids

    def encode_after(self, text: str, before: Before) -> list[int]:
        match before:
            case "nothing":
                return self.encode(text)
            case "control":
                return self.encode(self._tokens.any + text)[1:]
        for anchor in _ANCHORS:
            alone = self.encode(anchor)
            both = self.encode(anchor + text)
            if both[: len(alone)] == alone:
                return both[len(alone) :]
        return self.encode(text)

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

        _refuse_other_tokenizers(Path(path))
        try:
            self._tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise ConfigError(f"no tokenizer can be loaded from {path}: {error}") from error
        self._embedded = _embedded(path)
        if self._tokenizer.chat_template is None:
            self._tokenizer.chat_template = _template_of_processor(Path(path))
        self._template = ChatTemplate(self._tokenizer)
        ends = {self._tokenizer.bos_token, self._tokenizer.eos_token} - {None}
        tokens = unforgeable(self._tokenizer.backend_tokenizer.to_str(), ends)
        self.control_tokens = {token.id: token.spelling for token in tokens.control}
        """Ids that no text comes to, and how the vocabulary spells each: `{151645: "<|im_end|>"}`."""
        self._divider = Divider(tokens.control)
        self._plain = _Plain(tokens)

    def render(self, messages: Sequence[Message], arguments: Mapping[str, object]) -> str:
        return self._template.render(messages, arguments)

    def chat(self, messages: Sequence[Message], arguments: Mapping[str, object]) -> Sequence[Piece]:
        return self._divider.divide(messages, lambda veiled: self._template.render(veiled, arguments))

    def encode_after(self, text: str, before: Before) -> Sequence[int]:
        return self._plain.encode_after(text, before)

    @property
    def most_characters(self) -> int | None:
        return self._plain.most_characters

    def encode(self, text: str, *, special: bool) -> list[int]:
        if not special:
            return self._plain.encode(text)
        return [int(token) for token in self._tokenizer.encode(text, add_special_tokens=False)]

    def text_of(self, ids: Sequence[int], *, special: bool) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=not special))

    def pieces(self, text: str) -> Pieces:
        """What `encode` makes of `text` with `special` off, token by token."""
        return self._plain.pieces(text)

    @property
    def vocabulary(self) -> Vocabulary:
        """What streaming needs to know. Takes one or two seconds for a large vocabulary, when first asked for."""
        return self._plain.vocabulary

    @cached_property
    def added(self) -> Mapping[int, AddedToken]:
        tokens = self._tokenizer.added_tokens_decoder
        return {int(token): AddedToken(str(each.content), bool(each.special)) for token, each in tokens.items()}

    @property
    def chat_template(self) -> str:
        template = self._tokenizer.chat_template
        return template if isinstance(template, str) else json.dumps(template)

    @cached_property
    def vocabulary_size(self) -> int:
        return self._embedded or len(self._tokenizer)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, control tokens as they are spelled."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    @cached_property
    def fingerprint(self) -> str:
        """Equal for two tokenizers only if they give the same ids for every text. Takes a second as well, once."""
        parts = json.loads(self._tokenizer.backend_tokenizer.to_str())
        written = json.dumps([parts[part] for part in _FOR_IDS], sort_keys=True)
        return hashlib.sha256(written.encode()).hexdigest()


def _template_of_processor(folder: Path) -> str:
    """That of a model that takes images too, where older files have it. Raises `ConfigError` when there is none."""
    file = folder / "chat_template.json"
    try:
        template = json.loads(file.read_text())["chat_template"] if file.is_file() else None
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{file} has no chat template: {error!r}") from error
    if not isinstance(template, str):
        raise ConfigError(
            f"the tokenizer in {folder} has no chat template: neither tokenizer_config.json nor chat_template.jinja or "
            "chat_template.json has one"
        )
    return template


def _refuse_other_tokenizers(folder: Path) -> None:
    """Raise `ConfigError` for a checkpoint whose tokenizer is in files of another kind."""
    if not folder.is_dir() or (folder / "tokenizer.json").is_file():
        return
    others = sorted(path.name for pattern in _OTHER_TOKENIZERS for path in folder.glob(pattern))
    found = f"it has {', '.join(others)}, which only slow tokenizers read; " if others else ""
    raise ConfigError(
        f"{folder} has no tokenizer.json; {found}fast tokenizers alone are supported. Where transformers can convert "
        f"it, `AutoTokenizer.from_pretrained(...).save_pretrained(...)` writes one"
    )
