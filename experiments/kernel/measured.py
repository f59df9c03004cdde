"""The pair that is measured: of a cluster started here, or one that is up already."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec

from experiments.kernel.command import EXIT_FAILED
from experiments.kernel.environment import describe_environment
from experiments.kernel.folder import Lines, write_document
from experiments.kernel.pair import Pair
from experiments.kernel.target import TargetError, check_machine, check_one_pair, started
from launch import arguments as kinds
from launch import shipped
from launch.config import ClusterConfig, load_cluster

StartPair = Callable[[bool], contextlib.AbstractContextManager[Pair]]
"""Brings the pair up for as long as the context lasts; with True one whose KV pools are small."""


SMALL_TOKENS = 3200
"""Of small KV pools."""

S = TypeVar("S", bound=msgspec.Struct)


@dataclass(frozen=True)
class Outcome:
    """What was measured."""

    numbers: Mapping[str, object]
    parameters: msgspec.Struct
    failed: int
    """Samples."""
    tables: tuple[str, ...]
    """For people."""
    more: Mapping[str, object] = field(default_factory=dict)
    """What only the file of `--out` has."""


def add_pair_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """What a command line says of the pair that is measured, and of where its results go; the group, for more of it."""
    where = parser.add_argument_group("where")
    where.add_argument(
        "--cluster",
        type=shipped.cluster,
        default="cpu_smollm2",
        metavar="CLUSTER",
        help="what to start: a cluster JSON, or the name of a shipped one (default: %(default)s)",
    )
    where.add_argument(
        "--router-url", type=kinds.url, help="use a running sglang-router in place of starting a cluster"
    )
    where.add_argument("--prefill-url", type=kinds.url, help="with --router-url: its prefill worker")
    where.add_argument("--decode-url", type=kinds.url, help="with --router-url: its decode worker")
    where.add_argument(
        "--token-range",
        type=kinds.index,
        nargs=2,
        metavar=("FIRST", "LAST"),
        default=(1000, 40000),
        help="of random token ids",
    )
    where.add_argument("--timeout", type=kinds.seconds, default=600.0, help="longest a request may take, seconds")
    where.add_argument(
        "--runs-dir", type=Path, default=Path("runs"), help="where folders of samples go (default: runs)"
    )
    where.add_argument(
        "--within", type=kinds.seconds, metavar="S", help="end with the sample that ends after so many seconds"
    )
    where.add_argument("--out", type=Path, metavar="FILE", help="where the summary goes, with all repetitions' values")
    return where


def deadline(arguments: argparse.Namespace) -> float:
    """When `--within` is over that begins now; never, without it. Of `time.monotonic()`."""
    return math.inf if arguments.within is None else time.monotonic() + float(arguments.within)


def check_pair_arguments(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End the process, as argparse does, where they do not go together."""
    urls = (arguments.router_url, arguments.prefill_url, arguments.decode_url)
    if any(urls) and not all(urls):
        parser.error("--router-url, --prefill-url and --decode-url go together")
    if arguments.token_range[0] >= arguments.token_range[1]:
        parser.error("--token-range must be two ids, the smaller one first")
    kinds.check_out(parser, arguments.out)


def pair_of(arguments: argparse.Namespace, folder: Path, small_tokens: int = SMALL_TOKENS) -> StartPair:
    """The pair that `arguments` name: one that is up, whose pools are as large as they are, or one of a cluster, with
    its logs in `folder`. Raises `ConfigError` for a cluster that has not one pair."""
    if arguments.router_url is None:
        return cluster_pair(arguments.cluster, folder, small_tokens)
    pair = Pair(router=arguments.router_url, prefill=arguments.prefill_url, decode=arguments.decode_url)
    return lambda _: contextlib.nullcontext(pair)


def measure(
    arguments: argparse.Namespace,
    name: str,
    sample: type[S],
    take: Callable[[StartPair, Lines[S]], Outcome],
    small_tokens: int = SMALL_TOKENS,
) -> int:
    """`take` what is to be measured on the pair that `arguments` name, and tell: tables and one JSON document on
    stdout, samples in the run's folder as they end (an interrupt keeps them), the summary where `--out` says. Answers
    0, or 1 when a sample failed."""
    now = datetime.datetime.now(datetime.UTC)
    folder: Path = arguments.runs_dir / f"{name}-{now:%Y%m%dT%H%M%SZ}"
    start = pair_of(arguments, folder, small_tokens)
    folder.mkdir(parents=True, exist_ok=True)
    lines = Lines(folder / "samples.jsonl", sample)
    # What is measured is the code as it is now, not as it may be edited meanwhile.
    environment = describe_environment()
    try:
        outcome = take(start, lines)
    except KeyboardInterrupt:
        print(f"interrupted; samples that had ended are in {lines.path}", file=sys.stderr)
        raise
    print("\n\n".join(outcome.tables))
    print(f"\nsamples  {lines.path}")
    document = {
        **outcome.numbers,
        "failed": outcome.failed,
        "parameters": outcome.parameters,
        "cluster": None if arguments.router_url else arguments.cluster.name,
        "samples": str(lines.path),
        "environment": environment,
    }
    if arguments.out is not None:
        times = {"started": now, "ended": datetime.datetime.now(datetime.UTC)}
        told = {name: time.isoformat(timespec="seconds") for name, time in times.items()}
        write_document(arguments.out, {**document, **told, **outcome.more})
        print(f"summary  {arguments.out}")
    print("\n" + msgspec.json.encode(document).decode(), flush=True)
    return EXIT_FAILED if outcome.failed else 0


def cluster_pair(path: Path, log_dir: Path, small_tokens: int) -> StartPair:
    """The first model's pair of the cluster JSON at `path`, whose small pools have `small_tokens` tokens.

    Raises `ConfigError` when the file is wrong, names more than one pair, or has workers that are no pair.
    """
    config = load_cluster(path)
    check_one_pair(config, path)

    @contextlib.contextmanager
    def start(small: bool) -> Iterator[Pair]:
        mine = small_pools(config, small_tokens) if small else config
        check_machine(mine)
        with started(mine, log_dir / mine.name) as target:
            if target.pair is None:
                raise TargetError(f"cluster {mine.name} has no pair")
            yield target.pair

    return start


def small_pools(config: ClusterConfig, tokens: int) -> ClusterConfig:
    """The same cluster with KV pools of `tokens` tokens, under a name of its own."""
    models = tuple(msgspec.structs.replace(model, max_total_tokens=tokens) for model in config.models)
    return msgspec.structs.replace(config, name=f"{config.name}-pressure", models=models)
