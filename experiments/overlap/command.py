"""`graft bench overlap`: blocking, resend and incremental prefill against each other, on one pair of workers.

What is measured is the router's own code, in this process: its sessions, and whole runs of its plan. Modes (`--modes`):
blocking sends a prompt when it is whole; resend and incremental are the transports of what is appended before that.

Parts (`--part`):

    ttft          the first token after the commit under the loads idle, busy_decode and pressure (see `ttft.py`)
    scaling       the same, idle, for a short and a long prompt
    second_layer  several precursors with random prompts and the successor that reads them (see `layer.py`)
    spliced       the same for each of several lengths of what is spliced (`--sizes`); prompts and head are short
    chain         two agents, the second reads the first
    traffic       first tokens of plain requests beside a pool full of sessions (see `traffic.py`)

`--concurrency N` of second_layer, spliced and chain makes N runs at once. `DEFINITIONS` says what each number is and
which are derived; they are in the result too.

Modes are taken in a drawn order within each repetition, each with tokens of its own. Repetitions below 0 are warm-ups
and in no number. Ratios are of one repetition, their mean is the geometric one. Tables go to stdout, whose last line is
one JSON document. Samples go to `runs/<name>/samples.jsonl` as they end, and an interrupt keeps them. `--out FILE` gets
that document with all repetitions' values, for people and for later comparisons.

Exit codes: 0 no sample failed (goals may be missed), 1 a sample or the cluster failed, 2 wrong cfg or command line,
130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import sys
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TypeVar

import msgspec

from experiments.kernel.command import EXIT_FAILED
from experiments.kernel.engine import PairClient, TokenSource, open_pair
from experiments.kernel.environment import describe_environment
from experiments.kernel.folder import Lines, write_document
from experiments.kernel.pair import Pair
from experiments.kernel.statistics import FEW
from experiments.kernel.target import TargetError
from experiments.overlap import layer, show, stats, traffic, ttft
from experiments.overlap.loads import Load, LoadParameters
from experiments.overlap.stats import MODES, Goal, Sample
from experiments.overlap.target import StartPair, cluster_pair, running_pair
from launch import shipped
from launch.progress import Progress

LOADS: tuple[Load, ...] = ("idle", "busy_decode", "pressure")
LAYER_PARTS = ("second_layer", "spliced", "chain")
SHORT_INPUT = 64
"""Length of prompts and head where only what is spliced shall be long, tokens."""
DEFINITIONS = {
    "clock": "the router's own, in the process that measures; the first token is the first event with output ids",
    "ttft_s": "ttft, scaling: from the commit to the successor's first token. second_layer, spliced, chain: from the "
    "end of the last precursor to the successor's first token, which is the exposed prefill",
    "run_ttft_s": "from the precursors' requests to the successor's first token",
    "layer_s": "second-layer latency: from the end of the last precursor to the end of the successor's answer",
    "total_s": "from the precursors' requests to the end of the successor's answer",
    "append_s": "until both workers have answered; the first one opens the session. Of resend until the end of the "
    "probe request; blocking has none",
    "hidden_prefill_s": "time appends were in flight before the last precursor ended",
    "hidden_prefill_fraction": "of the prompt's tokens. ttft, scaling: of incremental, those held after the last "
    "append less those computed again after it; of resend, `cached_tokens` of the committed request. second_layer, "
    "spliced, chain: those of appends that were answered before the last precursor ended",
    "bytes_before_commit, bytes_after_commit": "KV moved from prefill to decode worker for the successor's prompt, on "
    "one rank. Of incremental the prefill worker's page counters times the bytes of a page, of the other modes "
    "SGLang's metric sglang:kv_transfer_total_mb. Null where the metric is not there or did not follow in time, and "
    "where a request of the load was sent meanwhile. second_layer, spliced, chain: less the precursors' own prompts; "
    "of resend, what follows the commit is derived (the pages that no probe covered) and the rest went before; of "
    "several runs at once the mean",
    "recomputed_tokens": "of incremental the prefill worker's counter. Of resend derived: tokens of the former request "
    "that `cached_tokens` did not cover; SGLang reports the larger hit of prefill and decode worker, so it is a lower "
    "bound. Blocking sends everything once: 0",
    "failed": "a sample whose request failed, and one of incremental that fell back to plain requests",
    "spread": "median, smallest, largest and number of the values",
    "ratio": "one mode / another of the same repetition (of runs at once: geometric mean of theirs). Geometric mean "
    "over repetitions with a 95 % interval, BCa bootstrap over repetitions; below 20 it is narrow: take it for a range",
    "warm-up": "repetitions below 0, in no number",
}

S = TypeVar("S", bound=msgspec.Struct)


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a part came to."""

    numbers: dict[str, object]
    parameters: msgspec.Struct
    goals: list[Goal] = []
    failed: int
    tables: tuple[str, ...] = ()
    repetitions: Mapping[str, object] = {}
    """The values that the numbers are made of."""


