"""`graft bench drafts`: what drafts are worth, by how much of an answer they know and how many decode at once.

Batches of requests (`--batches`) are answered by one pair of workers that draft, each batch without drafts and with
predictions that are right in a known share of the answer (`--shares`): tokens a step, what a step takes, and how much
faster it goes. Beside what was measured stands what a formula (`sglang_ext.drafts.gain`) makes of the copied share and
of two step times. Answers are greedy, to random prompts; where rounding changes one behind a draft (bfloat16) the rest
of it is new, and `copied` says what was left.

Ways come in a drawn order within each repetition; repetitions below 0 are warm-ups and in no number. Ratios are of one
repetition, their mean is the geometric one, with a 95 % interval (BCa bootstrap over repetitions). Tables go to stdout,
whose last line is one JSON document; samples go to `runs/<name>/samples.jsonl` as they end, and an interrupt keeps
them. `--out FILE` gets the document for people. Recorded answers are counted by `python -m experiments.drafts.offline`.

Exit codes: 0 no sample failed (goals may be missed), 1 a sample or the cluster failed, 2 wrong cfg or command line,
130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing

from experiments.drafts import show
from experiments.drafts.bench import DraftsBench, DraftsParameters, DraftsSample
from experiments.kernel.engine import PairClient, TokenSource, open_pair
from experiments.kernel.folder import Lines
from experiments.kernel.measured import (
    Outcome,
    StartPair,
    add_pair_arguments,
    check_pair_arguments,
    deadline,
    measure,
)
from experiments.kernel.pair import Pair
from experiments.kernel.target import TargetError
from launch import arguments as kinds
from launch.progress import Progress


def main(argv: Sequence[str]) -> int:
    """Measure; answers the exit code. Raises `GraftError` for what ends it."""
    arguments = _parse(argv)
    parameters = DraftsParameters(
        batches=tuple(arguments.batches),
        shares=tuple(arguments.shares),
        stretch=arguments.stretch,
        prompt=arguments.prompt,
        answer=arguments.answer,
        repetitions=arguments.repetitions,
        seed=arguments.seed,
    )

    def take(start: StartPair, lines: Lines[DraftsSample]) -> Outcome:
        with start(False) as pair:
            samples, width = asyncio.run(_take(pair, arguments, parameters, lines))
        found = show.points(samples, width, parameters.seed)
        goals = show.kept(found)
        return Outcome(
            numbers={"points": found, "goals": goals, "width": width},
            parameters=parameters,
            failed=sum(sample.error is not None for sample in samples),
            tables=(show.table(found), *([show.verdicts(goals)] if goals else [])),
        )

    return measure(arguments, "drafts", DraftsSample, take)


async def _take(
    pair: Pair, arguments: argparse.Namespace, parameters: DraftsParameters, lines: Lines[DraftsSample]
) -> tuple[list[DraftsSample], int]:
    """All samples, and the most tokens that a step computes for a request. Raises `TargetError` without drafts."""
    tokens = TokenSource(*arguments.token_range)
    ways = len(parameters.batches) * (1 + len(parameters.shares))
    found: list[DraftsSample] = []
    until = deadline(arguments)
    with Progress("sample", ways * (parameters.repetitions + parameters.warmups)) as progress:
        async with open_pair(pair, timeout_s=arguments.timeout) as client:
            width = await _width(client)
            progress.start()
            async with aclosing(DraftsBench(client, tokens, parameters).run()) as samples:
                async for sample in samples:
                    lines.add(sample)
                    progress.end(show.describe(sample))
                    found.append(sample)
                    if time.monotonic() > until:
                        break
    return found, width


async def _width(client: PairClient) -> int:
    drafts = (await client.decode_status()).drafts
    if drafts is None:
        raise TargetError(f"{client.pair.decode} drafts nothing: `drafts` of its model in the cluster JSON is off")
    return drafts.max_tokens + 1


def _share(text: str) -> float:
    return 0.0 if text.strip() in ("0", "0.0") else kinds.share(text)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = kinds.Parser(prog="graft bench drafts", description="Decode with predictions of known worth, and without.")
    add_pair_arguments(parser)
    what = parser.add_argument_group("what")
    what.add_argument(
        "--batches", type=kinds.several(kinds.count, "requests"), default=[1, 3, 9, 27], help="at once (1,3,9,27)"
    )
    what.add_argument(
        "--shares",
        type=kinds.several(_share, "shares"),
        default=[0.0, 0.25, 0.5, 0.75, 1.0],
        help="of an answer that are predicted (0,0.25,0.5,0.75,1)",
    )
    what.add_argument("--stretch", type=kinds.rate, default=16.0, help="tokens that are right in a row (16)")
    what.add_argument("--prompt", type=kinds.count, default=64, help="tokens of each prompt (64)")
    what.add_argument("--answer", type=kinds.count, default=128, help="tokens of each answer (128)")
    what.add_argument("--repetitions", type=kinds.count, default=5, help="after one warm-up (5)")
    what.add_argument("--seed", type=int, default=0, help="of orders and predictions; tokens are always new")
    arguments = parser.parse_args(argv)
    check_pair_arguments(parser, arguments)
    if arguments.stretch < 1:
        parser.error("--stretch must be a token at least")
    if arguments.answer < 2:
        parser.error("--answer must be two tokens at least: the first is the prefill worker's")
    return arguments
