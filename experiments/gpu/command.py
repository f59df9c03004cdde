"""`graft gpu`: what overlap is worth on one GPU, with random weights of a real size and fixed lengths.

Starts one pair of workers (`--hetero`: also a pair of a second size) on one card, measures on it the parts of
`graft bench overlap` and the four settings (`graft run`), and stops it. One folder gets all of it:

    cluster.json, dense.json, tree.json, experiment.json    what was started and asked; `graft run` takes them
    exact.json                                              sessions against plain requests, many at once
    drafts.json                                             with `--drafts`: summary of the drafts' benchmark
    overlap/<part>.json                                     summaries of the overlap benchmark
    four_settings/                                          the folder of `graft run`
    report/                                                 `graft report` of it
    logs/                                                   of the processes
    summary.json                                            all of it in short, with machine and commit

and an archive beside it (`.tar.gz`) has all of that. With `--budget-s` the whole takes about so many seconds, start and
end included: what tells most comes first, each part ends when its share of the time is over, and `not_reached` in
`summary.json` names those that were not begun.

`--size tiny --device cpu` does the same on SGLang's CPU engine, to see that it works. Times of the overlap benchmark
and of the settings are meaningful with random weights, since lengths are fixed; answers, confidences and votes are not,
so the exit is scripted (see `setup.py`).

Exit codes: 0 everything was measured, 1 a measurement or the cluster failed, 2 wrong command line or machine,
130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from experiments.drafts import command as drafts
from experiments.gpu import exact, setup
from experiments.gpu.budget import Budget
from experiments.gpu.setup import Scale
from experiments.gpu.sizes import CONFIGS, SIZES, Size, make_checkpoint, parameters
from experiments.kernel.command import EXIT_FAILED, EXIT_INTERRUPTED
from experiments.kernel.engine import TokenSource
from experiments.kernel.environment import Environment, describe_environment
from experiments.kernel.folder import write_document
from experiments.kernel.target import Target, check_machine, started
from experiments.overlap import command as overlap
from experiments.report import command as report
from experiments.settings import command as settings
from experiments.settings.config import ExperimentConfig
from experiments.settings.summary import Summary
from launch import arguments as kinds
from launch.config import ModelConfig, load_cluster
from launch.gpu import mps
from sglang_ext.settings import DUMMY_WEIGHTS_VARIABLE
from shell_router.client import Client
from shell_router.errors import GraftError

SETTINGS = "four_settings"
END_S = 15.0
"""Of a budget, for the end of the processes and the report."""
_MOST_QUESTIONS, _MOST_REPETITIONS = 20, 10
"""Of one part within a budget."""
_WEIGHTS: Mapping[str, float] = {
    "drafts": 3.0,
    "fan_out": 1.5,
    "ttft": 2.0,
    "second_layer": 2.0,
    "spliced": 1.5,
    SETTINGS: 4.0,
}
"""What part of the time each gets of which there is more to see; the others 1."""
_SECOND: Mapping[Size, Size] = {"4b": "8b", "8b": "4b", "tiny": "tiny"}


Part = Callable[[float | None], "Measured | None"]
"""Measures in about so many seconds, None for as long as it takes; answers None when that is too little."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One of the measurements."""

    name: str
    exit_code: int
    wall_s: float
    within_s: float | None = None
    """The time it was given, where there is a budget."""
    result: str
    """Path of its summary, from the folder of the whole."""


