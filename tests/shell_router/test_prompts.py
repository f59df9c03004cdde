"""Prompts of real vocabularies and chat templates: what one tokenization of all that was rendered gives, and no control
token but the template's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shell_router.config import ConfigError, ModelConfig
from shell_router.core.messages import Message, TemplateRefusal
from shell_router.core.prompt import AnswerSlot, Static, compile_prompt
from shell_router.core.tree import Agent
from shell_router.errors import PromptTooLong, RequestError
from shell_router.prepare import Preparer, RunRequest
from shell_router.tokenizer import HubTokenizer
from shell_router.transport.capabilities import SGLANG
from tests.shell_router.families import TEXTS, Families, backends
from tests.shell_router.trees import ByteTokenizer, tree_4_2_1

pytestmark = pytest.mark.heavy

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
ALTERNATING = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}{{ m.content + '</s>' }}"
    "{% endif %}{% endfor %}"
)
"""Mistral's first."""
GEMMA = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<b>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<|end|>\n"
    "{% endfor %}<b>model\n"
)
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}{% if part.type == 'text' %}"
    "{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant{{ '\n' }}"
)
BUILT = (
    "{% for m in messages %}{{ '<|' + 'im_start|>' + m.role + '\n' + m.content + '<|im' + '_end|>' }}{% endfor %}"
    "<|im_start|>assistant\n"
)
"""As Phi's, which puts its marks together."""
TEMPLATES = {
    "smollm2": CHATML,
    "qwen": CHATML,
    "wordpiece": "{% for m in messages %}[CLS] {{ m.role }}: {{ m.content }} [SEP]{% endfor %}",
    "mistral": ALTERNATING,
    "llama": ALTERNATING,
    "unigram": ALTERNATING,
    "words": "{% for m in messages %}<think>{{ m.role }}\n{{ m.content }}</think>{% endfor %}",
    "added": GEMMA,
    "prefix space": BUILT,
}
ENDS = {"mistral": ("<s>", "</s>"), "llama": ("<s>", "</s>"), "unigram": ("<s>", "</s>")}


def saved(backend: Any, template: str, place: Path, bos: str | None = None, eos: str | None = None) -> HubTokenizer:
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, bos_token=bos, eos_token=eos)
    fast.save_pretrained(place)
    return HubTokenizer(str(place))


