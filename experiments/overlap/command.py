"""`graft bench overlap`: blocking, resend and incremental prefill against each other, on one pair of workers.

What is measured is the router's own code, in this process: its sessions, and whole runs of its plan. Modes (`--modes`):
blocking sends a prompt when it is whole; resend and incremental are the transports of what is appended before that,
one whenever none is under way; on_prefill and on_decode are incremental with what little is left at the commit always
computed there; paying is incremental with appends that are worth what they cost, in runs.

Parts (`--part`):

    ttft          the first token after the commit under the loads idle, busy_decode and pressure (see `ttft.py`)
    scaling       the same, idle, for a short and a long prompt
    second_layer  several precursors with random prompts and the successor that reads them (see `layer.py`)
    spliced       the same for each of several lengths of what is spliced (`--sizes`); prompts and head are short
    chain         two agents, the second reads the first
    traffic       first tokens of plain requests beside a pool full of sessions (see `traffic.py`)
    fan_out       siblings asked for at once: their first tokens, and what these wait for (see `fan_out.py`)

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
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import TypeVar, get_args

import msgspec

from experiments.kernel import measured
from experiments.kernel.engine import PairClient, TokenSource, open_pair
from experiments.kernel.folder import Lines
from experiments.kernel.measured import SMALL_TOKENS, StartPair, add_pair_arguments, check_pair_arguments
from experiments.kernel.pair import Pair
from experiments.kernel.statistics import FEW
from experiments.kernel.target import TargetError
from experiments.overlap import fan_out, layer, show, stats, traffic, ttft
from experiments.overlap.loads import Load, LoadParameters
from experiments.overlap.stats import MODES, RUN_MODES, Goal, Sample
from launch import arguments as kinds
from launch.progress import Progress
from shell_router.config import Via
from shell_router.core.plan import ChunkPolicy

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
    "one rank. Of incremental and paying the prefill worker's page counters times the bytes of a page, of the "
    "others SGLang's metric sglang:kv_transfer_total_mb. Null where the metric is not there or did not follow in time, "
    "and where a request of the load was sent meanwhile. second_layer, spliced, chain: less the precursors' prompts; "
    "of resend, what follows the commit is derived (the pages that no probe covered) and the rest went before; of "
    "several runs at once the mean",
    "recomputed_tokens": "of incremental the prefill worker's counter. Of resend derived: tokens of the former request "
    "that `cached_tokens` did not cover; SGLang reports the larger hit of prefill and decode worker, so it is a lower "
    "bound. Blocking sends everything once: 0",
    "steps_s": "second_layer, spliced, chain: what ttft_s is made of; fan_out: the same from when all were asked for. "
    "Each step by what ends it: committed (the plan decided), sent (an append in flight was answered), received (the "
    "request came to the prefill worker), placed (both workers knew where its KV goes), begun and prefilled (its "
    "forward passes), moved (the decode worker saw that it has all KV), admitted (it was in its batch), told (it sent "
    "the first token), read (the router had it). By the workers' own clocks; a step that nobody told of is in the next",
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
        self._until = measured.deadline(arguments)

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
        part = self.arguments.part
        sessions = {*stats.SESSIONS, "paying"} & set(self.arguments.modes)
        wanted = part == "traffic" or (sessions and part != "fan_out")

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
                        if time.monotonic() > self._until:
                            break
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
        chunks=ChunkPolicy(policy="self_clocked", min_tokens=arguments.min_append),
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
    # A hop's budget is that of an idle pair: other runs' work is in no step of this one's.
    goals = layer.goals(samples) if arguments.concurrency == 1 else []
    outcome = _outcome(arguments, samples, layer.VALUES, layer.COMPARED, parameters, goals)
    steps = layer.steps(samples)
    rows = {f"{case}, {mode}": each for case, modes in steps.items() for mode, each in modes.items()}
    return msgspec.structs.replace(
        outcome,
        numbers={"cases": cases, "steps_s": steps, **outcome.numbers},
        tables=(*outcome.tables, show.format_steps(rows)),
    )


def run_traffic(setup: Setup) -> Outcome:
    arguments = setup.arguments
    parameters = traffic.TrafficParameters(
        requests=arguments.requests,
        at_once=arguments.at_once,
        load=arguments.load,
        session=arguments.session_tokens,
        fill=arguments.fill,
        writers=arguments.writers,
        append=arguments.append,
        repetitions=arguments.repetitions,
        seed=arguments.seed,
    )
    benches: list[traffic.TrafficBench] = []

    def run(client: PairClient) -> AsyncGenerator[traffic.TrafficSample]:
        benches.append(traffic.TrafficBench(client, setup.tokens, parameters))
        return benches[-1].run()

    with setup.progress(2) as progress:
        samples, client = setup.take(progress, run, traffic.describe)
    capacity = benches[-1].capacity
    return Outcome(
        numbers={**traffic.result(samples), "pool_tokens": client.pool_tokens, "requests_per_second": capacity},
        parameters=parameters,
        goals=traffic.goals(samples),
        failed=sum(sample.failed for sample in samples),
        repetitions={"samples": samples},
    )


def run_fan_out(setup: Setup) -> Outcome:
    """Siblings at once, in each way that requests may go."""
    arguments = setup.arguments
    parameters = fan_out.FanOutParameters(
        siblings=tuple(arguments.siblings),
        prompt=arguments.sibling_prompt,
        head=arguments.sibling_head,
        answer=arguments.sibling_answer,
        ways=tuple(arguments.ways),
        repetitions=arguments.repetitions,
        seed=arguments.seed,
    )
    with setup.progress(len(parameters.siblings) * len(parameters.ways)) as progress:
        samples, _ = setup.take(
            progress, lambda client: fan_out.FanOutBench(client, setup.tokens, parameters).run(), fan_out.describe
        )
    return Outcome(
        numbers={"ways": fan_out.result(samples)},
        parameters=parameters,
        goals=fan_out.goals(samples),
        failed=sum(sample.error is not None for sample in samples),
        tables=fan_out.tables(samples),
        repetitions={"samples": samples},
    )


PARTS: dict[str, Callable[[Setup], Outcome]] = {
    "ttft": run_written,
    "scaling": run_written,
    **dict.fromkeys(LAYER_PARTS, run_layer),
    "traffic": run_traffic,
    "fan_out": run_fan_out,
}


def main(argv: Sequence[str]) -> int:
    """Measure one part; answers the exit code. Raises `GraftError` for what ends it."""
    return measure(parse(argv))


def measure(arguments: argparse.Namespace) -> int:
    """Measure the part that `arguments` (of `parse`) name, and tell; answers 0, or 1 when a sample failed."""
    name = f"overlap-{arguments.part}"
    return measured.measure(arguments, name, msgspec.Struct, partial(_take, arguments), arguments.pressure_tokens)


def _take(arguments: argparse.Namespace, start: StartPair, samples: Lines[msgspec.Struct]) -> measured.Outcome:
    outcome = PARTS[arguments.part](Setup(arguments, start, samples))
    tables = [*outcome.tables, *([show.format_goals(outcome.goals)] if outcome.goals else [])]
    if outcome.tables and arguments.repetitions < FEW:
        tables.append(f"Of fewer than {FEW} repetitions intervals are too narrow: take them for ranges.")
    return measured.Outcome(
        numbers={"part": arguments.part, **outcome.numbers, "goals": outcome.goals},
        parameters=outcome.parameters,
        failed=outcome.failed,
        tables=tuple(tables),
        more={"definitions": DEFINITIONS, "repetitions": outcome.repetitions},
    )


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
        blocks.append(show.format_results(case, {mode: failed[mode] for mode in RUN_MODES if mode in failed}, tables))
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
    check_pair_arguments(parser, arguments)
    for mode in stats.REST:
        if mode in arguments.modes and arguments.part not in ("ttft", "scaling"):
            parser.error(f"--modes: {mode} is of the parts ttft, scaling")
    if "paying" in arguments.modes and arguments.part not in LAYER_PARTS:
        parser.error(f"--modes: paying is of the parts {', '.join(LAYER_PARTS)}")
    if arguments.prompt <= arguments.tail:
        parser.error("--prompt must be longer than --tail")
    if arguments.sibling_prompt <= arguments.sibling_head:
        parser.error("--sibling-prompt must be longer than --sibling-head")
    if arguments.input_range is None:
        arguments.input_range = (SHORT_INPUT, SHORT_INPUT) if arguments.part == "spliced" else (1, 2048)
    lowest, highest = arguments.input_range
    if not 1 <= lowest <= highest:
        parser.error("--input-range must be two lengths, the smaller one first, and no less than 1")
    if arguments.part == "spliced" and min(arguments.sizes) < arguments.precursors:
        parser.error("--sizes must leave a token to each of --precursors")
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = kinds.Parser(prog="graft bench overlap", description="Compare blocking, resend and incremental prefill.")
    parser.add_argument("--part", choices=tuple(PARTS), default="ttft", help="what is measured (default: ttft)")
    where = add_pair_arguments(parser)
    where.add_argument(
        "--pressure-tokens", type=kinds.count, default=SMALL_TOKENS, help="KV pools under the load pressure"
    )
    what = parser.add_argument_group("what")
    what.add_argument(
        "--modes",
        nargs="+",
        choices=RUN_MODES,
        default=list(MODES),
        help="which are compared (default: blocking, resend, incremental)",
    )
    what.add_argument("--repetitions", type=kinds.count, default=5, help="after one warm-up")
    what.add_argument("--seed", type=int, default=0, help="of lengths and orders; tokens are always new")
    prompts = parser.add_argument_group("ttft and scaling, tokens")
    prompts.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS), help="of ttft (default: all)")
    prompts.add_argument("--prompt", type=kinds.count, default=1024, help="whole length")
    prompts.add_argument("--long-prompt", type=kinds.count, default=4096, help="of scaling")
    prompts.add_argument("--chunk", type=kinds.count, default=64, help="of one append")
    prompts.add_argument("--tail", type=kinds.count, default=32, help="what comes with the commit")
    prompts.add_argument("--busy-requests", type=kinds.count, default=4, help="of the load busy_decode")
    prompts.add_argument("--busy-tokens", type=kinds.count, default=1500, help="answer of each busy request")
    layers = parser.add_argument_group(f"{', '.join(LAYER_PARTS)}, tokens")
    layers.add_argument("--precursors", type=kinds.count, default=3, help="of second_layer and spliced")
    layers.add_argument("--concurrency", type=kinds.count, default=1, help="layers that run at once")
    layers.add_argument(
        "--input-range",
        type=int,
        nargs=2,
        help=f"prompts and head, uniform (default: 1 2048; of spliced {SHORT_INPUT} {SHORT_INPUT})",
    )
    layers.add_argument("--precursor-answer", type=kinds.count, default=64, help="of second_layer and chain")
    layers.add_argument(
        "--sizes",
        type=kinds.several(kinds.count, "tokens"),
        default=[256, 1024],
        help="of spliced: all answers together (256,1024)",
    )
    layers.add_argument("--min-append", type=kinds.count, default=1, help="fewest tokens of an append (a page)")
    layers.add_argument("--answer", type=kinds.count, default=16, help="of the successor")
    fan = parser.add_argument_group("fan_out, tokens")
    fan.add_argument(
        "--siblings",
        type=kinds.several(kinds.count, "tokens"),
        default=[1, 3, 9, 27],
        help="how many at once (1,3,9,27)",
    )
    fan.add_argument("--sibling-prompt", type=kinds.count, default=88, help="of each sibling")
    fan.add_argument("--sibling-head", type=kinds.index, default=64, help="of it, what all have in common")
    fan.add_argument("--sibling-answer", type=kinds.count, default=48, help="of each sibling")
    fan.add_argument(
        "--ways", nargs="+", choices=get_args(Via), default=["direct"], help="how requests go (default: direct)"
    )
    plain = parser.add_argument_group("traffic")
    plain.add_argument("--requests", type=kinds.count, default=50, help="plain requests in each half of a repetition")
    plain.add_argument("--at-once", type=kinds.count, default=2, help="plain requests at a time")
    plain.add_argument(
        "--load", type=kinds.share, help="share of the capacity, which is measured, at which they arrive"
    )
    plain.add_argument("--writers", type=kinds.index, default=0, help="sessions that are written meanwhile")
    plain.add_argument("--append", type=kinds.count, default=64, help="tokens of each of their appends")
    plain.add_argument("--session-tokens", type=kinds.count, default=512, help="of each session")
    plain.add_argument("--fill", type=kinds.share, default=0.9, help="share of the pool that sessions come to")
    return parser
