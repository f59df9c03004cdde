"""`graft gpu`: what overlap is worth on one GPU, with random weights of a real size and fixed lengths.

Starts one pair of workers (`--hetero`: also a pair of a second size) on one card, measures on it the parts of
`graft bench overlap` and the four settings (`graft run`), and stops it. One folder gets all of it:

    cluster.json, dense.json, tree.json, experiment.json    what was started and asked; `graft run` takes them
    overlap/<part>.json                                     summaries of the overlap benchmark
    four_settings/                                          the folder of `graft run`
    report/                                                 `graft report` of it
    logs/                                                   of the processes
    summary.json                                            all of it in short, with machine and commit

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
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from experiments.gpu import setup
from experiments.gpu.setup import Scale
from experiments.gpu.sizes import CONFIGS, SIZES, Size, make_checkpoint, parameters
from experiments.kernel.command import EXIT_FAILED, EXIT_INTERRUPTED
from experiments.kernel.environment import Environment, describe_environment
from experiments.kernel.folder import write_document
from experiments.kernel.target import Target, check_machine, started
from experiments.overlap import command as overlap
from experiments.report import command as report
from experiments.settings import command as settings
from experiments.settings.summary import Summary
from launch.config import load_cluster
from shell_router.errors import GraftError

SETTINGS = "four_settings"
_SECOND: Mapping[Size, Size] = {"4b": "8b", "8b": "4b", "tiny": "tiny"}


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One of the measurements."""

    name: str
    exit_code: int
    wall_s: float
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
    print(f"\nsummary  {folder / 'summary.json'}\n")
    print(msgspec.json.encode(done).decode(), flush=True)
    return 0 if done.ok else EXIT_FAILED


def _measure(arguments: argparse.Namespace, command: tuple[str, ...], now: datetime.datetime, folder: Path) -> Done:
    size: Size = arguments.size
    scale = setup.scale_of(size, quick=arguments.quick)
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
    )
    trees = [setup.tree_config(name, (names[0], names[1], names[2]), scale) for name in ("dense", "tree")]
    setup.write(folder, cluster_config, trees, setup.experiment_config(scale, early_exit=not arguments.no_exit))
    config = load_cluster(folder / setup.CLUSTER_FILE)
    check_machine(config)
    environment = describe_environment()
    measured: list[Measured] = []
    with started(config, folder / "logs") as target:
        if arguments.only != "settings":
            measured += measure_overlap(target, setup.model_name(size), scale, folder)
        if arguments.only != "overlap":
            measured.append(measure_settings(target, folder))
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
        lengths=lengths,
        report=written and str(Path(written).relative_to(folder)),
    )


def measure_overlap(target: Target, model: str, scale: Scale, folder: Path) -> list[Measured]:
    """All parts on the pair of `model`, one after the other; one that fails does not keep the others from running."""
    pair = target.pairs[model]
    where = [
        *("--router-url", pair.router, "--prefill-url", pair.prefill, "--decode-url", pair.decode),
        *("--runs-dir", str(folder / "overlap"), "--repetitions", str(scale.repetitions)),
    ]
    (folder / "overlap").mkdir()
    found: list[Measured] = []
    for name, options in scale.overlap.items():
        if target.flush is not None:
            asyncio.run(target.flush())
        out = Path("overlap") / f"{name}.json"
        # Of a part that is measured twice, the name goes on behind it.
        arguments = overlap.parse(["--part", name.partition("-")[0], *where, *options, "--out", str(folder / out)])
        found.append(_ended(name, partial(overlap.measure, arguments), out))
    return found


def measure_settings(target: Target, folder: Path) -> Measured:
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
    parser = argparse.ArgumentParser(
        prog="graft gpu",
        description="Overlap and the four settings on one card, with random weights and fixed lengths.",
    )
    parser.add_argument("--size", choices=SIZES, default="4b", help="of Qwen3; tiny is to see that it works")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--gpu", type=int, default=0, help="number of the card")
    parser.add_argument(
        "--hetero", action="store_true", help="aggregators and root on the other size, also on the card"
    )
    parser.add_argument("--quick", action="store_true", help="small lengths and few repetitions, to see that it works")
    parser.add_argument("--only", choices=("overlap", "settings"), help="one half of it")
    parser.add_argument("--no-exit", action="store_true", help="three settings; no embedding model is needed")
    parser.add_argument("--pool-tokens", type=int, help="KV pool of each worker, for cards with less memory")
    parser.add_argument("--attention-backend", help="SGLang's flag, such as triton; without it SGLang chooses")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="a new folder (default: runs/gpu-<size>-<device>-<time>)"
    )
    return parser
