"""What is started and asked: the cluster, the trees and the experiment, as the JSON files that say so.

The trees are the shapes of the four settings, with answers of fixed lengths: those who answer the same successor have
one, two and three times `unit` tokens, so that an early exit has something to leave out. Answers are drawn, since with
random weights all greedy answers would be one. The experiment replays recorded answers: the settings of the tree do the
same work.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from experiments.gpu import exact
from experiments.gpu.sizes import Size
from experiments.questions import QuestionsConfig
from experiments.settings.config import ExperimentConfig, SettingConfig
from launch.config import ClusterConfig
from shell_router.core.early_exit import ExitOverride
from shell_router.core.tree import TreeConfig
from shell_router.options import RunOptions
from shell_router.record import DraftMode, Mode

CLUSTER_FILE = "cluster.json"
EXPERIMENT_FILE = "experiment.json"
WEIGHTS = 0.03
"""Bound of the random weights: with SGLang's own, 0.001, the last token alone decides what comes next."""
_TEMPERATURE = 0.7
_TREES_EXIT = ExitOverride()
_SIBLINGS = 3
"""Agents that answer one successor of the tree."""
_TEMPLATES = {
    "propose": {
        "system": "You are a careful assistant. Reason step by step, then state the final answer.",
        "user": "<|question|>",
    },
    "aggregate": {
        "system": "You combine the answers of several assistants into one better answer.",
        "user": "Question:\n<|question|>\n\nHere are answers of other assistants to this question:\n\n<|answers|>"
        "Compare them, correct their mistakes and write one complete answer to the question.",
        "answer": "[Answer <|n|>]\n<|answer|>\n\n",
    },
}


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """How much is measured. Lengths are tokens."""

    pool_tokens: int
    """KV pool of each worker."""
    context_length: int
    proposers: int
    """A multiple of three."""
    unit: int
    """Shortest answer of proposers and aggregators; the others have two and three times as many."""
    questions: int
    repetitions: int
    """Of the overlap benchmark."""
    overlap: dict[str, tuple[str, ...]]
    """Options of each of its parts."""
    exact: exact.Parameters
    """Of sessions against plain requests."""
    drafts: tuple[str, ...] = ()
    """Options of the drafts' benchmark."""


def scale_of(size: Size, *, quick: bool) -> Scale:
    """`quick` is for seeing that everything runs; `tiny` is for that alone."""
    if size == "tiny":
        return Scale(
            pool_tokens=8000,
            context_length=4096,
            proposers=6,
            unit=8,
            questions=1,
            repetitions=1 if quick else 3,
            exact=exact.Parameters(rounds=1, at_once=3, longest=300),
            drafts=("--batches", "1,3", "--shares", "0,1", "--answer", "16"),
            overlap={
                "fan_out": ("--siblings", "1,3", "--sibling-answer", "8"),
                "ttft": ("--loads", "idle", "--prompt", "256", "--chunk", "64"),
                "second_layer": ("--input-range", "1", "128", "--precursor-answer", "24", "--answer", "4"),
                "second_layer-64-tokens": (
                    *("--input-range", "1", "128", "--precursor-answer", "24", "--answer", "4"),
                    *("--modes", "blocking", "incremental", "paying", "--min-append", "64"),
                ),
                "spliced": ("--sizes", "64,192", "--precursors", "2", "--answer", "4"),
                "chain": ("--input-range", "1", "64", "--precursor-answer", "24", "--answer", "4"),
            },
        )
    long = ("--answer", "64")
    policies = ("--modes", "blocking", "incremental", "paying")
    if quick:
        return Scale(
            pool_tokens=65_536,
            context_length=32_768,
            proposers=6,
            unit=32,
            questions=2,
            repetitions=2,
            exact=exact.Parameters(rounds=4, at_once=8, longest=1500),
            drafts=("--batches", "1,9,27", "--shares", "0,0.5,1"),
            overlap={
                "fan_out": ("--siblings", "1,3,9,27"),
                "ttft": (
                    *("--prompt", "4096", "--chunk", "256", "--tail", "64", "--loads", "idle", "busy_decode"),
                    *("--modes", "blocking", "resend", "on_prefill", "on_decode"),
                ),
                "second_layer": ("--precursors", "3", "--precursor-answer", "128", *policies, *long),
                "spliced": ("--sizes", "4096", "--precursors", "8", *policies, *long),
            },
        )
    return Scale(
        pool_tokens=65_536,
        context_length=32_768,
        proposers=9,
        unit=128,
        questions=10,
        repetitions=10,
        exact=exact.Parameters(rounds=10, at_once=16, longest=1500),
        overlap={
            "fan_out": ("--siblings", "1,3,9,27", "--ways", "direct", "sglang_router"),
            "ttft": ("--prompt", "4096", "--chunk", "256", "--tail", "64"),
            "scaling": ("--prompt", "1024", "--long-prompt", "16384", "--chunk", "256", "--tail", "64"),
            "second_layer": ("--precursors", "6", "--precursor-answer", "256", *policies, *long),
            "second_layer-512-tokens": (
                *("--precursors", "6", "--precursor-answer", "256", *long),
                *("--modes", "blocking", "incremental", "--min-append", "512"),
            ),
            "second_layer-4-at-once": ("--precursors", "3", "--precursor-answer", "256", "--concurrency", "4", *long),
            "spliced": ("--sizes", "1024,4096,16384", "--precursors", "8", *long),
            "chain": ("--precursor-answer", "1024", *long),
            "traffic": ("--requests", "100", "--at-once", "4", "--session-tokens", "2048"),
        },
    )