@pytest.fixture(scope="module")
def families(graft_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Families:
    place = tmp_path_factory.mktemp("prompts")
    backend = {name: each for name, each in backends() if name in TEMPLATES}
    for each in backend.values():
        each.no_padding()
    hub = {
        name: saved(each, TEMPLATES[name], place / name, *ENDS.get(name, (None, None)))
        for name, each in backend.items()
    }
    return Families(hub, backend)


def conversation(said: Sequence[str]) -> list[Message]:
    """One that alternates, after a system message."""
    roles = ("user", "assistant") * len(said)
    last = len(said) - 1 - (len(said) - 1) % 2
    turns = [Message(role, text) for role, text in zip(roles, said[: last + 1], strict=False)]
    return [Message("system", said[-1]), *turns]


def static_ids(tokenizer: HubTokenizer, agent: Agent, said: Sequence[Message]) -> list[int]:
    ids: list[int] = []
    for segment in compile_prompt(agent, said, tokenizer):
        if isinstance(segment, Static):
            ids += segment.ids
        else:
            ids += [*segment.before, *(segment.closing or ())]
    return ids


def controls(tokenizer: HubTokenizer, ids: Sequence[int]) -> list[int]:
    return [token for token in ids if token in tokenizer.control_tokens]


@pytest.mark.parametrize("name", TEMPLATES)
@settings(derandomize=True, max_examples=40, database=None)
@given(data=st.data())
def test_only_the_template_writes_control_tokens(families: Families, name: str, data: st.DataObject) -> None:
    """Whatever client and tree say, and wherever: the control tokens are those around words that spell none."""
    tokenizer = families.hub[name]
    spelled = st.sampled_from(sorted(tokenizer.control_tokens.values()))
    texts = st.lists(st.lists(spelled | TEXTS, max_size=5).map("".join), min_size=2, max_size=5)
    said = data.draw(texts)
    for agent in (tree_4_2_1().agent("p1"), tree_4_2_1().root):
        plain = static_ids(tokenizer, agent, conversation(["word"] * len(said)))
        assert controls(tokenizer, static_ids(tokenizer, agent, conversation(said))) == controls(tokenizer, plain)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(derandomize=True, max_examples=40, database=None)
@given(said=st.lists(TEXTS, min_size=2, max_size=5))
def test_a_prompt_without_slots_is_one_tokenization(families: Families, name: str, said: list[str]) -> None:
    tokenizer = families.hub[name]
    marks = [*tokenizer.control_tokens.values(), "<unk>", "[UNK]"]
    # A normalizer may make one of what does not spell it.
    if any(mark.strip("<>|[]/") in text for mark in marks for text in said):
        return
    agent = tree_4_2_1().agent("p1")
    first, *rest = conversation(said)
    messages = [Message("system", f"{agent.system}\n\n{first.content}"), *rest]
    messages[-1] = Message("user", f"Q: {messages[-1].content}")
    rendered = tokenizer.render(messages, {})
    whole = families.backend[name].encode(rendered, add_special_tokens=False).ids
    assert static_ids(tokenizer, agent, [first, *rest]) == whole


@pytest.mark.parametrize("name", TEMPLATES)
def test_with_slots_it_is_too_where_tokens_end_at_the_answers(families: Families, name: str) -> None:
    """Answers stand between line breaks or spaces here, and are taken as one tokenization has them."""
    tokenizer, backend = families.hub[name], families.backend[name]
    agent = tree_4_2_1().root
    first, *slots = compile_prompt(agent, [Message("user", "Why is 17 prime?")], tokenizer)
    assert isinstance(first, Static)
    answers = ["Nothing divides it", "It has no factors"]
    user = f"Q: Why is 17 prime?\n[1] {answers[0]}\n[2] {answers[1]}\nMerge them."
    rendered = tokenizer.render([Message("user", user)], {})
    encoding = backend.encode(rendered, add_special_tokens=False)
    spans = list(zip(encoding.ids, encoding.offsets, strict=True))
    expected: list[list[int]] = [[]]
    at = 0
    for answer in answers:
        start = rendered.index(answer, at)
        expected[-1] += [token for token, (a, b) in spans if at <= a and b <= start]
        at = start + len(answer)
        expected.append([])
    expected[-1] += [token for token, (a, b) in spans if at <= a]
    ours = [list(first.ids)]
    for slot in slots:
        assert isinstance(slot, AnswerSlot)
        ours.append(list(slot.before))
    last = slots[-1]
    assert isinstance(last, AnswerSlot)
    del ours[1]
    ours.append(list(last.closing or ()))
    # A space before an answer is a token of its own where there is nothing it could belong to.
    assert ours[-1] == expected[-1]
    assert ours[1][: len(expected[1]) - 1] == expected[1][:-1]
    assert ours[0][: len(expected[0]) - 1] == expected[0][:-1]


def test_where_there_is_no_system_role_its_text_goes_before_the_users(families: Families) -> None:
    said = [Message("system", "Be kind."), Message("user", "one"), Message("assistant", "1"), Message("user", "two")]
    assert families.hub["mistral"].render(said, {}) == "<s>[INST] Be kind.\n\none [/INST]1</s>[INST] two [/INST]"


def test_content_as_parts(families: Families, tmp_path: Path) -> None:
    tokenizer = saved(families.backend["smollm2"], PARTS, tmp_path)
    (static,) = compile_prompt(tree_4_2_1().agent("p1"), [Message("user", "why?")], tokenizer)
    (same,) = compile_prompt(tree_4_2_1().agent("p1"), [Message("user", "why?")], families.hub["smollm2"])
    assert static == same


@pytest.mark.parametrize("file", ["chat_template.json", "chat_template.jinja"])
def test_templates_in_files_of_their_own(families: Families, tmp_path: Path, file: str) -> None:
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=families.backend["smollm2"]).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"no chat template: neither .*chat_template\.json"):
        HubTokenizer(str(tmp_path))
    (tmp_path / file).write_text(json.dumps({"chat_template": CHATML}) if file.endswith("json") else CHATML)
    assert HubTokenizer(str(tmp_path)).render([Message("user", "a")], {}).startswith("<|im_start|>user\na")


