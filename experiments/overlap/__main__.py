"""`python -m experiments.overlap`: blocking, resend and incremental prefill against each other, on one pair of workers.

Parts (`--part`):

    ttft          the first token after the commit under the loads idle, busy_decode and pressure (see `ttft.py`)
    scaling       the same, idle, for a short and a long prompt
    second_layer  several precursors and the successor that reads them (see `layer.py`)
    chain         two agents, the second reads the first
    traffic       first tokens of plain requests beside a pool full of sessions (see `traffic.py`)

What is measured and what is derived:

* times are the client's own clock; the first token is the first event with output ids;
* `append_s`: until the prefill worker's answer; of resend until the end of the probe request; blocking has none;
* bytes moved: of incremental the prefill worker's page counters times the bytes of a page (on one rank), of the other
  modes SGLang's metric `sglang:kv_transfer_total_mb` on the prefill worker. Null where the metric is not there or did
  not follow in time, and where a request of the load was sent during the sample;
* `recomputed_tokens`: of incremental the prefill worker's counter. Of resend derived: tokens of the former request that
  `cached_tokens` did not cover. SGLang reports the larger hit of prefill and decode worker, so it is a lower bound.
  Blocking sends everything once: 0 by definition;
* `hidden_prefill_fraction`: of incremental, tokens held after the last append less those that had to be computed again
  after it; of resend, `cached_tokens` of the committed request; by the length of the prompt.

Modes are taken in a drawn order within each repetition, each with tokens of its own. Repetitions below 0 are warm-ups
and in no number. Ratios are medians of the repetitions' own. Tables go to stdout, whose last line is one JSON document;
samples are kept in `runs/<name>/samples.json`.

Exit codes: 0 no sample failed (goals may be missed), 1 a sample or the cluster failed, 2 wrong cfg or command line.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from experiments.client import ClientError
from experiments.environment import describe_environment
from experiments.overlap import layer, show, stats, traffic, ttft
from experiments.overlap.client import EngineClient, Facts, Pair
from experiments.overlap.loads import Load, LoadParameters, TokenSource
from experiments.overlap.prompts import MODES
from experiments.overlap.stats import Goal, Sample
from experiments.overlap.target import StartPair, cluster_pair, running_pair
from experiments.target import TargetError
from shell_router.config import ConfigError

EXIT_FAILED = 1
EXIT_USAGE = 2
CLUSTER = Path(__file__).resolve().parents[2] / "cfgs" / "cluster" / "cpu_smollm2.json"
LOADS: tuple[Load, ...] = ("idle", "busy_decode", "pressure")


T = TypeVar("T")
Work = Callable[[EngineClient, Facts], Coroutine[Any, Any, T]]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a part came to."""

    numbers: dict[str, object]
    parameters: msgspec.Struct
    samples: Sequence[msgspec.Struct]
    goals: list[Goal] = []
    failed: int
    tables: tuple[str, ...] = ()


Part = Callable[[argparse.Namespace, StartPair, TokenSource], Outcome]


def run_ttft(arguments: argparse.Namespace, start: StartPair, tokens: TokenSource) -> Outcome:
    """All loads; `pressure` has a pair of its own, with small pools."""
    parameters = _ttft_parameters(arguments)
    samples: list[Sample] = []
    goals: list[Goal] = []
    for small in (False, True):
        loads = [load for load in arguments.loads if (load == "pressure") is small]
        if not loads:
            continue

        async def work(client: EngineClient, facts: Facts, loads: Sequence[Load] = loads) -> None:
            bench = ttft.Bench(client, facts, tokens, parameters)
            for load in loads:
                await bench.run(load, [parameters.prompt], cases=[load])
            samples.extend(bench.samples)
            if "incremental" in parameters.modes:
                goals.extend(ttft.goals(bench.samples, parameters, facts))

        with start(small) as pair:
            _measure(pair, arguments.timeout, arguments.modes, work)
    return _outcome(samples, ttft.result(samples), parameters, goals)


def run_scaling(arguments: argparse.Namespace, start: StartPair, tokens: TokenSource) -> Outcome:
    """A short and a long prompt, idle, in one shuffled order."""
    parameters = _ttft_parameters(arguments)
    lengths = [arguments.prompt, arguments.long_prompt]
    cases = [f"{length} tokens" for length in lengths]

    async def work(client: EngineClient, facts: Facts) -> list[Sample]:
        bench = ttft.Bench(client, facts, tokens, parameters)
        await bench.run("idle", lengths, cases=cases)
        return bench.samples

    with start(False) as pair:
        samples = _measure(pair, arguments.timeout, arguments.modes, work)
    goals = ttft.scaling_goals(samples, *cases) if "incremental" in parameters.modes else []
    return _outcome(samples, ttft.result(samples), parameters, goals)


