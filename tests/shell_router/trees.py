"""Small trees and a tokenizer for tests that need no checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

from shell_router.core.prompt import Message, Segment, compile_prompt
from shell_router.core.retokenize import Pieces, Vocabulary
from shell_router.core.tree import AgentConfig, Sampling, TemplateConfig, Tree, TreeConfig, build_tree

PROPOSE = TemplateConfig(user="Q: <|question|>", system="You propose.")
AGGREGATE = TemplateConfig(user="Q: <|question|>\n<|answers|>Merge them.", answer="[<|n|>] <|answer|>\n")


class ByteTokenizer:
    """One token a byte; control tokens `<|im_start|>` and `<|im_end|>` are 256 and 257. Renders ChatML."""

    _CONTROL = (("<|im_start|>", 256), ("<|im_end|>", 257))

    def render(self, messages: Sequence[Message]) -> str:
        turns = "".join(f"<|im_start|>{message.role}\n{message.content}<|im_end|>\n" for message in messages)
        return f"{turns}<|im_start|>assistant\n"

    def encode(self, text: str, *, special: bool) -> list[int]:
        if special:
            for name, token in self._CONTROL:
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

    @property
    def fingerprint(self) -> str:
        return "bytes"

    def decode(self, ids: Sequence[int]) -> str:
        names = {token: name for name, token in self._CONTROL}
        return "".join(names.get(token) or chr(token) for token in ids)


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