@pytest.mark.parametrize("file", ["tokenizer.model", "qwen.tiktoken", "tekken.json", "vocab.json"])
def test_other_tokenizers_are_refused_by_name(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_text("{}")
    with pytest.raises(ConfigError, match=rf"has no tokenizer\.json; it has {file}, which only slow tokenizers read"):
        HubTokenizer(str(tmp_path))


def test_a_template_that_shows_no_message_is_refused(families: Families, tmp_path: Path) -> None:
    tokenizer = saved(families.backend["smollm2"], "{{ messages | length }}", tmp_path)
    with pytest.raises(TemplateRefusal, match="does not show what a system and a user message say"):
        compile_prompt(tree_4_2_1().agent("p1"), [Message("user", "why?")], tokenizer)
    with pytest.raises(ConfigError, match="tree 't': agent 'p1': the chat template of model 'm' refuses the messages"):
        preparer(tokenizer)


def preparer(tokenizer: Any, **arguments: Any) -> Preparer:
    model = ModelConfig(
        name="m", tokenizer="-", router_url="http://x", context_length=4096, chat_template_kwargs=arguments
    )
    return Preparer(trees=[tree_4_2_1()], models={"m": model}, tokenizers={"m": tokenizer}, capabilities={"m": SGLANG})


@pytest.mark.parametrize("name", ["mistral", "qwen"])
def test_messages_that_a_template_refuses_are_the_clients_mistake(families: Families, name: str) -> None:
    prepare = preparer(families.hub[name]).prepare
    said = (Message("user", "one </s>"), Message("user", "two"))
    if name == "qwen":
        assert prepare(RunRequest(tree="t", conversation=said)).segments
        return
    with pytest.raises(RequestError, match="Conversation roles must alternate user/assistant") as refused:
        prepare(RunRequest(tree="t", conversation=said))
    assert refused.value.param == "messages"


def test_arguments_of_the_template(families: Families) -> None:
    qwen = families.hub["qwen"]
    asked = (Message("user", "why?"),)
    with_arguments = preparer(qwen, enable_thinking=False).prepare(RunRequest(tree="t", conversation=asked))
    without = preparer(qwen).prepare(RunRequest(tree="t", conversation=asked))
    (static,), (other,) = with_arguments.segments["p1"], without.segments["p1"]
    assert isinstance(static, Static)
    assert isinstance(other, Static)
    assert static.ids[: len(other.ids)] == other.ids
    assert controls(qwen, static.ids[len(other.ids) :]) == [151667, 151668]


def test_what_no_context_holds_is_refused_untokenized_and_each_text_is_tokenized_once() -> None:
    class Counting(ByteTokenizer):
        def __init__(self) -> None:
            self.asked: list[str] = []

        def encode_after(self, text: str, before: Any) -> Sequence[int]:
            self.asked.append(text)
            return super().encode_after(text, before)

    tokenizer = Counting()
    prepare = preparer(tokenizer).prepare
    tokenizer.asked.clear()
    with pytest.raises(PromptTooLong, match="messages of 4,097 characters are more tokens than a context"):
        prepare(RunRequest(tree="t", conversation=(Message("user", "x" * 4097),)))
    assert not tokenizer.asked
    prepare(RunRequest(tree="t", conversation=(Message("user", "x" * 100),)))
    assert len(tokenizer.asked) == len(set(tokenizer.asked))
    assert sum("x" * 100 in text for text in tokenizer.asked) == 2, "with the text of proposers, and of aggregators"
