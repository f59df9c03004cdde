"""The harness: in an environment of its own, on a task of our own questions, against one of OpenAI's endpoints."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from experiments.questions import Question
from launch.home import graft_home, locked
from shell_router.errors import GraftError

VERSION = "0.4.13"
TASK = "graft_gsm8k"
Api = Literal["completions", "chat"]
_INSTALL_S = 1200
_TAIL = 2000
_STRICT, _FLEXIBLE = "strict-match", "flexible-extract"
_INVALID = "[invalid]"


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One item as the harness judged it."""

    id: str
    answer: str
    number: str
    """What it took for the final answer."""
    right: bool


class _Line(msgspec.Struct, frozen=True):
    """What is read of a line of the harness's samples: one item by one filter."""

    doc: Question
    filter: str
    resps: tuple[tuple[str, ...], ...]
    filtered_resps: tuple[str, ...]
    exact_match: float


def install() -> Path:
    """The interpreter of the harness's own environment, which is made when it is not there. Raises `GraftError`."""
    folder = graft_home() / f"lm-eval-{VERSION}"
    python, ready = folder / "bin" / "python", folder / "ready"
    with locked(folder.with_name(f"{folder.name}.lock")):
        if not ready.exists():
            print(f"installing lm-eval {VERSION} into {folder}", file=sys.stderr)
            venv.create(folder, with_pip=True, clear=True)
            _call([python, "-m", "pip", "install", "--quiet", "--no-input", f"lm-eval[api]=={VERSION}"], _INSTALL_S)
            ready.touch()
    return python


def write_task(folder: Path, questions: Sequence[Question], graft: dict[str, Any]) -> None:
    """The harness's own GSM8K task, of `questions` in place of a data set from a hub, and without examples.

    Filters, metric and stops are those of its `gsm8k`. What `graft` holds is sent with each request.
    """
    items = folder / "items.jsonl"
    items.write_bytes(b"".join(msgspec.json.encode(question) + b"\n" for question in questions))
    task = {
        "task": TASK,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(items)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "num_fewshot": 0,
        "generation_kwargs": {
            "until": ["Question:", "</s>", "<|im_end|>"],
            "do_sample": False,
            "temperature": 0.0,
            **({"graft": graft} if graft else {}),
        },
        "metric_list": [
            {
                "metric": "exact_match",
                "aggregation": "mean",
                "higher_is_better": True,
                "ignore_case": True,
                "ignore_punctuation": False,
                "regexes_to_ignore": [",", "\\$", "(?s).*#### ", "\\.$"],
            }
        ],
        "filter_list": [
            {"name": _STRICT, "filter": _filters(regex_pattern="#### (\\-?[0-9\\.\\,]+)")},
            {
                "name": _FLEXIBLE,
                "filter": _filters(regex_pattern="(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1),
            },
        ],
    }
    # JSON is YAML.
    (folder / f"{TASK}.yaml").write_bytes(msgspec.json.encode(task))


def evaluate(
    python: Path, folder: Path, url: str, tree: str, api: Api, *, max_tokens: int, timeout_s: float, api_key: str | None
) -> tuple[Sample, ...]:
    """Let the harness ask `tree` the task in `folder`. Raises `GraftError`."""
    path = {"completions": "completions", "chat": "chat/completions"}[api]
    arguments = f"model={tree},base_url={url.rstrip('/')}/v1/{path},max_gen_toks={max_tokens},max_retries=1"
    # Questions go as text: a tree has templates of its own, and maybe several tokenizers.
    more = ["--apply_chat_template"] if api == "chat" else []
    arguments += "" if api == "chat" else ",tokenizer_backend=None"
    output = folder / api
    command: list[str | Path] = [python, "-m", "lm_eval", "run", "--model", f"local-{_MODELS[api]}"]
    command += ["--model_args", arguments, "--tasks", TASK, "--include_path", folder, *more]
    command += ["--output_path", output, "--log_samples"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    _call(command, timeout_s, {**offline, "OPENAI_API_KEY": api_key or ""})
    return _samples(output)


_MODELS = {"completions": "completions", "chat": "chat-completions"}


def _samples(output: Path) -> tuple[Sample, ...]:
    """What the harness wrote down. An item is judged by the strict filter where that finds an answer."""
    files = sorted(output.rglob(f"samples_{TASK}_*.jsonl"))
    if not files:
        raise GraftError(f"the harness left no samples in {output}")
    lines = [msgspec.json.decode(line, type=_Line) for line in files[-1].read_bytes().splitlines()]
    found: dict[str, _Line] = {}
    for line in sorted(lines, key=lambda each: each.filter == _STRICT):
        if line.filter == _FLEXIBLE or line.filtered_resps[0] != _INVALID:
            found[line.doc.id] = line
    return tuple(
        Sample(id=name, answer=line.resps[0][0], number=line.filtered_resps[0], right=line.exact_match == 1)
        for name, line in found.items()
    )


def _filters(**regex: object) -> list[dict[str, object]]:
    return [{"function": "regex", **regex}, {"function": "take_first"}]


def _call(command: Sequence[str | Path], timeout_s: float, more: dict[str, str] | None = None) -> None:
    # Nothing of the environment that we run in ourselves.
    ours = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    }
    try:
        done = subprocess.run(
            command, env={**ours, **(more or {})}, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise GraftError(f"no end after {timeout_s:g} s: {' '.join(map(str, command[:5]))}") from error
    if done.returncode:
        raise GraftError(f"{' '.join(map(str, command[:5]))} failed:\n{(done.stderr or done.stdout)[-_TAIL:]}")