def run_second_layer(arguments: argparse.Namespace, start: StartPair, tokens: TokenSource) -> Outcome:
    return _run_layer(arguments, start, tokens, arguments.precursors, "second_layer")


def run_chain(arguments: argparse.Namespace, start: StartPair, tokens: TokenSource) -> Outcome:
    return _run_layer(arguments, start, tokens, 1, "chain")


def run_traffic(arguments: argparse.Namespace, start: StartPair, tokens: TokenSource) -> Outcome:
    parameters = traffic.TrafficParameters(
        requests=arguments.requests,
        at_once=arguments.at_once,
        session=arguments.session_tokens,
        fill=arguments.fill,
        repetitions=arguments.repetitions,
        seed=arguments.seed,
    )

    async def work(client: EngineClient, facts: Facts) -> tuple[list[traffic.TrafficSample], int]:
        bench = traffic.TrafficBench(client, facts, tokens, parameters)
        await bench.run()
        return bench.samples, facts.pool_tokens

    with start(False) as pair:
        samples, pool_tokens = _measure(pair, arguments.timeout, ["incremental"], work)
    return Outcome(
        numbers={**traffic.result(samples), "pool_tokens": pool_tokens},
        parameters=parameters,
        samples=samples,
        goals=traffic.goals(samples),
        failed=sum(sample.failed for sample in samples),
    )


PARTS: dict[str, Part] = {
    "ttft": run_ttft,
    "scaling": run_scaling,
    "second_layer": run_second_layer,
    "chain": run_chain,
    "traffic": run_traffic,
}


