"""`graft profile`: what the models of a cluster take, measured on its workers, for `graft plan --optimise --profile`.

The cluster is started. Each of its models is one pair of workers; of each, prompts of several lengths and answers in
several numbers are timed, one model after the other, with nothing else to do on the machine. A table goes to stdout,
whose last line is the profile as JSON; `--out FILE` gets it for people. Rows name the model by its `path` and the cards
as `graft cards` does. On a CPU the card is called `cpu`: there is something to look at, and nothing to place.

Exit codes: 0 done, 1 the cluster or a request failed, 2 wrong cfg or command line, 130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from experiments.kernel.engine import TokenSource, open_pair
from experiments.kernel.folder import write_document
from experiments.kernel.pair import Pair
from experiments.kernel.tables import align
from experiments.kernel.target import check_machine, started
from experiments.profile.bench import BATCHES, LENGTHS, ProfileBench
from experiments.profile.fit import row
from launch import arguments as kinds
from launch import shipped
from launch.config import ClusterConfig, ModelConfig, load_cluster
from launch.gpu.allocation import allocate, uses_gpus
from launch.gpu.cards import CardTable, read_cards
from launch.gpu.program.costs import CostRow, Key, Profile
from launch.progress import Progress
from shell_router.config import ConfigError

CPU = "cpu"
"""What stands for a card where there is none."""
TOKENS = (1000, 30000)
"""Of the random ids in prompts: vocabularies have them."""
_TIMEOUT_S = 600.0
"""Longest that a request may take."""


class Measured(NamedTuple):
    """A model whose pair is measured, and the row that this makes."""

    name: str
    key: Key


def main(argv: Sequence[str]) -> int:
    """Measure; answers the exit code. Raises `GraftError` for what ends it."""
    arguments = _parse(argv)
    config = load_cluster(arguments.cluster)
    models = measured(config, read_cards() if uses_gpus(config) else CardTable())
    check_machine(config)
    now = datetime.datetime.now(datetime.UTC)
    rows: list[CostRow] = []
    table = [["model", "card", *(f"{n:,} tokens" for n in LENGTHS), *(f"step of {n}" for n in BATCHES)]]
    with started(config, arguments.runs_dir / f"profile-{now:%Y%m%dT%H%M%SZ}") as target:
        for model in models:
            found, cells = asyncio.run(_take(model, target.pairs[model.name], arguments.repetitions))
            rows.append(found)
            table.append(cells)
    profile = Profile(rows=tuple(rows))
    print(align(table, numbers=True))
    if arguments.out is not None:
        write_document(arguments.out, profile)
        print(f"\nprofile  {arguments.out}")
    print("\n" + msgspec.json.encode(profile).decode(), flush=True)
    return 0


def measured(config: ClusterConfig, table: CardTable) -> tuple[Measured, ...]:
    """The models of `config`, on cards as its plan for those of `table` has it. Raises `ConfigError` when one of them
    cannot be measured, and `PlacementError`."""
    problems = list(_problems(config))
    if problems:
        raise ConfigError("; ".join(problems))
    placements = allocate(config, None, table)
    names = {card.index: card.name for card in table.cards}
    found: dict[Key, Measured] = {}
    for m, model in enumerate(config.models):
        prefill, decode = (
            placements[worker.name].cards if worker.name in placements else () for worker in model.workers("")
        )
        kinds_of = {names[card] for card in (*prefill, *decode)} or {CPU}
        if len(kinds_of) > 1 or len(prefill) != len(decode):
            raise ConfigError(
                f"$.models[{m}]: its workers are on GPU {_listed(prefill)} and on GPU {_listed(decode)}; those of a "
                "row are on as many cards, of one kind"
            )
        key = (model.path, kinds_of.pop(), len(prefill) or 1)
        found.setdefault(key, Measured(model.name, key))
    return tuple(found.values())


def _problems(config: ClusterConfig) -> Iterator[str]:
    if config.hosts:
        yield "$.hosts: the workers of one machine are measured"
    longest = max(LENGTHS) + 1
    for m, model in enumerate(config.models):
        if len(model.prefill) != 1 or len(model.decode) != 1:
            yield f"$.models[{m}]: {_workers(model)}; one prefill worker and one decode worker are measured"
        elif model.context_length < longest:
            yield f"$.models[{m}].context_length: prompts of {max(LENGTHS):,} tokens and one more are measured"


def _workers(model: ModelConfig) -> str:
    if model.openai is not None:
        return "somebody else serves it"
    roles = {"prefill": model.prefill, "decode": model.decode, "regular": model.regular}
    return "it has " + ", ".join(f"{len(there)} {role}" for role, there in roles.items() if there)


def _listed(cards: Sequence[int]) -> str:
    return "+".join(map(str, cards))


async def _take(model: Measured, pair: Pair, repetitions: int) -> tuple[CostRow, list[str]]:
    """The row of a model, and that of the table for people."""
    path, card, tp_size = model.key
    async with open_pair(pair, timeout_s=_TIMEOUT_S) as client:
        bench = ProfileBench(client, TokenSource(*TOKENS), repetitions)
        with Progress(model.name, bench.samples, alike=False) as progress:
            progress.start()
            prompts, steps = await bench.run(progress.end)
    medians = [
        f"{statistics.median(values) * 1000:.{digits}f} ms"
        for measured, digits in ((prompts, 1), (steps, 2))
        for values in measured.values()
    ]
    return row(path, card, tp_size, prompts, steps), [path, f"{tp_size} x {card}", *medians]


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = kinds.Parser(
        prog="graft profile", description="Measure what a cluster's models take, for `graft plan --optimise`."
    )
    parser.add_argument(
        "--cluster",
        type=shipped.cluster,
        required=True,
        metavar="CLUSTER",
        help="what to start: a cluster JSON, or the name of a shipped one",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the profile goes")
    parser.add_argument("--repetitions", type=kinds.count, default=5, help="after one warm-up (5)")
    parser.add_argument(
        "--runs-dir", type=Path, default=Path("runs"), help="where the workers' logs go (default: runs)"
    )
    arguments = parser.parse_args(argv)
    kinds.check_out(parser, arguments.out)
    return arguments
