"""What of a cluster's configuration cannot work, or might not be meant, as far as files tell it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from launch import checkpoint
from launch.config import ClusterConfig, ModelConfig, OpenAIConfig
from launch.gpu.reserve import flag_value
from sglang_ext.settings import SessionSettings
from shell_router.config import ConfigError, load_json
from shell_router.core.review import Remark, review_tree
from shell_router.core.tree import TreeConfig, TreeError, build_tree
from shell_router.needs import Need

DECODE_RESERVE = 512
"""Tokens that a decode worker keeps free for each answer beside its prompt (SGLang's `num_reserved_decode_tokens`)."""
PROMPT_RESERVE = 6
"""Tokens of a pool that no prompt gets, as SGLang 0.5.23 computes `max_req_input_len`."""
SHORT_START_S = 10.0
SMALL_BODY = 1024
_CONTEXT_KEYS = ("max_sequence_length", "seq_length", "max_seq_len", "model_max_length", "max_position_embeddings")
"""Of a config.json, in the order in which SGLang looks."""
_NOT_BESIDE_DRAFTS = ("--pp-size", "--pipeline-parallel-size", "--enable-pd-role-switch")
"""Flags with which SGLang does not speculate."""
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_LONGER = "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN"
_FOR_WORKERS = (
    *("device", "dtype", "max_total_tokens", "mem_fraction_static", "overlap_schedule", "flags"),
    *("router", "transfer_backend", "drafts", "max_draft_tokens"),
)
"""Fields of a model that mean nothing where nothing is started for it."""


def review(config: ClusterConfig, host: str | None, environment: Mapping[str, str]) -> Iterator[Remark]:
    """Remarks on `config` (its part on `host`), their paths those of its JSON. `environment` is that of the workers."""
    for m, model in enumerate(config.models):
        yield from _model(f"$.models[{m}]", model)
    for place, path in config.paths(host):
        yield from _files(config, place, path, environment)
    yield from _processes(config, host)
    if config.has_shell_router(host):
        yield from _shell_router(config)


def review_trees(config: ClusterConfig) -> Iterator[Remark]:
    """Remarks on the trees of `config`, without regard to the machine."""
    served = sorted(model.name for model in config.models)
    files: dict[str, str] = {}
    used: set[str] = set()
    broken = False
    for t, path in enumerate(config.shell_router.trees):
        place = f"$.shell_router.trees[{t}]"
        try:
            written = load_json(Path(path), TreeConfig)
            tree = build_tree(written)
        except (ConfigError, TreeError) as error:
            told = str(error) if isinstance(error, ConfigError) else f"{path}: {error}"
            yield Remark(f"{place}: {told}", error=True)
            broken = True
            continue
        used |= tree.models
        if unknown := sorted(tree.models - set(served)):
            asked = f"asks for model {', '.join(unknown)}; the cluster serves {', '.join(served)}"
            yield Remark(f"{place}: {path} {asked}", error=True)
        if tree.name in files:
            yield Remark(f"{place}: {path} and {files[tree.name]} both name their tree {tree.name!r}", error=True)
        files[tree.name] = path
        for remark in review_tree(written, tree):
            yield Remark(f"{place}: {path}: {remark.text}", error=remark.error)
    if not config.shell_router.trees:
        yield Remark("$.shell_router.trees: no tree is served, so nothing can be asked")
    elif not broken:
        for m, model in enumerate(config.models):
            if model.name not in used:
                yield Remark(f"$.models[{m}]: no tree asks model {model.name!r}")


def review_pools(config: ClusterConfig, needs: Sequence[Need]) -> Iterator[Remark]:
    """Remarks on KV pools that are too small for what trees need."""
    models = {model.name: (f"$.models[{m}]", model) for m, model in enumerate(config.models)}
    for name, (place, model) in models.items():
        pool = model.max_total_tokens
        mine = [need for need in needs if need.model == name]
        if pool is None or not mine or not any(model.workers(place)):
            continue
        kept = PROMPT_RESERVE
        if model.decode and flag_value(_flags(model), "--num-reserved-decode-tokens") is None:
            kept = DECODE_RESERVE
        least, most = min(mine, key=lambda need: need.least), max(mine, key=lambda need: need.most)
        if least.least + kept > pool:
            yield Remark(
                f"{place}.max_total_tokens: a pool of {pool:,} tokens takes no request at all: agent {least.agent!r} "
                f"needs {least.least:,}, and SGLang keeps {kept} free",
                error=True,
            )
        elif most.most + PROMPT_RESERVE > pool:
            yield Remark(
                f"{place}.max_total_tokens: agent {most.agent!r} may need {most.most:,} tokens, the pool has {pool:,}"
            )


def context_limit(config: Mapping[str, Any]) -> int | None:
    """The longest context of the model that a config.json describes, as SGLang reads it (`get_context_length`)."""
    text = config.get("text_config")
    text = text if isinstance(text, dict) else config
    scaling = text.get("rope_scaling") or text.get("rope_parameters")
    factor = 1.0
    if isinstance(scaling, dict):
        known = "original_max_position_embeddings" in scaling or scaling.get("rope_type") == "llama3"
        factor = 1.0 if known else float(scaling.get("factor") or 1)
    for key in _CONTEXT_KEYS:
        if isinstance(text.get(key), int):
            return int(factor * text[key])
    return None


def _flags(model: ModelConfig) -> tuple[str, ...]:
    """All that its workers are given."""
    return (*model.flags, *(flag for worker in model.workers("") for flag in worker.config.flags))


def _model(place: str, model: ModelConfig) -> Iterator[Remark]:
    if model.openai is not None:
        yield from _openai(place, model, model.openai)
        return
    pool, page = model.max_total_tokens, model.page_size
    if pool is not None and pool < page:
        yield Remark(f"{place}.max_total_tokens: a pool of {pool} tokens has not one page of {page}", error=True)
    if page >= model.context_length:
        yield Remark(
            f"{place}.page_size: a page of {page:,} tokens is the whole context ({model.context_length:,}): "
            "no prompt is ever prefilled in part"
        )
    yield from _drafts(place, model)
    for w, worker in enumerate(model.regular):
        if worker.sessions != SessionSettings():
            yield Remark(f"{place}.regular[{w}].sessions: a regular worker has no sessions")


def _drafts(place: str, model: ModelConfig) -> Iterator[Remark]:
    drafting = [worker for worker in model.workers(place) if worker.drafts]
    if not drafting:
        if model.drafts:
            yield Remark(f"{place}.drafts: none of its workers drafts: each says that it does not")
        if model.max_draft_tokens != ModelConfig(name=model.name, path=model.path).max_draft_tokens:
            yield Remark(f"{place}.max_draft_tokens: no worker drafts, so it has no effect")
        return
    flags = {f"{place}.flags": model.flags} | {f"{worker.path}.flags": worker.config.flags for worker in drafting}
    for where, given in flags.items():
        for flag in _NOT_BESIDE_DRAFTS:
            if any(each.partition("=")[0] == flag for each in given):
                yield Remark(f"{where}: SGLang has no drafts with {flag} (`drafts`)", error=True)


def _openai(place: str, model: ModelConfig, server: OpenAIConfig) -> Iterator[Remark]:
    try:
        named = urlsplit(server.url)
        sound = bool(named.hostname) and (named.port is None or named.port > 0)
    except ValueError:
        sound = False
    if not sound or any(character.isspace() for character in server.url):
        yield Remark(f"{place}.openai.url: {server.url} is no URL with a host", error=True)
    usual = ModelConfig(name=model.name, path=model.path)
    for field in _FOR_WORKERS:
        if getattr(model, field) != getattr(usual, field):
            yield Remark(f"{place}.{field}: nothing is started for a model with `openai`, so it has no effect")


def _files(config: ClusterConfig, place: str, path: str, environment: Mapping[str, str]) -> Iterator[Remark]:
    """Of the model at `place` in the JSON: is all of it here, and does its context suffice?"""
    model = next((each for m, each in enumerate(config.models) if place == f"$.models[{m}].path"), None)
    try:
        checkpoint.check(path)
    except checkpoint.CheckpointError as error:
        yield Remark(f"{place}: {error}", error=True)
        return
    needs_weights = model is None or (model.openai is None and flag_value(_flags(model), "--load-format") != "dummy")
    folder = checkpoint.here(path)
    on_hub = not path.startswith(checkpoint.SCHEME) and not Path(path).expanduser().is_dir()
    if on_hub:
        lacks = "it is not on this machine" if folder is None else None
        if folder is not None and needs_weights:
            lacks = checkpoint.missing_weights(folder)
        if lacks is not None:
            offline = any(environment.get(name, "0") not in ("", "0") for name in _OFFLINE)
            then = f"and {' and '.join(_OFFLINE)} keep it from being fetched" if offline else "a start fetches it"
            yield Remark(f"{place}: {path}: {lacks}; {then}: `hf download {path}`", error=offline)
    elif folder is not None and needs_weights and (lacks := checkpoint.missing_weights(folder)):
        yield Remark(f"{place}: {path}: {lacks}", error=True)
    if folder is not None and model is not None:
        yield from _context(place.removesuffix(".path"), model, folder, environment)


def _context(place: str, model: ModelConfig, folder: Path, environment: Mapping[str, str]) -> Iterator[Remark]:
    try:
        written = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        yield Remark(f"{place}.path: {folder / 'config.json'} cannot be read: {error}", error=True)
        return
    limit = context_limit(written) if isinstance(written, dict) else None
    if limit is not None and model.context_length > limit:
        allowed = environment.get(_LONGER, "").lower() in ("1", "true")
        then = "its answers may be senseless" if allowed or model.openai else f"SGLang refuses that without {_LONGER}=1"
        yield Remark(
            f"{place}.context_length: {model.context_length:,} is more than the {limit:,} of the model's config.json: "
            f"{then}",
            error=not allowed and model.openai is None,
        )


def _processes(config: ClusterConfig, host: str | None) -> Iterator[Remark]:
    pinned: dict[tuple[str | None, str, int], str] = {}
    for worker in config.workers(host):
        if worker.model.device != "cpu":
            continue
        for core in worker.config.cores:
            # Those of several models may have to share, where there are few.
            other = pinned.setdefault((worker.config.host, worker.model.name, core), worker.path)
            if other != worker.path:
                yield Remark(f"{worker.path}.cores: core {core} is that of `{other}` too: each waits for the other")
    if config.startup_timeout_s < SHORT_START_S and any(config.workers(host)):
        yield Remark(f"$.startup_timeout_s: no worker is ready within {config.startup_timeout_s:g} s")
    used = Counter(worker.config.host for worker in config.workers())
    used.update(model.router.host for model in config.models if model.openai is None)
    used.update([config.shell_router.host])
    for name in config.hosts:
        if name not in used:
            yield Remark(f"$.hosts.{name}: nothing runs there")


def _shell_router(config: ClusterConfig) -> Iterator[Remark]:
    place, asked = "$.shell_router", config.shell_router
    yield from review_trees(config)
    if asked.limits.body_bytes < SMALL_BODY:
        yield Remark(f"{place}.limits.body_bytes: hardly a question fits in {asked.limits.body_bytes} bytes")
    if asked.embedding is not None:
        kind, _, number = asked.embedding.device.partition(":")
        if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
            yield Remark(
                f"{place}.embedding.device: {asked.embedding.device!r} is neither `cpu` nor `cuda` nor `cuda:N`",
                error=True,
            )