def model_name(size: Size) -> str:
    return f"qwen3-{size}"


def cluster_config(
    models: Sequence[tuple[Size, Path]],
    scale: Scale,
    *,
    device: str,
    gpu: int,
    attention: str | None,
    embedding: bool,
    flags: Sequence[str] = (),
    drafts: bool = False,
) -> ClusterConfig:
    """One pair of each of `models` (size and checkpoint), all on the card `gpu`; on CPU, P and D on a core each.

    Pools are as large as `scale` says; what share of the card that is, the launcher finds. `flags` are more of SGLang's
    for all workers. Raises `msgspec.ValidationError` for a device that is none.
    """
    place: list[dict[str, Any]] = [{"gpus": [gpu]}] * 2 if device == "cuda" else [{"cores": [0]}, {"cores": [1]}]
    all_flags = ["--load-format", "dummy", *(["--attention-backend", attention] if attention else []), *flags]
    common: dict[str, Any] = {
        "device": device,
        "dtype": "bfloat16" if device == "cuda" else "float32",
        "context_length": scale.context_length,
        "page_size": 16,
        "max_total_tokens": scale.pool_tokens,
        "flags": all_flags,
        "drafts": drafts,
        "prefill": place[:1],
        "decode": place[1:],
    }
    if device == "cpu":
        # The launcher finds no share for the CPU engine, whose workers would each take most of the memory.
        common["mem_fraction_static"] = 0.12
    document = {
        "name": "-".join(["experiment", device, *(size for size, _ in models)]),
        "description": "Random weights of a real model's shape; see docs/gpu_experiments.md.",
        "models": [{"name": model_name(size), "path": str(path), **common} for size, path in models],
        "shell_router": {
            "trees": ["dense.json", "tree.json"],
            **({"embedding": {"path": "builtin:all-minilm-l6-v2"}} if embedding else {}),
        },
    }
    return msgspec.convert(document, ClusterConfig)


def tree_config(name: str, layer_models: tuple[str, str, str], scale: Scale) -> TreeConfig:
    """The tree `dense` (each aggregator reads all proposers, as many aggregators as proposers) or `tree` (each reads
    three). `layer_models` serve proposers, aggregators and the root."""
    proposers = [f"p{i + 1}" for i in range(scale.proposers)]
    agents: list[dict[str, Any]] = [
        _agent(proposer, "propose", layer_models[0], scale.unit, i) for i, proposer in enumerate(proposers)
    ]
    if name == "dense":
        readers = [proposers] * scale.proposers
    else:
        readers = [proposers[i : i + _SIBLINGS] for i in range(0, scale.proposers, _SIBLINGS)]
    aggregators = [f"a{i + 1}" for i in range(len(readers))]
    agents += [
        {**_agent(aggregator, "aggregate", layer_models[1], scale.unit, i), "inputs": read}
        for i, (aggregator, read) in enumerate(zip(aggregators, readers, strict=True))
    ]
    agents.append({**_agent("root", "aggregate", layer_models[2], scale.unit, 1), "inputs": aggregators})
    document = {"name": name, "model": layer_models[0], "templates": _TEMPLATES, "agents": agents}
    return msgspec.convert(document, TreeConfig)


def experiment_config(scale: Scale, *, early_exit: bool, drafts: bool = False, warmup: int = 1) -> ExperimentConfig:
    """The four settings; without early exit one less. With drafts one more, the tree that drafts: its answers copy
    nothing, so that it shows what drafts cost. `warmup` runs of each are in no number.

    The exit is scripted: Q of random answers means nothing, so that a threshold of 0 lets every check exit, and a
    cluster does not wait once two of its agents have answered.
    """
    settings = [
        SettingConfig(name="dense", tree="dense", graft=_options("blocking")),
        SettingConfig(name="tree", tree="tree", graft=_options("blocking")),
        SettingConfig(name="tree+overlap", tree="tree", graft=_options("spliced")),
    ]
    if drafts:
        settings.append(SettingConfig(name="tree+drafts", tree="tree", graft=_options("blocking", drafts="auto")))
    if early_exit:
        scripted = ExitOverride(mode="threshold", threshold=0.0)
        options = _options("spliced", early_exit=scripted)
        settings.append(SettingConfig(name="tree+overlap+exit", tree="tree", graft=options))
    return ExperimentConfig(
        name="four_settings",
        cluster=CLUSTER_FILE,
        settings=tuple(settings),
        questions=QuestionsConfig(source="gsm8k_sample", count=scale.questions),
        replay_answers=True,
        warmup=warmup,
    )


def _options(mode: Mode, *, drafts: DraftMode = "off", early_exit: ExitOverride = _TREES_EXIT) -> RunOptions:
    return RunOptions(mode=mode, slots="fixed", drafts=drafts, early_exit=early_exit)


def write(folder: Path, cluster: ClusterConfig, trees: Sequence[TreeConfig], experiment: ExperimentConfig) -> None:
    """The files with which `graft up` and `graft run` do the same again."""
    documents: dict[str, object] = {CLUSTER_FILE: cluster, EXPERIMENT_FILE: experiment}
    documents |= {f"{tree.name}.json": tree for tree in trees}
    for name, document in documents.items():
        write_one(folder / name, document)


def write_one(path: Path, document: object) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")


def _agent(name: str, template: str, model: str, unit: int, turn: int) -> dict[str, Any]:
    tokens = unit * (turn % _SIBLINGS + 1)
    sampling = {"max_new_tokens": tokens, "temperature": _TEMPERATURE}
    return {"id": name, "template": template, "model": model, "sampling": sampling}