class Setup:
    """What a part is given."""

    def __init__(self, arguments: argparse.Namespace, start: StartPair, samples: Lines[msgspec.Struct]) -> None:
        self.arguments = arguments
        self.tokens = TokenSource(*arguments.token_range)
        self._start = start
        self._samples = samples

    def progress(self, steps: int) -> Progress:
        """Of a part that takes `steps` samples in each repetition."""
        return Progress("sample", steps * (self.arguments.repetitions + 1))

    def take(
        self,
        progress: Progress,
        samples: Callable[[PairClient], AsyncGenerator[S]],
        describe: Callable[[S], str],
        *,
        small: bool = False,
    ) -> tuple[list[S], PairClient]:
        """All samples of the pair, and its client, which is closed, for what it knows.

        Raises `TargetError` when sessions are wanted and the prefill worker has none.
        """
        wanted = "incremental" in self.arguments.modes or self.arguments.part == "traffic"

        async def run(pair: Pair) -> tuple[list[S], PairClient]:
            found: list[S] = []
            async with open_pair(pair, timeout_s=self.arguments.timeout) as client:
                status = client.status
                if wanted and status.sessions is None:
                    why = status.refusal.message if status.refusal else "it does not say why"
                    raise TargetError(f"{pair.prefill} offers no incremental sessions: {why}")
                progress.start()
                async with aclosing(samples(client)) as ended:
                    async for sample in ended:
                        self._samples.add(sample)
                        progress.end(describe(sample))
                        found.append(sample)
            return found, client

        with self._start(small) as pair:
            return asyncio.run(run(pair))


def run_written(setup: Setup) -> Outcome:
    """A prompt written piece by piece: under each load (`pressure` on a pair of its own, with small pools), or idle, a
    short and a long one."""
    arguments = setup.arguments
    parameters = ttft.TtftParameters(
        prompt=arguments.prompt,
        chunk=arguments.chunk,
        tail=arguments.tail,
        modes=tuple(arguments.modes),
        repetitions=arguments.repetitions,
        seed=arguments.seed,
        loads=LoadParameters(busy_requests=arguments.busy_requests, busy_tokens=arguments.busy_tokens),
    )
    if arguments.part == "ttft":
        cases = [ttft.Case(name=load, load=load, prompt=arguments.prompt) for load in arguments.loads]
    else:
        lengths = (arguments.prompt, arguments.long_prompt)
        cases = [ttft.Case(name=f"{length} tokens", load="idle", prompt=length) for length in lengths]
    samples: list[Sample] = []
    goals: list[Goal] = []
    with setup.progress(len(cases) * len(parameters.modes)) as progress:
        for small in (False, True):
            mine = [case for case in cases if (case.load == "pressure") is small]
            if not mine:
                continue

            def run(client: PairClient, mine: Sequence[ttft.Case] = mine) -> AsyncGenerator[Sample]:
                return ttft.Bench(client, setup.tokens, parameters).run(mine)

            found, client = setup.take(progress, run, show.describe, small=small)
            samples += found
            if "incremental" in parameters.modes and arguments.part == "ttft":
                goals += ttft.goals(found, parameters, client.status)
    if "incremental" in parameters.modes and arguments.part == "scaling":
        goals = ttft.scaling_goals(samples, *(case.name for case in cases))
    return _outcome(arguments, samples, ttft.VALUES, ttft.COMPARED, parameters, goals)


def run_layer(setup: Setup) -> Outcome:
    """Runs of a tree of two layers."""
    arguments = setup.arguments
    parameters = layer.LayerParameters(
        input_range=tuple(arguments.input_range),
        answer=arguments.answer,
        concurrency=arguments.concurrency,
        modes=tuple(arguments.modes),
        repetitions=arguments.repetitions,
        seed=arguments.seed,
    )
    if arguments.part == "spliced":
        cases = [layer.spliced_case(size, arguments.precursors) for size in arguments.sizes]
    else:
        precursors = 1 if arguments.part == "chain" else arguments.precursors
        cases = [layer.Case(name=arguments.part, answers=(arguments.precursor_answer,) * precursors)]
    with setup.progress(len(cases) * len(parameters.modes) * parameters.concurrency) as progress:
        samples, _ = setup.take(
            progress, lambda client: layer.LayerBench(client, setup.tokens, parameters).run(cases), show.describe
        )
    outcome = _outcome(arguments, samples, layer.VALUES, layer.COMPARED, parameters, [])
    return msgspec.structs.replace(outcome, numbers={"cases": cases, **outcome.numbers})