def main(argv: list[str] | None = None) -> int:
    """Run one part; answers the exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    urls = (arguments.router_url, arguments.prefill_url, arguments.decode_url)
    if any(urls) and not all(urls):
        parser.error("--router-url, --prefill-url and --decode-url go together")
    if arguments.prompt <= arguments.tail:
        parser.error("--prompt must be longer than --tail")
    try:
        return _main(arguments, Pair(router=urls[0], prefill=urls[1], decode=urls[2]) if all(urls) else None)
    except ConfigError as error:
        print(f"overlap: {error}", file=sys.stderr)
        return EXIT_USAGE
    except (TargetError, ClientError) as error:
        print(f"overlap: {error}", file=sys.stderr)
        return EXIT_FAILED


def _main(arguments: argparse.Namespace, pair: Pair | None) -> int:
    now = datetime.datetime.now(datetime.UTC)
    folder = arguments.runs_dir / f"overlap-{arguments.part}-{now:%Y%m%dT%H%M%SZ}"
    start = running_pair(pair) if pair else cluster_pair(arguments.cluster, folder, arguments.pressure_tokens)
    tokens = TokenSource(arguments.seed, *arguments.token_range)
    outcome = PARTS[arguments.part](arguments, start, tokens)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "samples.json"
    file.write_bytes(msgspec.json.format(msgspec.json.encode(outcome.samples), indent=1))
    print("\n\n".join([*outcome.tables, *([show.format_goals(outcome.goals)] if outcome.goals else [])]))
    print(f"\nsamples  {file}\n", flush=True)
    document = {
        "part": arguments.part,
        **outcome.numbers,
        "goals": outcome.goals,
        "failed": outcome.failed,
        "parameters": outcome.parameters,
        "cluster": None if pair else str(arguments.cluster),
        "samples": str(file),
        "environment": describe_environment(),
    }
    print(msgspec.json.encode(document).decode(), flush=True)
    return EXIT_FAILED if outcome.failed else 0


def _run_layer(
    arguments: argparse.Namespace, start: StartPair, tokens: TokenSource, precursors: int, case: str
) -> Outcome:
    parameters = layer.LayerParameters(
        precursors=precursors,
        input_range=tuple(arguments.input_range),
        precursor_answer=arguments.precursor_answer,
        answer=arguments.answer,
        modes=tuple(arguments.modes),
        repetitions=arguments.repetitions,
        seed=arguments.seed,
    )

    async def work(client: EngineClient, facts: Facts) -> list[Sample]:
        bench = layer.LayerBench(client, facts, tokens, parameters, case)
        await bench.run()
        return bench.samples

    with start(False) as pair:
        samples = _measure(pair, arguments.timeout, arguments.modes, work)
    return _outcome(samples, layer.result(samples), parameters, [])


def _measure(pair: Pair, timeout_s: float, modes: Sequence[str], work: Work[T]) -> T:
    """Do `work` on the pair. Raises `TargetError` when sessions are wanted and the prefill worker has none."""

    async def run() -> T:
        async with EngineClient(pair, timeout_s=timeout_s) as client:
            facts = await client.facts()
            if "incremental" in modes and facts.sessions is None:
                raise TargetError(f"{pair.prefill} offers no incremental sessions: {facts.refusal}")
            return await work(client, facts)

    return asyncio.run(run())


def _ttft_parameters(arguments: argparse.Namespace) -> ttft.TtftParameters:
    return ttft.TtftParameters(
        prompt=arguments.prompt,
        chunk=arguments.chunk,
        tail=arguments.tail,
        modes=tuple(arguments.modes),
        repetitions=arguments.repetitions,
        seed=arguments.seed,
        loads=LoadParameters(busy_requests=arguments.busy_requests, busy_tokens=arguments.busy_tokens),
    )


def _outcome(
    samples: Sequence[Sample], numbers: dict[str, Any], parameters: msgspec.Struct, goals: list[Goal]
) -> Outcome:
    failures = stats.failures(samples)
    shown = {name: table for name, table in numbers.items() if name != "ratio_to_blocking"}
    return Outcome(
        numbers={
            **numbers,
            "failures": failures,
            "errors": list(dict.fromkeys(sample.error for sample in samples if sample.error is not None)),
        },
        parameters=parameters,
        samples=samples,
        goals=goals,
        failed=sum(count for modes in failures.values() for count in modes.values()),
        tables=tuple(show.format_results(case, failed, shown) for case, failed in failures.items()),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.overlap", description="Compare blocking, resend and incremental prefill."
    )
    parser.add_argument("--part", choices=tuple(PARTS), default="ttft")
    where = parser.add_argument_group("where")
    where.add_argument("--cluster", type=Path, default=CLUSTER, help="cluster JSON to start (default: %(default)s)")
    where.add_argument("--pressure-tokens", type=int, default=3200, help="KV pools under the load pressure")
    where.add_argument("--router-url", help="use a running sglang-router in place of starting a cluster")
    where.add_argument("--prefill-url", help="with --router-url: its prefill worker")
    where.add_argument("--decode-url", help="with --router-url: its decode worker")
    where.add_argument("--runs-dir", type=Path, default=Path("runs"))
    where.add_argument("--timeout", type=float, default=600.0, help="longest a request may take, seconds")
    what = parser.add_argument_group("what")
    what.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    what.add_argument("--repetitions", type=int, default=5, help="after one warm-up")
    what.add_argument("--seed", type=int, default=0)
    what.add_argument("--token-range", type=int, nargs=2, default=(1000, 40000), help="of random token ids")
    prompts = parser.add_argument_group("ttft and scaling, tokens")
    prompts.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS))
    prompts.add_argument("--prompt", type=int, default=1024)
    prompts.add_argument("--long-prompt", type=int, default=4096, help="of scaling")
    prompts.add_argument("--chunk", type=int, default=64, help="of one append")
    prompts.add_argument("--tail", type=int, default=32, help="what comes with the commit")
    prompts.add_argument("--busy-requests", type=int, default=4)
    prompts.add_argument("--busy-tokens", type=int, default=1500, help="answer of each busy request")
    layers = parser.add_argument_group("second_layer and chain, tokens")
    layers.add_argument("--precursors", type=int, default=3, help="of second_layer")
    layers.add_argument("--input-range", type=int, nargs=2, default=(1, 1024), help="prompts and head, uniform")
    layers.add_argument("--precursor-answer", type=int, default=64)
    layers.add_argument("--answer", type=int, default=16, help="of the successor")
    plain = parser.add_argument_group("traffic")
    plain.add_argument("--requests", type=int, default=50, help="plain requests in each half of a repetition")
    plain.add_argument("--at-once", type=int, default=2)
    plain.add_argument("--session-tokens", type=int, default=512)
    plain.add_argument("--fill", type=float, default=0.9, help="share of the pool that sessions come to")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
