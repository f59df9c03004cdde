"""Checkpoints without weights: the shape of Qwen3 models and their tokenizer, for `--load-format dummy`.

The numbers are those of the published `config.json` files. Nothing is read from a hub: the tokenizer is that of
`builtin:tiny-qwen`, which has Qwen's vocabulary. Random weights take the time of real ones and say nothing that means
anything.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

import msgspec

from launch import checkpoint
from launch.home import graft_home, locked

Size = Literal["4b", "8b", "tiny"]
SIZES: tuple[Size, ...] = get_args(Size)
_TOKENIZER = "builtin:tiny-qwen"
_NOT_TOKENIZER = ("config.json", "generation_config.json", "graft-complete")
_COMMON: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "torch_dtype": "bfloat16",
    # Without it transformers takes the tokenizer for one that it must mend, and warns.
    "transformers_version": "5.0.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
CONFIGS: MappingProxyType[Size, dict[str, Any]] = MappingProxyType(
    {
        "4b": {
            **_COMMON,
            "head_dim": 128,
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "max_window_layers": 36,
            "num_attention_heads": 32,
            "num_hidden_layers": 36,
            "num_key_value_heads": 8,
            "tie_word_embeddings": True,
        },
        "8b": {
            **_COMMON,
            "head_dim": 128,
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "max_window_layers": 36,
            "num_attention_heads": 32,
            "num_hidden_layers": 36,
            "num_key_value_heads": 8,
            "tie_word_embeddings": False,
        },
        "tiny": {
            **_COMMON,
            "head_dim": 16,
            "hidden_size": 64,
            "intermediate_size": 128,
            "max_window_layers": 2,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
    }
)
"""`config.json` of each size."""


def parameters(size: Size) -> int:
    """Number of weights."""
    c = CONFIGS[size]
    hidden, head = c["hidden_size"], c["head_dim"]
    attention = 2 * hidden * head * (c["num_attention_heads"] + c["num_key_value_heads"]) + 2 * head
    layer = attention + 3 * hidden * c["intermediate_size"] + 2 * hidden
    embeddings = c["vocab_size"] * hidden * (1 if c["tie_word_embeddings"] else 2)
    return int(embeddings + c["num_hidden_layers"] * layer + hidden)


def make_checkpoint(size: Size) -> Path:
    """The checkpoint directory of `size` under GRAFT_HOME, made when it is not there. It holds no weights.

    Raises `CheckpointError` when the package with the tokenizer is not installed.
    """
    target = graft_home() / "models" / f"qwen3-{size}-shape"
    source = Path(checkpoint.resolve(_TOKENIZER))
    with locked(target.with_suffix(".lock")):
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for file in sorted(source.iterdir()):
            if file.name not in _NOT_TOKENIZER and file.suffix != ".safetensors":
                shutil.copy(file, partial / file.name)
        config = msgspec.json.format(msgspec.json.encode(CONFIGS[size]), indent=2)
        (partial / "config.json").write_bytes(config + b"\n")
        # Always anew: another version of this file may have made the old one.
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    return target
