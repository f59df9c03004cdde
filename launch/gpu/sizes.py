"""Weights and KV of a model, computed from its config.json.

A transformer's tensors follow from a dozen numbers. Where the checkpoint itself is at hand, the bytes of its tensors
are taken instead; the KV always comes from the config.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from shell_router.errors import GraftError

_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_SPLIT_TYPES = ("qwen3",)


class SizeError(GraftError):
    """A config.json does not tell what is needed; the message says what is missing."""

    exit_code = 2


@dataclass(frozen=True)
class Parameters:
    """How many parameters a language model has, and how many of them a token meets."""

    all: int
    looked_up: int
    """Of `all`, the table that a token is looked up in and not multiplied with. One that is the language model head as
    well is multiplied."""
    experts: int
    """Of `all`, those of experts that a token may be sent to."""
    expert_share: float
    """How many of these one token meets."""

    def met(self, tokens: int = 1) -> float:
        """What `tokens` tokens of different texts are multiplied with; experts count as drawn anew for each token."""
        return self.all - self.looked_up - self.experts * (1 - self.expert_share) ** tokens


@dataclass(frozen=True)
class ModelSize:
    """What one copy of a model takes, split over no cards."""

    weight_bytes: int
    """All tensors, the vision tower included."""
    vision_bytes: int
    """Of these the vision tower, which is counted whole on each card of a tensor parallel worker."""
    kv_bytes_per_token: int
    kv_heads: int
    """1 for latent attention (MLA), where all heads share one cache."""
    attention_heads: int
    multimodal: bool
    parameters: Parameters | None
    """None where its config.json does not tell."""

    def weights_on_card(self, tp_size: int) -> int:
        """Bytes of weights on each of `tp_size` cards."""
        return self.vision_bytes + -(-(self.weight_bytes - self.vision_bytes) // tp_size)

    def kv_on_card(self, tp_size: int) -> int:
        """Bytes of KV that a token takes on each of `tp_size` cards. Heads that cannot be split are held twice."""
        return -(-self.kv_bytes_per_token // min(tp_size, self.kv_heads))

    def splits(self, tp_size: int) -> bool:
        """Whether SGLang can split the model's heads over `tp_size` cards."""
        kv = self.kv_heads
        return self.attention_heads % tp_size == 0 and (kv == 1 or kv % tp_size == 0 or tp_size % kv == 0)


def read_size(directory: Path, dtype: str = "auto") -> ModelSize:
    """Size of the checkpoint in `directory`, served as `dtype`. Raises `SizeError`.

    Only `config.json` must be there; with the tensors' files, or their index, the weights are exact.
    """
    path = directory / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SizeError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise SizeError(f"{path} holds no JSON object")
    try:
        return size_of(config, dtype, _tensor_bytes(directory))
    except SizeError as error:
        raise SizeError(f"{path}: {error}") from error


def size_of(config: Mapping[str, Any], dtype: str = "auto", tensor_bytes: int | None = None) -> ModelSize:
    """Size of the model that `config` (a config.json) describes, served as `dtype`.

    `tensor_bytes` is what its tensors take in the checkpoint, where that is known. Raises `SizeError`.
    """
    text: Mapping[str, Any] = config.get("text_config") or config
    stored = str(_either(text, config, "dtype") or _either(text, config, "torch_dtype") or "bfloat16")
    # SGLang serves a float32 checkpoint in half precision unless it is told otherwise.
    served = dtype if dtype != "auto" else ("bfloat16" if stored == "float32" else stored)
    if served not in _DTYPE_BYTES or stored not in _DTYPE_BYTES:
        raise SizeError(f"the data type {served if served not in _DTYPE_BYTES else stored!r} is not known")
    width = _DTYPE_BYTES[served]
    quantized = bool(_either(text, config, "quantization_config"))
    vision = vision_parameters(config)
    if tensor_bytes is not None:
        weights = tensor_bytes if quantized else tensor_bytes * width // _DTYPE_BYTES[stored]
    elif quantized:
        raise SizeError("it is quantized, so its weights are known only from its tensors; they are not there")
    elif vision is None:
        raise SizeError("its vision tower is of an unknown kind, so its weights are known only from its tensors")
    else:
        weights = width * (text_parameters(config) + vision)
    latent = "kv_lora_rank" in text
    return ModelSize(
        weight_bytes=weights,
        vision_bytes=width * (vision or 0),
        kv_bytes_per_token=width * _kv_elements(text),
        kv_heads=1 if latent else _kv_heads(text),
        attention_heads=_number(text, "num_attention_heads"),
        multimodal="vision_config" in config,
        parameters=_parameters(config),
    )


def text_parameters(config: Mapping[str, Any]) -> int:
    """Parameters of the language model. Raises `SizeError` when a number is missing."""
    return _counted(config)[0]


