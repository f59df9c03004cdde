"""How the answers of a model are passed on, by its tokenizer and what its configuration says of thinking."""

from __future__ import annotations

from shell_router.core.passing import PassingRules
from shell_router.core.thinking import FINAL, Marks, ThinkingSetting, detect, spellings
from shell_router.tokenizer import Tokenizer

_WHITE_SPACE = (" ", "  ", "\t", "\n", "\n\n", "\n\n\n", " \n", " \n\n", "\r\n")


def passing_rules(tokenizer: Tokenizer, thinking: ThinkingSetting, *, token_ids: bool = True) -> PassingRules:
    """For a model with this tokenizer, whose engine gives `token_ids` or text alone. Marks that are not all tokens are
    looked for in the text."""
    added = tokenizer.added
    control: dict[int, tuple[int, ...]] = {}
    for token, each in added.items():
        spelled = () if each.special else tuple(tokenizer.encode_after(each.spelling, "text"))
        if spelled != (token,):
            control[token] = spelled
    marks = _marks(tokenizer, thinking)
    if marks is None:
        return PassingRules(control=control)
    ids = {each.spelling: token for token, each in added.items()}
    are_tokens = all(mark in ids for mark in _needed(marks))
    mark_ids = {ids[mark]: mark for mark in spellings(marks) if mark in ids} if are_tokens else {}
    hidden = any(added[token].special for token in mark_ids)
    return PassingRules(
        control=control,
        marks=marks,
        mark_ids=mark_ids if token_ids else {},
        final=tuple(tokenizer.encode(FINAL, special=False)),
        blanks=frozenset(token for text in _WHITE_SPACE for token in tokenizer.encode(text, special=False)),
        shown=frozenset(each.spelling for each in added.values() if each.special) if hidden else frozenset(),
    )


def _marks(tokenizer: Tokenizer, thinking: ThinkingSetting) -> Marks | None:
    match thinking:
        case "auto":
            return detect({each.spelling for each in tokenizer.added.values()}, tokenizer.chat_template)
        case "off":
            return None
        case _:
            return thinking


def _needed(marks: Marks) -> tuple[str, ...]:
    """The marks without which an answer's ids tell nothing."""
    return spellings(marks)[:2]
