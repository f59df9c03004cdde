"""What a verify step computes and accepts, against a decode that goes token by token."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from sglang_ext.drafts.verify import NO_DRAFT, Rows, accept_lengths, chain_mask

DRAFTS = [[7, 8], [], [9]]


def test_rows_of_drafts_of_any_length() -> None:
    rows = Rows(DRAFTS, 3, even=False)
    assert rows.counts.tolist() == [3, 1, 2]
    assert rows.inputs(torch.tensor([1, 2, 3])).tolist() == [1, 7, 8, 2, 3, 9]
    assert rows.ahead().tolist() == [0, 1, 2, 0, 0, 1]
    assert rows.places.tolist() == [[0, 1, 2], [3, 3, 3], [4, 5, 5]]
    assert rows.drafts.tolist() == [[7, 8], [NO_DRAFT, NO_DRAFT], [9, NO_DRAFT]]


def test_even_rows() -> None:
    rows = Rows(DRAFTS, 3, even=True)
    assert rows.counts.tolist() == [3, 3, 3]
    inputs = rows.inputs(torch.tensor([1, 2, 3]))
    assert [inputs[place].item() for place in (0, 1, 2, 3, 6, 7)] == [1, 7, 8, 2, 3, 9]
    assert rows.ahead().tolist() == [0, 1, 2] * 3
    assert rows.places.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_a_step_without_drafts() -> None:
    rows = Rows([[], []], 1, even=True)
    assert rows.inputs(torch.tensor([5, 6])).tolist() == [5, 6]
    assert accept_lengths(rows.drafts, torch.tensor([[1], [2]])).tolist() == [1, 1]


def next_token(text: list[int]) -> int:
    """A model of few tokens that often repeats itself."""
    return (text[-1] * 3 + text[-2] + len(text) // 7) % 5


@pytest.mark.parametrize("even", [True, False])
def test_verified_steps_write_what_decode_writes(even: bool) -> None:
    """Whatever is drafted: of random drafts, right ones and wrong ones, each answer is that of plain decode."""
    draw = random.Random(1)
    for _ in range(50):
        prompts = [[draw.randrange(5) for _ in range(draw.randint(2, 6))] for _ in range(draw.randint(1, 5))]
        texts = [list(prompt) for prompt in prompts]
        for _ in range(8):
            drafts = []
            for text in texts:
                right = list(text)
                for _ in range(draw.randint(0, 4)):
                    right.append(next_token(right) if draw.random() < 0.7 else draw.randrange(5))
                drafts.append(right[len(text) :])
            width = 1 + max(map(len, drafts))
            rows = Rows(drafts, width, even)
            inputs = rows.inputs(torch.tensor([text[-1] for text in texts])).tolist()
            owners = torch.arange(len(texts)).repeat_interleave(rows.counts).tolist()
            logits = []
            for place, (owner, ahead) in enumerate(zip(owners, rows.ahead().tolist(), strict=True)):
                logits.append(next_token(texts[owner][:-1] + inputs[place - ahead : place + 1]))
            taken = torch.tensor(logits)[rows.places]
            for text, row, length in zip(
                texts, taken.tolist(), accept_lengths(rows.drafts, taken).tolist(), strict=True
            ):
                text.extend(row[:length])
        for prompt, text in zip(prompts, texts, strict=True):
            plain = list(prompt)
            while len(plain) < len(text):
                plain.append(next_token(plain))
            assert text == plain


def test_sampled_tokens_keep_their_distribution() -> None:
    """Two tokens drawn by verified steps, of whichever draft, are as often what they are as by plain sampling."""
    first = torch.tensor([0.5, 0.3, 0.2])
    second = torch.tensor([[0.1, 0.6, 0.3], [0.8, 0.1, 0.1], [0.25, 0.25, 0.5]])
    torch.manual_seed(3)
    count = 60_000
    for draft in range(3):
        one = torch.multinomial(first, count, replacement=True)
        behind = torch.multinomial(second[draft], count, replacement=True)
        accepted = accept_lengths(torch.full((count, 1), draft), torch.stack([one, behind], dim=1)) == 2
        # Where the draft was wrong, the next step draws the second token.
        again = torch.multinomial(second[one], 1).squeeze(1)
        pairs = Counter(zip(one.tolist(), torch.where(accepted, behind, again).tolist(), strict=True))
        for a in range(3):
            for b in range(3):
                assert pairs[a, b] / count == pytest.approx((first[a] * second[a, b]).item(), abs=0.008)


def test_each_row_sees_the_rows_before_it() -> None:
    lengths, width = torch.tensor([2, 0, 5]), 3
    total = int(((lengths + width) * width).sum())
    mask, at = chain_mask(lengths, width, total).tolist(), 0
    for length in lengths.tolist():
        for row in range(width):
            keys = length + width
            assert mask[at : at + keys] == [key <= length + row for key in range(keys)]
            at += keys
    assert at == total