def _counted(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """`all`, `looked_up` and `experts` of `Parameters`."""
    text: Mapping[str, Any] = config.get("text_config") or config
    hidden, layers = _number(text, "hidden_size"), _number(text, "num_hidden_layers")
    embedding = _number(text, "vocab_size") * hidden
    tied = bool(_either(config, text, "tie_word_embeddings"))
    norms = 2 * hidden * layers + hidden
    attention = layers * (_latent_attention(text) if "kv_lora_rank" in text else _attention(text))
    mlps = [_mlp(text, layer) for layer in range(layers)]
    experts = sum(mlp.experts for mlp in mlps)
    others = embedding * (1 if tied else 2) + norms + attention + sum(mlp.dense for mlp in mlps)
    return others + experts, 0 if tied else embedding, experts


def _parameters(config: Mapping[str, Any]) -> Parameters | None:
    text: Mapping[str, Any] = config.get("text_config") or config
    try:
        counted, looked_up, experts = _counted(config)
        share = _number(text, "num_experts_per_tok") / _experts(text) if experts else 1.0
    except SizeError:
        return None
    return Parameters(all=counted, looked_up=looked_up, experts=experts, expert_share=share)


def vision_parameters(config: Mapping[str, Any]) -> int | None:
    """Parameters of the vision tower: 0 without one, None for one of another kind than Qwen3-VL's."""
    vision = config.get("vision_config")
    if not vision:
        return 0
    if "deepstack_visual_indexes" not in vision:
        return None
    width, inner = _number(vision, "hidden_size"), _number(vision, "intermediate_size")
    merged = width * _number(vision, "spatial_merge_size") ** 2
    patch = _number(vision, "in_channels") * _number(vision, "temporal_patch_size") * _number(vision, "patch_size") ** 2
    block = 4 * width * (width + 1) + 2 * width * inner + inner + width + 4 * width
    merger = merged * (merged + 1) + _number(vision, "out_hidden_size") * (merged + 1)
    deep = len(vision["deepstack_visual_indexes"])
    return (
        (patch + 1) * width
        + _number(vision, "num_position_embeddings") * width
        + _number(vision, "depth") * block
        # The last merger has its norm before patches are merged, the others after.
        + (merger + 2 * width)
        + deep * (merger + 2 * merged)
    )


def _attention(text: Mapping[str, Any]) -> int:
    hidden, heads, kv_heads = _number(text, "hidden_size"), _number(text, "num_attention_heads"), _kv_heads(text)
    head = _head_dim(text)
    kind = str(text.get("model_type", ""))
    weights = hidden * head * (heads + 2 * kv_heads) + heads * head * hidden
    if text.get("attention_bias") or kind.startswith("qwen2"):
        weights += head * (heads + 2 * kv_heads) + (hidden if text.get("attention_bias") else 0)
    # Qwen3 normalizes queries and keys.
    return weights + (2 * head if kind.startswith(_SPLIT_TYPES) else 0)


def _latent_attention(text: Mapping[str, Any]) -> int:
    """DeepSeek's multi-head latent attention (MLA)."""
    hidden, heads, rank = (_number(text, key) for key in ("hidden_size", "num_attention_heads", "kv_lora_rank"))
    rope, nope, value = (_number(text, key) for key in ("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"))
    query = text.get("q_lora_rank")
    queries = (hidden + 1 + heads * (nope + rope)) * query if query else hidden * heads * (nope + rope)
    return queries + hidden * (rank + rope) + rank + rank * heads * (nope + value) + heads * value * hidden


class _Mlp(NamedTuple):
    """Parameters of a layer's feed-forward part."""

    dense: int
    """Those that each token meets."""
    experts: int


def _mlp(text: Mapping[str, Any], layer: int) -> _Mlp:
    """Of one layer: dense, or a mixture of experts."""
    hidden = _number(text, "hidden_size")
    experts = _experts(text)
    sparse = (
        experts
        and layer not in (text.get("mlp_only_layers") or ())
        and layer >= (text.get("first_k_dense_replace") or 0)
        and (layer + 1) % (text.get("decoder_sparse_step") or 1) == 0
    )
    if not sparse:
        return _Mlp(3 * hidden * _number(text, "intermediate_size"), 0)
    inner = text.get("moe_intermediate_size") or _number(text, "intermediate_size")
    shared = text.get("shared_expert_intermediate_size") or (text.get("n_shared_experts") or 0) * inner
    return _Mlp(experts * hidden + 3 * hidden * shared, experts * 3 * hidden * inner)


def _experts(text: Mapping[str, Any]) -> int:
    """Experts of a layer that a token may be sent to; 0 of a dense model."""
    return int(text.get("num_experts") or text.get("n_routed_experts") or text.get("num_local_experts") or 0)


def _kv_elements(text: Mapping[str, Any]) -> int:
    """Numbers that a token's KV has, over all layers."""
    layers = _number(text, "num_hidden_layers")
    if "kv_lora_rank" in text:
        return layers * (_number(text, "kv_lora_rank") + _number(text, "qk_rope_head_dim"))
    return layers * 2 * _kv_heads(text) * _head_dim(text)


def _kv_heads(text: Mapping[str, Any]) -> int:
    return int(text.get("num_key_value_heads") or _number(text, "num_attention_heads"))


def _head_dim(text: Mapping[str, Any]) -> int:
    return int(text.get("head_dim") or _number(text, "hidden_size") // _number(text, "num_attention_heads"))


def _number(values: Mapping[str, Any], key: str) -> int:
    value = values.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SizeError(f"`{key}` is missing, so the model's size is not known")
    return value


def _either(first: Mapping[str, Any], second: Mapping[str, Any], key: str) -> Any:
    return first.get(key) if first.get(key) is not None else second.get(key)


def _tensor_bytes(directory: Path) -> int | None:
    """What the tensors in `directory` take; None when they are not all there."""
    index = directory / "model.safetensors.index.json"
    try:
        return int(json.loads(index.read_bytes())["metadata"]["total_size"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    # The file is eight bytes, a header as long as they say, and the tensors.
    file = directory / "model.safetensors"
    try:
        with file.open("rb") as source:
            header = int.from_bytes(source.read(8), "little")
        return file.stat().st_size - 8 - header
    except OSError:
        return None