def run_traffic(setup: Setup) -> Outcome:
    arguments = setup.arguments
    parameters = traffic.TrafficParameters(
        requests=arguments.requests,
        at_once=arguments.at_once,
        session=arguments.session_tokens,
        fill=arguments.fill,
        repetitions=arguments.repetitions,
        seed=arguments.seed,
    )
    with setup.progress(2) as progress:
        samples, client = setup.take(
            progress, lambda client: traffic.TrafficBench(client, setup.tokens, parameters).run(), traffic.describe
        )
    return Outcome(
        numbers={**traffic.result(samples), "pool_tokens": client.pool_tokens},
        parameters=parameters,
        goals=traffic.goals(samples),
        failed=sum(sample.failed for sample in samples),
        repetitions={"samples": samples},
    )


PARTS: dict[str, Callable[[Setup], Outcome]] = {
    "ttft": run_written,
    "scaling": run_written,
    **dict.fromkeys(LAYER_PARTS, run_layer),
    "traffic": run_traffic,
}


def main(argv: Sequence[str]) -> int:
    """Measure one part; answers the exit code. Raises `GraftError` for what ends it."""
    return measure(parse(argv))


def measure(arguments: argparse.Namespace) -> int:
    """Measure the part that `arguments` (of `parse`) name, and tell; answers 0, or 1 when a sample failed."""
    now = datetime.datetime.now(datetime.UTC)
    folder: Path = arguments.runs_dir / f"overlap-{arguments.part}-{now:%Y%m%dT%H%M%SZ}"
    running = arguments.router_url is not None
    if running:
        pair = Pair(router=arguments.router_url, prefill=arguments.prefill_url, decode=arguments.decode_url)
        start = running_pair(pair)
    else:
        start = cluster_pair(arguments.cluster, folder, arguments.pressure_tokens)
    folder.mkdir(parents=True, exist_ok=True)
    samples = folder / "samples.jsonl"
    # What is measured is the code as it is now, not as it may be edited meanwhile.
    environment = describe_environment()
    try:
        outcome = PARTS[arguments.part](Setup(arguments, start, Lines(samples, msgspec.Struct)))
    except KeyboardInterrupt:
        print(f"interrupted; samples that had ended are in {samples}", file=sys.stderr)
        raise
    print("\n\n".join([*outcome.tables, *([show.format_goals(outcome.goals)] if outcome.goals else [])]))
    if outcome.tables and arguments.repetitions < FEW:
        print(f"\nOf fewer than {FEW} repetitions intervals are too narrow: take them for ranges.")
    print(f"\nsamples  {samples}")
    document = {
        "part": arguments.part,
        **outcome.numbers,
        "goals": outcome.goals,
        "failed": outcome.failed,
        "parameters": outcome.parameters,
        "cluster": None if running else arguments.cluster.name,
        "samples": str(samples),
        "environment": environment,
    }
    if arguments.out is not None:
        whole = {
            **document,
            "started": now.isoformat(timespec="seconds"),
            "ended": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "definitions": DEFINITIONS,
            "repetitions": outcome.repetitions,
        }
        write_document(arguments.out, whole)
        print(f"summary  {arguments.out}")
    print("\n" + msgspec.json.encode(document).decode(), flush=True)
    return EXIT_FAILED if outcome.failed else 0