class Lengths(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the answers of a setting were as long as they should be."""

    answers: int
    """That ended by themselves, of measured runs."""
    shorter: int
    """Of these, those that ended before their limit: an end token was drawn."""


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """`summary.json`, and the last line of stdout."""

    started: str
    ended: str
    ok: bool
    command: tuple[str, ...]
    models: dict[str, dict[str, Any]]
    """`config.json` and number of parameters of each model."""
    scale: Scale
    environment: Environment
    measured: tuple[Measured, ...]
    mps: bool
    """Whether NVIDIA MPS served: without it the workers take turns on the card."""
    not_reached: tuple[str, ...] = ()
    """What the budget had no time for."""
    lengths: dict[str, Lengths]
    """By setting; empty without the four settings."""
    report: str | None


def main(argv: Sequence[str]) -> int:
    """Measure as the command line says; answers the exit code. Raises `GraftError` for what ends it."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.device == "cpu" and arguments.size != "tiny":
        parser.error("--device cpu goes with --size tiny: the CPU engine would take minutes for one prompt")
    if arguments.hetero and arguments.size == "tiny":
        parser.error("--hetero goes with --size 4b or 8b: there is one tiny size")
    if arguments.only == "drafts" and not arguments.drafts:
        parser.error("--only drafts goes with --drafts")
    now = datetime.datetime.now(datetime.UTC)
    folder: Path = arguments.out or Path("runs") / f"gpu-{arguments.size}-{arguments.device}-{now:%Y%m%dT%H%M%SZ}"
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        parser.error(f"--out: {folder} is there already")
    try:
        done = _measure(arguments, tuple(argv), now, folder)
    except KeyboardInterrupt:
        print(f"interrupted; what had ended is in {folder}", file=sys.stderr)
        raise
    write_document(folder / "summary.json", done)
    archive = Path(shutil.make_archive(str(folder), "gztar", folder.parent, folder.name))
    if done.not_reached:
        print(f"\nnot reached in {arguments.budget_s:g} s: {', '.join(done.not_reached)}")
    print(f"\nsummary  {folder / 'summary.json'}\narchive  {archive} ({archive.stat().st_size / 1e6:.1f} MB)\n")
    print(msgspec.json.encode(done).decode(), flush=True)
    return 0 if done.ok else EXIT_FAILED


def _measure(arguments: argparse.Namespace, command: tuple[str, ...], now: datetime.datetime, folder: Path) -> Done:
    size: Size = arguments.size
    budget = None if arguments.budget_s is None else time.monotonic() + arguments.budget_s - END_S
    scale = setup.scale_of(size, quick=arguments.quick or budget is not None)
    if budget is not None:
        # As many as there is time for.
        scale = msgspec.structs.replace(scale, questions=_MOST_QUESTIONS, repetitions=_MOST_REPETITIONS)
    if arguments.pool_tokens:
        scale = msgspec.structs.replace(scale, pool_tokens=arguments.pool_tokens)
    sizes = [size, _SECOND[size]] if arguments.hetero else [size]
    # Proposers on the first model, all that read them on the second.
    names = [setup.model_name(sizes[0]), *[setup.model_name(sizes[-1])] * 2]
    cluster_config = setup.cluster_config(
        [(each, make_checkpoint(each)) for each in sizes],
        scale,
        device=arguments.device,
        gpu=arguments.gpu,
        attention=arguments.attention_backend,
        embedding=not arguments.no_exit,
        flags=shlex.split(arguments.flags or ""),
        drafts=arguments.drafts,
    )
    # Of the launcher's environment, which its workers have too.
    os.environ[DUMMY_WEIGHTS_VARIABLE] = str(setup.WEIGHTS)
    trees = [setup.tree_config(name, (names[0], names[1], names[2]), scale) for name in ("dense", "tree")]
    settings_of = partial(setup.experiment_config, early_exit=not arguments.no_exit, drafts=arguments.drafts)
    setup.write(folder, cluster_config, trees, settings_of(scale))
    config = load_cluster(folder / setup.CLUSTER_FILE)
    check_machine(config)
    environment = describe_environment()
    measured: list[Measured] = []
    not_reached: list[str] = []
    with started(config, folder / "logs") as target:
        parts: dict[str, Part] = {}
        if arguments.only in (None, "exact"):
            parts["exact"] = partial(measure_exact, target, config.models[0], scale, folder)
        if arguments.drafts and arguments.only in (None, "drafts"):
            parts["drafts"] = partial(measure_drafts, target, setup.model_name(size), scale, folder)
        if arguments.only in (None, "overlap"):
            (folder / "overlap").mkdir()
            for name in scale.overlap:
                parts[name] = partial(measure_overlap, target, setup.model_name(size), scale, folder, name)
        if arguments.only in (None, "settings"):
            parts[SETTINGS] = partial(measure_settings, target, settings_of, scale, folder)
        left = None if budget is None else max(0.0, budget - time.monotonic())
        shares = Budget(left, [_WEIGHTS.get(name, 1.0) for name in parts])
        for name, measure in parts.items():
            within = shares.next()
            found = None if within == 0 else measure(within)
            if found is None:
                not_reached.append(name)
            else:
                measured.append(msgspec.structs.replace(found, within_s=within))
    written: str | None = None
    lengths: dict[str, Lengths] = {}
    summary_file = folder / SETTINGS / "summary.json"
    if summary_file.is_file():
        written = report.write([folder / SETTINGS], folder / "report").html
        lengths = _lengths(msgspec.json.decode(summary_file.read_bytes(), type=Summary), folder)
    return Done(
        started=now.isoformat(timespec="seconds"),
        ended=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        ok=bool(measured) and all(each.exit_code == 0 for each in measured),
        command=command,
        models={setup.model_name(each): {**CONFIGS[each], "parameters": parameters(each)} for each in sizes},
        scale=scale,
        environment=environment,
        measured=tuple(measured),
        mps=arguments.device == "cuda" and mps.serves(os.environ),
        not_reached=tuple(not_reached),
        lengths=lengths,
        report=written and str(Path(written).relative_to(folder)),
    )


def measure_exact(
    target: Target, model: ModelConfig, scale: Scale, folder: Path, within_s: float | None = None
) -> Measured:
    """Sessions against plain requests, on the pair of `model`."""
    out = Path("exact.json")

    def measure() -> int:
        if target.flush is not None:
            asyncio.run(target.flush())
        found = asyncio.run(exact.measure(target.pairs[model.name], TokenSource(1000, 40_000), scale.exact, within_s))
        write_document(folder / out, found)
        if found.drafted:
            steps = f"{found.drafted_steps / found.drafted:.1f} steps each"
            print(f"{found.drafted_equal} of {found.drafted} answers are the same where they were drafted, {steps}")
        told = f"{found.equal} of {found.sessions} sessions answer as a plain request does"
        print(f"{told}; {found.plain_equal} plain requests as the one before; {found.beside} ended beside them")
        for name, off in (("sessions", found.first_logprob_off), ("plain", found.plain_logprob_off)):
            if off is not None:
                print(f"first token of {name} off by {off.median:.2g} nats, {off.max:.2g} at most ({off.n} compared)")
        print(*found.problems, sep="\n", file=sys.stderr)
        return 0 if found.exact(dtype=model.dtype) else EXIT_FAILED

    return _ended("exact", measure, out)


def measure_overlap(
    target: Target, model: str, scale: Scale, folder: Path, name: str, within_s: float | None = None
) -> Measured:
    """The part `name` of the overlap benchmark on the pair of `model`; if it fails, others may run."""
    out = Path("overlap") / f"{name}.json"
    options = [*_where(target, model, scale, folder / "overlap", within_s), *scale.overlap[name]]
    # Of a part that is measured twice, the name goes on behind it.
    arguments = overlap.parse(["--part", name.partition("-")[0], *options, "--out", str(folder / out)])
    return _ended(name, partial(overlap.measure, arguments), out)


def measure_drafts(target: Target, model: str, scale: Scale, folder: Path, within_s: float | None = None) -> Measured:
    """What drafts are worth on the pair of `model`."""
    out = Path("drafts.json")
    options = [*_where(target, model, scale, folder, within_s), *scale.drafts, "--out", str(folder / out)]
    return _ended("drafts", partial(drafts.main, options), out)


def _where(target: Target, model: str, scale: Scale, folder: Path, within_s: float | None) -> list[str]:
    """Options of a benchmark on the pair of `model`, whose caches are empty from here on; samples go to `folder`."""
    if target.flush is not None:
        asyncio.run(target.flush())
    pair = target.pairs[model]
    return [
        *("--router-url", pair.router, "--prefill-url", pair.prefill, "--decode-url", pair.decode),
        *("--runs-dir", str(folder), "--repetitions", str(scale.repetitions)),
        *(() if within_s is None else ("--within", f"{within_s:.3f}")),
    ]


def measure_settings(
    target: Target,
    settings_of: Callable[..., ExperimentConfig],
    scale: Scale,
    folder: Path,
    within_s: float | None = None,
) -> Measured | None:
    """`settings_of` a scale: on all questions, or on as many as there is time for; None when that is for none."""
    if within_s is not None:
        began = time.monotonic()
        with Client(target.url) as client:
            # What a run takes, which is also the warm-up.
            client.ask("What is 17 times 3?", tree="tree", options={"mode": "blocking"})
        run_s = time.monotonic() - began
        runs = 1 + len(settings_of(scale).settings)
        questions = min(scale.questions, int((within_s - run_s) / (runs * run_s)))
        if questions < 1:
            return None
        scale = msgspec.structs.replace(scale, questions=questions)
        setup.write_one(folder / setup.EXPERIMENT_FILE, settings_of(scale, warmup=0))
    workers = [part for url in target.workers for part in ("--worker-url", url)]
    arguments = [str(folder / setup.EXPERIMENT_FILE), "--url", target.url, *workers, "--runs-dir", str(folder)]
    return _ended(SETTINGS, partial(settings.main, [*arguments, "--name", SETTINGS]), Path(SETTINGS) / "summary.json")


def _ended(name: str, measure: Callable[[], int], result: Path) -> Measured:
    """What became of one of the measurements."""
    print(f"\n== {name}\n", flush=True)
    began = time.monotonic()
    try:
        code = measure()
    except GraftError as error:
        print(f"{name}: {error}", file=sys.stderr)
        code = error.exit_code
    if code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    return Measured(name=name, exit_code=code, wall_s=time.monotonic() - began, result=str(result))


def _lengths(summary: Summary, folder: Path) -> dict[str, Lengths]:
    """Of each setting's measured runs, against the limits that the trees in `folder` set."""
    limits: dict[str, dict[str, int]] = {}
    found: dict[str, Lengths] = {}
    for result in summary.results:
        if not result.step.measured or result.record is None:
            continue
        tree = result.step.tree
        if tree not in limits:
            document = msgspec.json.decode((folder / f"{tree}.json").read_bytes())
            limits[tree] = {agent["id"]: agent["sampling"]["max_new_tokens"] for agent in document["agents"]}
        ended = [agent for agent in result.record.agents if agent.state == "done"]
        before = found.get(result.step.setting, Lengths(answers=0, shorter=0))
        found[result.step.setting] = Lengths(
            answers=before.answers + len(ended),
            shorter=before.shorter + sum(agent.output_tokens < limits[tree][agent.id] for agent in ended),
        )
    return found


def _parser() -> argparse.ArgumentParser:
    parser = kinds.Parser(
        prog="graft gpu",
        description="Overlap and the four settings on one card, with random weights and fixed lengths.",
    )
    parser.add_argument("--size", choices=SIZES, default="4b", help="of Qwen3; tiny is to see that it works")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="of the workers (default: cuda)")
    parser.add_argument("--gpu", type=kinds.index, default=0, help="number of the card")
    parser.add_argument(
        "--hetero", action="store_true", help="aggregators and root on the other size, also on the card"
    )
    parser.add_argument("--quick", action="store_true", help="small lengths and few repetitions, to see that it works")
    parser.add_argument(
        "--budget-s", type=kinds.seconds, metavar="S", help="take about so many seconds in all; quick lengths"
    )
    parser.add_argument(
        "--drafts", action="store_true", help="decode workers draft, and what that is worth is measured too"
    )
    parser.add_argument("--only", choices=("exact", "drafts", "overlap", "settings"), help="one part of it")
    parser.add_argument("--no-exit", action="store_true", help="three settings; no embedding model is needed")
    parser.add_argument("--pool-tokens", type=kinds.count, help="KV pool of each worker, for cards with less memory")
    parser.add_argument(
        "--attention-backend", type=kinds.words, help="SGLang's flag, such as triton; without it SGLang chooses"
    )
    parser.add_argument(
        "--flags",
        type=kinds.words,
        metavar="TEXT",
        help="more of SGLang's flags for all workers, such as '--cuda-graph-max-bs-decode 16'",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="a new folder (default: runs/gpu-<size>-<device>-<time>)"
    )
    return parser
