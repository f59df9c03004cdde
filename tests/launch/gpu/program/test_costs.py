"""Seconds from published numbers, and from a profile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launch.gpu.program.classes import RequestClass
from launch.gpu.program.costs import CostRow, estimate, load_profile, not_estimated, rows_for
from launch.gpu.program.specs import SPECS
from launch.gpu.sizes import size_of
from shell_router.config import ConfigError
from tests.launch.gpu.recorded import TABLES, cards, model_config

H100, L4 = "NVIDIA H100 80GB HBM3", "NVIDIA L4"
ASKED = RequestClass(name="t: a", model="m", prompt_tokens=1000, answer_tokens=100, requests=1)
ROW: dict[str, Any] = {"model": "m", "card": "c", "prefill_token_s": 1e-4, "step_s": 0.01, "step_request_s": 1e-3}


def of(name: str, card: str = H100, tp_size: int = 1, batch: int = 8) -> CostRow:
    return estimate(name, size_of(model_config(name)), card, tp_size, batch)


def test_a_prompt_and_an_answer() -> None:
    row = CostRow(**ROW, prefill_s=0.5, step_context_token_s=1e-6)
    assert row.prefill(ASKED) == pytest.approx(0.5 + 1000 * 1e-4)
    # In the middle of the answer it holds 1,050 tokens.
    assert row.decode(ASKED, 4) == pytest.approx(100 * (0.01 / 4 + 1e-3 + 1050 * 1e-6))


def test_an_estimate_is_the_published_numbers() -> None:
    row = of("Qwen3-8B")
    # All but the table that tokens are looked up in (151,936 x 4,096).
    met = 8_190_735_360 - 151_936 * 4096
    assert row.prefill_token_s == pytest.approx(2 * met / 989e12)
    assert row.step_s == pytest.approx(2 * met / 3.35e12)
    assert row.step_context_token_s == pytest.approx(36 * 2 * 8 * 128 * 2 / 3.35e12)
    # A model of 8 billion parameters decodes some 200 tokens a second at best for one request on this card.
    assert 180 < ASKED.answer_tokens / row.decode(ASKED, 1) < 230


def test_a_table_that_is_the_head_as_well_is_multiplied() -> None:
    assert of("Qwen3-4B").step_s == pytest.approx(2 * 4_022_468_096 / 3.35e12)


def test_faster_cards_and_smaller_models_take_less() -> None:
    for less, more in ((of("Qwen3-4B"), of("Qwen3-8B")), (of("Qwen3-8B"), of("Qwen3-8B", L4))):
        assert less.prefill(ASKED) < more.prefill(ASKED)
        assert less.decode(ASKED, 8) < more.decode(ASKED, 8)


def test_tensor_parallel_workers_take_a_share_on_each_card() -> None:
    one, four = of("Qwen3-8B"), of("Qwen3-8B", tp_size=4)
    assert four.prefill(ASKED) == pytest.approx(one.prefill(ASKED) / 4)
    assert four.decode(ASKED, 8) == pytest.approx(one.decode(ASKED, 8) / 4)
    # Eight KV heads on sixteen cards: each is held twice.
    assert of("Qwen3-8B", tp_size=16).step_context_token_s == of("Qwen3-8B", tp_size=8).step_context_token_s


def test_of_a_mixture_of_experts_a_token_meets_few_and_a_batch_more() -> None:
    size = size_of(model_config("Qwen3-30B-A3B")).parameters
    assert size is not None
    # 3.3 billion are active by its card, the table of 151,936 x 2,048 among them.
    assert size.met() + size.looked_up == pytest.approx(3.3e9, rel=0.02)
    experts = 48 * 128 * 3 * 2048 * 768
    assert (size.experts, size.expert_share) == (experts, 8 / 128)
    assert size.met(8) == pytest.approx(size.met() + experts * (120 / 128 - (120 / 128) ** 8))
    assert size.met(10_000) == pytest.approx(size.all - size.looked_up)
    mixed, dense = of("Qwen3-30B-A3B"), of("Qwen3-32B")
    assert mixed.prefill(ASKED) < dense.prefill(ASKED) / 8
    assert of("Qwen3-30B-A3B", batch=1).step_s < mixed.step_s < dense.step_s
    assert of("Qwen3-8B", batch=1).step_s == of("Qwen3-8B", batch=64).step_s, "all tokens meet a dense model"


def test_what_cannot_be_estimated() -> None:
    size = size_of(model_config("Qwen3-8B"))
    assert not_estimated(size, "auto", [H100, L4]) is None
    assert "float32" in str(not_estimated(size, "float32", [H100]))
    assert "NVIDIA H99" in str(not_estimated(size, "auto", [H100, "NVIDIA H99"]))
    silent = size_of(model_config("Qwen3-30B-A3B") | {"num_experts_per_tok": None})
    assert silent.weight_bytes == size_of(model_config("Qwen3-30B-A3B")).weight_bytes
    assert "how many parameters" in str(not_estimated(silent, "auto", [H100]))


def test_the_cards_of_the_recorded_tables_are_known() -> None:
    names = {card.name for path in TABLES for card in cards(path.stem).cards}
    assert names <= SPECS.keys()


def test_a_profile_is_read(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({"rows": [ROW, ROW | {"tp_size": 2}]}))
    profile = load_profile(path)
    found, lacking = rows_for(profile, [("m", "c", 2), ("m", "d", 1)])
    assert found == {("m", "c", 2): CostRow(**ROW, tp_size=2)}
    assert lacking == ("$.rows: nothing is known of m on 1 x d; there are m on 1 x c, m on 2 x c",)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"at `\$\.rows`"),
        ([ROW | {"speed": 1}], r"unknown field `speed`; there are model, .* - at `\$\.rows\[0\]`"),
        ([ROW, {"model": "m"}], r"missing required field `card` - at `\$\.rows\[1\]`"),
        ([ROW | {"step_s": -1}], r"at `\$\.rows\[0\]\.step_s`"),
        ([ROW | {"tp_size": 0}], r"at `\$\.rows\[0\]\.tp_size`"),
        ([ROW | {"prefill_token_s": 0}], r"take some time - at `\$\.rows\[0\]`"),
        ([ROW, ROW], r"m on 1 x c is there twice - at `\$\.rows\[1\]`"),
    ],
)
def test_a_profile_that_is_wrong_says_where(rows: list[object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({"rows": rows}))
    with pytest.raises(ConfigError, match=message) as told:
        load_profile(path)
    assert str(path) in str(told.value)