def _outcome(
    arguments: argparse.Namespace,
    samples: Sequence[Sample],
    values: Sequence[str],
    compared: Sequence[str],
    parameters: msgspec.Struct,
    goals: list[Goal],
) -> Outcome:
    tables = stats.tables(samples, values)
    failures = stats.failures(samples)
    ratios = stats.against(samples, compared, seed=arguments.seed)
    blocks: list[str] = []
    for case, failed in failures.items():
        # Always in this order, whichever mode came first.
        blocks.append(show.format_results(case, {mode: failed[mode] for mode in MODES if mode in failed}, tables))
        if case in ratios:
            blocks.append(show.format_ratios(case, ratios[case]))
    return Outcome(
        numbers={
            **tables,
            "ratios": ratios,
            "failures": failures,
            "errors": list(dict.fromkeys(sample.error for sample in samples if sample.error is not None)),
        },
        parameters=parameters,
        goals=goals,
        failed=sum(count for modes in failures.values() for count in modes.values()),
        tables=tuple(blocks),
        repetitions=stats.repetitions(samples, values),
    )


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line. Ends the process, as argparse does, when it is wrong."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    urls = (arguments.router_url, arguments.prefill_url, arguments.decode_url)
    if any(urls) and not all(urls):
        parser.error("--router-url, --prefill-url and --decode-url go together")
    if arguments.prompt <= arguments.tail:
        parser.error("--prompt must be longer than --tail")
    if arguments.input_range is None:
        arguments.input_range = (SHORT_INPUT, SHORT_INPUT) if arguments.part == "spliced" else (1, 2048)
    lowest, highest = arguments.input_range
    if not 1 <= lowest <= highest:
        parser.error("--input-range must be two lengths, the smaller one first, and no less than 1")
    if arguments.part == "spliced" and min(arguments.sizes) < arguments.precursors:
        parser.error("--sizes must leave a token to each of --precursors")
    if arguments.out is not None and not arguments.out.parent.is_dir():
        parser.error(f"--out: there is no folder {arguments.out.parent}")
    return arguments


def _sizes(text: str) -> list[int]:
    """Comma-separated numbers of tokens, each once."""
    sizes = [int(part) for part in text.split(",")]
    if len(set(sizes)) < len(sizes) or min(sizes) < 1:
        raise argparse.ArgumentTypeError("tokens, separated by commas, each once")
    return sizes


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="graft bench overlap", description="Compare blocking, resend and incremental prefill."
    )
    parser.add_argument("--part", choices=tuple(PARTS), default="ttft")
    where = parser.add_argument_group("where")
    where.add_argument(
        "--cluster",
        type=shipped.cluster,
        default="cpu_smollm2",
        metavar="CLUSTER",
        help="what to start: a cluster JSON, or the name of a shipped one (default: %(default)s)",
    )
    where.add_argument("--pressure-tokens", type=int, default=3200, help="KV pools under the load pressure")
    where.add_argument("--router-url", help="use a running sglang-router in place of starting a cluster")
    where.add_argument("--prefill-url", help="with --router-url: its prefill worker")
    where.add_argument("--decode-url", help="with --router-url: its decode worker")
    where.add_argument("--runs-dir", type=Path, default=Path("runs"))
    where.add_argument("--out", type=Path, metavar="FILE", help="where the summary goes, with all repetitions' values")
    where.add_argument("--timeout", type=float, default=600.0, help="longest a request may take, seconds")
    what = parser.add_argument_group("what")
    what.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    what.add_argument("--repetitions", type=_count, default=5, help="after one warm-up")
    what.add_argument("--seed", type=int, default=0, help="of lengths and orders; tokens are always new")
    what.add_argument("--token-range", type=int, nargs=2, default=(1000, 40000), help="of random token ids")
    prompts = parser.add_argument_group("ttft and scaling, tokens")
    prompts.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS))
    prompts.add_argument("--prompt", type=int, default=1024)
    prompts.add_argument("--long-prompt", type=int, default=4096, help="of scaling")
    prompts.add_argument("--chunk", type=int, default=64, help="of one append")
    prompts.add_argument("--tail", type=int, default=32, help="what comes with the commit")
    prompts.add_argument("--busy-requests", type=int, default=4)
    prompts.add_argument("--busy-tokens", type=int, default=1500, help="answer of each busy request")
    layers = parser.add_argument_group(f"{', '.join(LAYER_PARTS)}, tokens")
    layers.add_argument("--precursors", type=_count, default=3, help="of second_layer and spliced")
    layers.add_argument("--concurrency", type=_count, default=1, help="layers that run at once")
    layers.add_argument(
        "--input-range",
        type=int,
        nargs=2,
        help=f"prompts and head, uniform (default: 1 2048; of spliced {SHORT_INPUT} {SHORT_INPUT})",
    )
    layers.add_argument("--precursor-answer", type=_count, default=64, help="of second_layer and chain")
    layers.add_argument("--sizes", type=_sizes, default=[256, 1024], help="of spliced: all answers together (256,1024)")
    layers.add_argument("--answer", type=_count, default=16, help="of the successor")
    plain = parser.add_argument_group("traffic")
    plain.add_argument("--requests", type=int, default=50, help="plain requests in each half of a repetition")
    plain.add_argument("--at-once", type=int, default=2)
    plain.add_argument("--session-tokens", type=int, default=512)
    plain.add_argument("--fill", type=float, default=0.9, help="share of the pool that sessions come to")
    return parser
