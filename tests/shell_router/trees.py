"""Small trees and a tokenizer for tests that need no checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shell_router.core.apart import ControlToken, Divider, Piece
from shell_router.core.messages import Message
from shell_router.core.passing import AddedToken
from shell_router.core.prompt import Before, Segment, compile_prompt
from shell_router.core.retokenize import Pieces, Vocabulary
from shell_router.core.tree import AgentConfig, Sampling, TemplateConfig, Tree, TreeConfig, build_tree

PROPOSE = TemplateConfig(user="Q: <|question|>", system="You propose.")
AGGREGATE = TemplateConfig(user="Q: <|question|>\n<|answers|>Merge them.", answer="[<|n|>] <|answer|>\n")


class ByteTokenizer:
    """One token a byte; control tokens `<|im_start|>` and `<|im_end|>` are 256 and 257. Renders ChatML."""

    _CONTROL: Mapping[str, int] = {"<|im_start|>": 256, "<|im_end|>": 257}
    _ORDINARY: Mapping[str, int] = {}
    """Added tokens that texts show."""
    chat_template = ""

    most_characters = 1

    def render(self, messages: Sequence[Message], arguments: Mapping[str, object]) -> str:
        turns = "".join(f"<|im_start|>{message.role}\n{message.content}<|im_end|>\n" for message in messages)
        return f"{turns}<|im_start|>assistant\n"

    def chat(self, messages: Sequence[Message], arguments: Mapping[str, object]) -> Sequence[Piece]:
        divider = Divider(ControlToken(token, each.spelling) for token, each in self.added.items())
        return divider.divide(messages, lambda veiled: self.render(veiled, arguments))

    def encode_after(self, text: str, before: Before) -> Sequence[int]:
        return self.encode(text, special=False)

    def encode(self, text: str, *, special: bool) -> list[int]:
        if special:
            for name, token in {**self._CONTROL, **self._ORDINARY}.items():
                before, found, after = text.partition(name)
                if found:
                    return [*self.encode(before, special=True), token, *self.encode(after, special=True)]
        return list(text.encode())

    def pieces(self, text: str) -> Pieces:
        spans = [(at, at + 1) for at, character in enumerate(text) for _ in character.encode()]
        return Pieces(list(text.encode()), spans, [at for at, _ in spans], [text[at:end] for at, end in spans])

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary((), ())

    vocabulary_size = 1024

    @property
    def added(self) -> Mapping[int, AddedToken]:
        special = {token: AddedToken(name, special=True) for name, token in self._CONTROL.items()}
        return special | {token: AddedToken(name, special=False) for name, token in self._ORDINARY.items()}

    @property
    def fingerprint(self) -> str:
        return "bytes"

    def text_of(self, ids: Sequence[int], *, special: bool) -> str:
        added = {token: each.spelling.encode() for token, each in self.added.items() if special or not each.special}
        parts = (bytes([token]) if token < 256 else added.get(token, b"") for token in ids)
        return b"".join(parts).decode(errors="replace")

    def decode(self, ids: Sequence[int], *, leave_out_special: bool = False) -> str:
        """Of a text in ASCII."""
        added = {
            token: "" if each.special and leave_out_special else each.spelling for token, each in self.added.items()
        }
        return "".join(added[token] if token in added else chr(token) for token in ids)


class ThinkingTokenizer(ByteTokenizer):
    """One whose model thinks, and calls tools."""

    _ORDINARY: Mapping[str, int] = {"<think>": 258, "</think>": 259, "<tool_call>": 260}


class OpeningTokenizer(ThinkingTokenizer):
    """One whose chat template opens the thinking."""

    def render(self, messages: Sequence[Message], arguments: Mapping[str, object]) -> str:
        return f"{super().render(messages, arguments)}<think>\n"


class ChannelTokenizer(ByteTokenizer):
    """One whose model answers in channels."""

    _CONTROL: Mapping[str, int] = {
        **ByteTokenizer._CONTROL,
        "<|channel|>": 300,
        "<|message|>": 301,
        "<|end|>": 302,
        "<|start|>": 303,
        "<|return|>": 304,
    }


class SpelledTokenizer(ByteTokenizer):
    """One whose model thinks between marks that are no tokens."""

    chat_template = "{{ content.split('</think>')[-1] }}"


def agent(agent_id: str, inputs: Sequence[str] = (), max_new_tokens: int = 24, model: str = "m") -> AgentConfig:
    return AgentConfig(
        id=agent_id,
        template="aggregate" if inputs else "propose",
        inputs=tuple(inputs),
        model=model,
        sampling=Sampling(max_new_tokens=max_new_tokens, temperature=0),
    )


def tree(*agents: AgentConfig) -> Tree:
    return build_tree(
        TreeConfig(name="t", agents=tuple(agents), templates={"propose": PROPOSE, "aggregate": AGGREGATE})
    )


def tree_4_2_1() -> Tree:
    """Four proposers in two clusters, an aggregator for each, one root."""
    return tree(
        *(agent(f"p{number}") for number in range(1, 5)),
        agent("a1", ["p1", "p2"]),
        agent("a2", ["p3", "p4"]),
        agent("root", ["a1", "a2"]),
    )


def segments(of: Tree, question: str = "why?") -> dict[str, tuple[Segment, ...]]:
    conversation = (Message("user", question),)
    return {each.id: compile_prompt(each, conversation, ByteTokenizer()) for each in of.agents}
