"""Sizes from config.json, against the public parameter counts of real models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch import checkpoint
from launch.gpu.sizes import SizeError, read_size, size_of, text_parameters, vision_parameters
from tests.launch.gpu.recorded import model_config

PARAMETERS = {
    "Qwen3-4B": 4_022_468_096,
    "Qwen3-8B": 8_190_735_360,
    "Qwen3-32B": 32_762_123_264,
    "Qwen3-VL-4B-Instruct": 4_437_815_808,
    "Qwen3-VL-8B-Instruct": 8_767_123_696,
    "Qwen3-Embedding-0.6B": 595_776_512,
    "Qwen3-Embedding-4B": 4_021_774_336,
    "Qwen3-30B-A3B": 30_532_122_624,
    "DeepSeek-V2-Lite": 15_706_484_224,
}
"""As the hub counts them in the published tensors."""


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_parameters_are_those_of_the_published_model(name: str, parameters: int) -> None:
    config = model_config(name)
    assert text_parameters(config) + (vision_parameters(config) or 0) == parameters
    assert size_of(config).weight_bytes == 2 * parameters
    assert size_of(config, "float32").weight_bytes == 4 * parameters


def test_the_32b_vision_model() -> None:
    size = size_of(model_config("Qwen3-VL-32B-Instruct"))
    assert size.weight_bytes / 2 == pytest.approx(33.4e9, rel=0.005)
    assert size.multimodal
    assert size.vision_bytes == pytest.approx(2 * 0.6e9, rel=0.02)


@pytest.mark.parametrize(
    ("name", "kv_bytes"),
    [
        ("Qwen3-4B", 36 * 2 * 8 * 128 * 2),
        ("Qwen3-VL-32B-Instruct", 64 * 2 * 8 * 128 * 2),
        ("Qwen3-30B-A3B", 48 * 2 * 4 * 128 * 2),
        ("DeepSeek-V2-Lite", 27 * (512 + 64) * 2),
    ],
)
def test_kv_of_a_token(name: str, kv_bytes: int) -> None:
    assert size_of(model_config(name)).kv_bytes_per_token == kv_bytes


def test_a_real_checkpoint_is_as_large_as_its_tensors() -> None:
    directory = checkpoint.directory("builtin:smollm2-135m-instruct")
    size = read_size(directory)
    config = json.loads((directory / "config.json").read_text())
    assert size.weight_bytes == 2 * text_parameters(config) == 2 * 134_515_008
    assert size.weight_bytes < (directory / "model.safetensors").stat().st_size < size.weight_bytes + 100_000
    assert size.kv_bytes_per_token == 30 * 2 * 3 * 64 * 2
    assert read_size(directory, "float32").weight_bytes == 2 * size.weight_bytes


def test_the_index_of_a_checkpoint_is_believed(tmp_path: Path) -> None:
    config = model_config("Qwen3-8B") | {"quantization_config": {"quant_method": "fp8"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SizeError, match="quantized"):
        read_size(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 9_000_000_000}}))
    assert read_size(tmp_path).weight_bytes == 9_000_000_000


def test_tensor_parallel_workers_split_weights_and_heads() -> None:
    size = size_of(model_config("Qwen3-VL-8B-Instruct"))
    assert size.weights_on_card(1) == size.weight_bytes
    text = size.weight_bytes - size.vision_bytes
    assert size.weights_on_card(4) == size.vision_bytes + text // 4, "each card has the whole vision tower"
    assert size.kv_on_card(4) * 4 == size.kv_bytes_per_token
    # Eight KV heads: sixteen cards hold each head twice.
    assert size.kv_on_card(16) == size.kv_on_card(8)
    assert [tp for tp in range(1, 17) if size.splits(tp)] == [1, 2, 4, 8, 16]
    latent = size_of(model_config("DeepSeek-V2-Lite"))
    assert latent.kv_on_card(4) == latent.kv_bytes_per_token, "latent attention has one cache for all heads"
    assert latent.splits(4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "`hidden_size` is missing"),
        ({"vocab_size": "many"}, "`vocab_size` is missing"),
        ({"torch_dtype": "int3"}, "the data type 'int3' is not known"),
        ({"vision_config": {"depth": 2}}, "its vision tower is of an unknown kind"),
    ],
)
def test_what_a_config_does_not_tell(change: dict[str, object], message: str) -> None:
    with pytest.raises(SizeError, match=message):
        size_of(model_config("Qwen3-4B") | change)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_config_that_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(SizeError, match=r"config\.json"):
        read_size(tmp_path)


def test_attention_with_biases_and_layers_without_experts() -> None:
    plain = model_config("Qwen3-4B")
    heads, kv_heads, head, hidden = 32, 8, 128, 2560
    biased = text_parameters(plain | {"attention_bias": True}) - text_parameters(plain)
    assert biased == 36 * (head * (heads + 2 * kv_heads) + hidden)
    sparse = model_config("Qwen3-30B-A3B")
    experts = 128 * (3 * 2048 * 768 + 2048)
    dense = text_parameters(sparse) - text_parameters(sparse | {"mlp_only_layers": [0, 1]})
    assert dense == 2 * (experts - 3 * 2048 * 6144)
