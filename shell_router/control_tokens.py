"""Which of a tokenizer's tokens are control tokens, and the same tokenizer with those out of any text's reach."""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection
from typing import NamedTuple

from shell_router.core.apart import ControlToken

_PROPERTIES = ("single_word", "lstrip", "rstrip", "normalized")


class Unforgeable(NamedTuple):
    """A tokenizer in which no text spells a control token. Else ids are the same for every text."""

    written: str
    """As `tokenizer.json` has it."""
    control: tuple[ControlToken, ...]
    """As the original spells them."""
    text: tuple[str, ...]
    """Added tokens that are ordinary text: they are looked for in a text before it is divided."""
    hidden: frozenset[str]
    """The spellings of control tokens in `written`."""
    any: str
    """What `written` takes for a control token, one of no meaning."""


def unforgeable(written: str, ends: Collection[str] = ()) -> Unforgeable:
    """`written` is `tokenizer.json`; `ends` are the tokens that its configuration has to begin or end a text.

    Control tokens are all added tokens, flagged as special or not (`<think>` is not), but for the one that stands for
    what the vocabulary cannot spell, which says no more than that, and those not flagged whose spelling is no mark at
    all: runs of white space (Gemma has them) and words. Each is spelled anew, in a way that nobody can guess, in the
    list of added tokens and in the model's vocabulary too: a Unigram model would find it there.
    """
    parts = json.loads(written)
    model, added = parts["model"], parts["added_tokens"]
    unknown = model["vocab"][model["unk_id"]][0] if model.get("unk_id") is not None else model.get("unk_token")
    if unknown in ends and model["type"] == "BPE":
        # What the vocabulary cannot spell vanishes, rather than ends the text.
        model["unk_token"] = unknown = None
    marks = [token for token in added if token["special"] or not all(map(_is_plain, token["content"]))]
    nonce = secrets.token_hex(16)
    respelled = {token["content"]: f"<{nonce}-{token['id']}>" for token in marks}
    for token in marks:
        token["content"] = respelled[token["content"]]
    if model["type"] == "Unigram":
        model["vocab"] = [[respelled.get(piece, piece), score] for piece, score in model["vocab"]]
    else:
        model["vocab"] = {respelled.get(piece, piece): token for piece, token in model["vocab"].items()}
        if unknown in respelled:
            model["unk_token"] = respelled[unknown]
    if model["type"] == "BPE":
        model["merges"] = [merge for merge in model["merges"] if not _makes(merge, respelled)]
    # It may trim the space from a token's span, and names tokens by their spelling.
    parts["post_processor"] = None
    spelled = {new: old for old, new in respelled.items()}
    control = tuple(
        ControlToken(token["id"], spelled[token["content"]], token["lstrip"], token["rstrip"])
        for token in marks
        if spelled[token["content"]] != unknown
    )
    text = tuple(token["content"] for token in added if token["content"] not in spelled)
    some = {"id": 2**31 - 1, "content": f"<{nonce}>", "special": True, **dict.fromkeys(_PROPERTIES, False)}
    added.append(some)
    return Unforgeable(json.dumps(parts), control, text, frozenset(spelled), f"<{nonce}>")


def _makes(merge: str | list[str], tokens: Collection[str]) -> bool:
    """Whether `merge` makes one of `tokens`, or is made of one."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left + right in tokens or left in tokens or right in tokens


def _is_plain(character: str) -> bool:
    return character.isalnum() or character.isspace() or character == "\u2581"
