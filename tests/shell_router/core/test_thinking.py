"""Thinking and answer told apart, in whole texts and in texts that stream."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shell_router.core.thinking import (
    KNOWN,
    Marks,
    Split,
    TextSplit,
    ThinkingMarks,
    begins_inside,
    detect,
    parts_of_text,
    spellings,
    split,
)

THINK = KNOWN[0]
HARMONY = "<|channel|>analysis<|message|>17 * 3?<|end|><|start|>assistant<|channel|>final<|message|>It is 51.<|return|>"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is 51.", ("", "It is 51.", False)),
        ("<think>17 * 3?</think>\n\nIt is 51.", ("17 * 3?", "It is 51.", False)),
        ("\n<think>\n17 * 3?\n</think>It is 51.", ("17 * 3?\n", "It is 51.", False)),
        ("<think></think>It is 51.", ("", "It is 51.", False)),
        ("<think>a</think>\n<think>b</think> c", ("ab", "c", False)),
        ("<think>It is 51", ("It is 51", "", True)),
        ("<think>It is 51</thi", ("It is 51</thi", "", True)),
        ("<think>It is 51</think>\n", ("It is 51", "", False)),
        # The prompt opened it.
        ("17 * 3?</think>It is 51.", ("17 * 3?", "It is 51.", False)),
        # What an answer is about is no mark.
        ("A <think> tag ends with </think>.", ("", "A <think> tag ends with </think>.", False)),
        ("[THINK]17 * 3?[/THINK]It is 51.", ("17 * 3?", "It is 51.", False)),
        ("<thought>17 * 3?", ("17 * 3?", "", True)),
        ("<thinking>17</thinking>51", ("17", "51", False)),
        ("◁think▷17◁/think▷51", ("17", "51", False)),
        (HARMONY, ("17 * 3?", "It is 51.", False)),
        (HARMONY.partition("<|end|>")[0], ("17 * 3?", "", True)),
        ("<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>", ("{}", "", True)),
        ("<|channel|>final<|message|>It is 51.", ("", "It is 51.", False)),
        # As a server has it that leaves out control tokens.
        ("analysisWe need 17 * 3.assistantfinalIt is 51.", ("analysisWe need 17 * 3.", "It is 51.", False)),
        ("analysisWe need 17 * 3.", ("analysisWe need 17 * 3.", "", True)),
        ("analysis of the question: 51", ("", "analysis of the question: 51", False)),
        ("", ("", "", False)),
    ],
)
def test_a_whole_text_is_split(text: str, expected: tuple[str, str, bool]) -> None:
    assert split(text) == Split(*expected)


def test_an_answer_whose_block_the_prompt_opened_is_thinking_till_it_closes() -> None:
    assert split("It is 51", opened=True) == Split("It is 51", "", True)
    assert split("<think></think>51", opened=True).answer == "51"
    assert split("17?</think>51", opened=True) == Split("17?", "51", False)


@pytest.mark.parametrize(
    ("added", "template", "expected"),
    [
        (("<think>", "</think>", "<|im_end|>"), "", THINK),
        (("[THINK]", "[/THINK]"), "", ThinkingMarks(opens="[THINK]", closes="[/THINK]")),
        (("<|channel|>", "<|message|>", "<|return|>"), "", "channels"),
        (("<|im_end|>",), "{{ content.split('</think>')[-1] }}", THINK),
        (("<|im_end|>",), "{{ content }}", None),
    ],
)
def test_marks_are_found_in_tokens_and_templates(added: tuple[str, ...], template: str, expected: Marks | None) -> None:
    assert detect(added, template) == expected


@pytest.mark.parametrize(
    ("prompt", "inside"),
    [
        ("<|Assistant|><think>\n", True),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("<|im_start|>assistant\n", False),
    ],
)
def test_a_prompt_may_end_inside_a_block(prompt: str, inside: bool) -> None:
    assert begins_inside(prompt, THINK) is inside
    assert not begins_inside(prompt, "channels")


PIECES = (
    *("<think>", "</think>", "<th", "ink>", "</", "think", ">", "<", "<|channel|>", "analysis", "final", "<|message|>"),
    *("<|end|>", "<|start|>", "assistant", " ", "\n\n", "It is 51.", "17 * 3?", "ana", "<|"),
)
TEXTS = st.lists(st.sampled_from(PIECES), max_size=16).map("".join)


def streamed(marks: Marks, pieces: list[str], *, opened: bool) -> tuple[str, str]:
    parts = parts_of_text(marks, opened=opened, anywhere=False)
    whole = TextSplit(parts, spellings(marks))
    found = [whole.extend(piece) for piece in pieces] + [whole.end()]
    return "".join(answer for answer, _ in found), "".join(thinking for _, thinking in found)


@given(
    text=TEXTS,
    cuts=st.lists(st.integers(0, 80)),
    marks=st.sampled_from(("channels", THINK)),
    opened=st.booleans(),
)
def test_the_split_does_not_depend_on_how_the_text_came(text: str, cuts: list[int], marks: Marks, opened: bool) -> None:
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:end] for start, end in pairwise(places)]
    assert "".join(pieces) == text
    assert streamed(marks, pieces, opened=opened) == streamed(marks, [text], opened=opened)


def test_all_that_cannot_be_a_mark_comes_at_once() -> None:
    split_ = TextSplit(parts_of_text(THINK, opened=False, anywhere=False), spellings(THINK))
    assert split_.extend("<thi") == ("", "")
    assert split_.extend("nk>why") == ("", "why")
    assert split_.extend("? a < b") == ("", "? a < b")
    assert split_.extend(" <") == ("", " ")
    assert split_.extend("/think>\n") == ("", "")
    assert split_.extend("\n51 <") == ("51 ", "")
    assert split_.extend("think> is a tag") == ("<think> is a tag", "")
    assert split_.end() == ("", "")


def test_a_mark_that_no_token_confirms_is_content() -> None:
    came: Counter[str] = Counter()
    parts = parts_of_text(THINK, opened=True, anywhere=True)
    split_ = TextSplit(parts, spellings(THINK), confirmed=came)
    assert split_.extend("one writes </think>,") == ("", "one writes </think>,")
    came["</think>"] += 1
    assert split_.extend(" so</think>51, not <think>") == ("51, not <think>", " so")
    assert split_.end() == ("", "")
