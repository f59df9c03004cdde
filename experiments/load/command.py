"""`graft bench load`: an open-loop load test of a running router or of a cluster started for it.

Runs arrive by a plan that is made before: a Poisson process (`--rate`), the lines of a file (`--trace`), or rising
rates until a setting no longer holds (`--ramp`). Each is sent at its time whatever became of the others, and its times
count from then: a server that stalls cannot slow down those who would have measured it. Settings (`--setting`) take
turns block by block, in a drawn order, with the same arrivals, questions and seeds.

What the numbers mean is in the result's `definitions` and in docs/load.md. Progress goes to stderr, tables to stdout,
whose last line is one JSON document. Each block is kept in `runs/<name>/blocks.jsonl` as it ends; `--resume` goes on.

Exit codes: 0 measured, all blocks valid (runs that fail are numbers), 1 the cluster failed or a block is invalid,
2 wrong cfg or command line, 130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from experiments.kernel.command import EXIT_FAILED, EXIT_INTERRUPTED
from experiments.kernel.engine import TokenSource, open_pair
from experiments.kernel.environment import describe_environment
from experiments.kernel.folder import Session, write_document
from experiments.kernel.pair import Pair
from experiments.kernel.target import (
    Start,
    Target,
    TargetError,
    check_one_pair,
    check_trees,
    cluster_target,
    running_target,
    served_trees,
)
from experiments.load.bench import Bench, read_bench
from experiments.load.client import LoadClient
from experiments.load.config import (
    FillParameters,
    LoadConfig,
    load_trace,
    parse_ramp,
    parse_setting,
    trace_duration,
)
from experiments.load.fill import Fill
from experiments.load.folder import LoadFolder
from experiments.load.report import Report, make_report
from experiments.load.show import format_report
from launch import arguments as kinds
from launch import shipped
from launch.config import load_cluster
from shell_router.client import AsyncClient
from shell_router.client.key import KEY_VARIABLE, client_key
from shell_router.config import ConfigError

DURATION_S = 60.0
SETTINGS = ('blocking={"mode":"blocking"}', 'spliced={"mode":"spliced"}')


def main(argv: list[str]) -> int:
    """Run a load test as the command line says; answers the exit code."""
    arguments = _parser().parse_args(argv)
    key = client_key()
    folder: LoadFolder | None = None
    if arguments.resume is not None:
        folder = LoadFolder.reopen(arguments.resume, LoadConfig)
        config = folder.config
        bench = asyncio.run(read_bench(config, folder))
        if bench is not None:
            # Nothing is missing but, perhaps, its report.
            return _answer(_finish(folder, bench, interrupted=False))
    else:
        config = make_config(arguments)
    start = _start(config)
    # What is measured is the code as it is now, not as it may be edited meanwhile.
    environment = describe_environment()
    if folder is None:
        now = datetime.datetime.now(datetime.UTC)
        path = arguments.runs_dir / (arguments.name or f"load-{config.tree}-{now:%Y%m%dT%H%M%SZ}")
        folder = LoadFolder.create(path, config)
    elif not arguments.elsewhere:
        folder.check_place(environment)
    logs = folder.path / f"cluster-{len(folder.blocks)}"
    with start(logs) as target:
        folder.begin(Session(url=target.url, environment=environment, started=time.time()))
        report = _run(config, target, folder, key)
    return _answer(report)


def _answer(report: Report) -> int:
    """The last line, when the cluster has said all it has to say, and the exit code."""
    print(msgspec.json.encode(report).decode(), flush=True)
    if report.interrupted:
        return EXIT_INTERRUPTED
    return 0 if report.ok else EXIT_FAILED


def _run(config: LoadConfig, target: Target, folder: LoadFolder, key: str | None) -> Report:
    if target.flush is None:
        print(
            "load: the workers' caches are not flushed between blocks, so a setting may profit from what another left; "
            "name the workers with --worker-url",
            file=sys.stderr,
        )
    benches: list[Bench] = []
    interrupted = False
    try:
        asyncio.run(_measure(config, target, folder, key, benches))
    except KeyboardInterrupt:
        interrupted = True
        print(f"load: interrupted; go on with --resume {folder.path}", file=sys.stderr)
    return _finish(folder, benches[0] if benches else None, interrupted=interrupted)


def _finish(folder: LoadFolder, bench: Bench | None, *, interrupted: bool) -> Report:
    """Write the report and show its tables. An interrupt after the last block has cost nothing."""
    knees = bench.knees if bench is not None else ()
    report = make_report(folder, knees, interrupted=interrupted and not (bench is not None and bench.finished))
    write_document(folder.report_file, report)
    print(f"{format_report(report)}\n\nreport  {folder.report_file}\nblocks  {folder.blocks_file}\n", flush=True)
    return report


async def _measure(
    config: LoadConfig, target: Target, folder: LoadFolder, key: str | None, benches: list[Bench]
) -> None:
    """`benches` gets the bench as soon as there is one, so that an interrupt does not take it along."""
    async with contextlib.AsyncExitStack() as stack:
        router = await stack.enter_async_context(
            AsyncClient(target.url, api_key=key, run_timeout_s=config.run_timeout_s)
        )
        check_trees(config.trees, await served_trees(router))
        client = LoadClient(router)
        fill = None
        if config.fill is not None:
            pair = config.pair or target.pair
            if pair is None:
                raise TargetError("the workers whose pools are to be filled cannot be found")
            engine = await stack.enter_async_context(open_pair(pair, timeout_s=config.run_timeout_s))
            tokens = TokenSource(*config.fill.token_range)

            @contextlib.asynccontextmanager
            async def fill(parameters: FillParameters = config.fill) -> AsyncIterator[Fill]:
                async with Fill(engine, tokens, parameters) as filling:
                    yield filling

        bench = Bench(config, client, folder, flush=target.flush, fill=fill)
        benches.append(bench)
        await bench.run()


def make_config(arguments: argparse.Namespace) -> LoadConfig:
    """What the command line asks for. Raises `ConfigError`."""
    settings = tuple(map(parse_setting, arguments.setting or SETTINGS))
    trace = load_trace(arguments.trace) if arguments.trace else ()
    duration = arguments.duration
    if duration is None:
        duration = trace_duration(trace, arguments.warmup) if trace else DURATION_S
    ramp = None
    if arguments.ramp:
        ramp = parse_ramp(
            arguments.ramp, refine=arguments.refine, goodput=arguments.hold_goodput, growth=arguments.hold_p99
        )
    engines = (arguments.engine_url, arguments.prefill_url, arguments.decode_url)
    if any(engines) and not (all(engines) and arguments.url):
        raise ConfigError("--engine-url, --prefill-url and --decode-url go together, and with --url")
    if arguments.fill is not None and arguments.url and not all(engines):
        raise ConfigError("--fill with --url needs --engine-url, --prefill-url and --decode-url")
    if arguments.worker_url and not arguments.url:
        raise ConfigError("--worker-url goes with --url")
    document = {
        "cluster": str(arguments.cluster.resolve()) if arguments.cluster else None,
        "url": arguments.url,
        "worker_urls": arguments.worker_url,
        "pair": Pair(router=engines[0], prefill=engines[1], decode=engines[2]) if all(engines) else None,
        "tree": arguments.tree,
        "settings": settings,
        "rate": arguments.rate,
        "trace": trace,
        "ramp": ramp,
        "blocks": arguments.blocks if arguments.blocks is not None else 1 if ramp else 3,
        "duration_s": duration,
        "warmup_s": arguments.warmup,
        "deadline_s": arguments.deadline,
        "run_timeout_s": arguments.run_timeout,
        "max_outstanding": arguments.max_outstanding,
        "max_lateness_s": arguments.max_lateness,
        "fill": _fill_parameters(arguments),
        "seed": arguments.seed,
    }
    try:
        # Through plain objects: only then are all bounds checked.
        return msgspec.convert(msgspec.to_builtins(document), LoadConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error)) from error


def _fill_parameters(arguments: argparse.Namespace) -> dict[str, object] | None:
    if arguments.fill is None:
        return None
    return {
        "share": arguments.fill,
        "prompt": arguments.fill_prompt,
        "answer": arguments.fill_answer,
        "token_range": arguments.token_range,
    }


def _start(config: LoadConfig) -> Start:
    """Check the target; it is not started yet. Raises `ConfigError`."""
    if config.url is not None:
        return running_target(config.url, config.worker_urls)
    assert config.cluster is not None
    if config.fill is not None:
        check_one_pair(load_cluster(Path(config.cluster)), Path(config.cluster))
    return cluster_target(Path(config.cluster), config.trees)


def _parser() -> argparse.ArgumentParser:
    parser = kinds.Parser(
        prog="graft bench load",
        description="Load a running router, or a cluster started for it, with runs that arrive by a plan: open loop.",
        epilog=f"A shell router that wants an API key is sent that of the environment variable {KEY_VARIABLE}.",
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--cluster", type=shipped.cluster, help="what to start: a cluster JSON, or the name of a shipped one"
    )
    where.add_argument("--url", type=kinds.url, help="base URL of a running shell router")
    where.add_argument("--resume", type=Path, metavar="FOLDER", help="go on with a test, as it was begun")
    parser.add_argument(
        "--elsewhere", action="store_true", help="with --resume: on another machine, or with other software or code"
    )
    when = parser.add_mutually_exclusive_group()
    when.add_argument("--rate", type=kinds.rate, help="runs per second, Poisson")
    when.add_argument("--trace", type=Path, help='file of JSON lines {"at": seconds, "tree": ..., "question": ...}')
    when.add_argument("--ramp", metavar="FROM:TO:STEP", help="runs per second; finds the knee of each setting")
    what = parser.add_argument_group("what")
    what.add_argument("--tree", type=kinds.words, default="tree_3_1", help="which is asked (default: tree_3_1)")
    what.add_argument(
        "--setting", action="append", metavar="NAME=JSON", help=f"the request's `graft`; default: {' '.join(SETTINGS)}"
    )
    what.add_argument("--blocks", type=kinds.count, help="of each setting (default 3; in a ramp 1, at each rate)")
    what.add_argument(
        "--duration", type=kinds.seconds, help="measured seconds of a block (default 60; of a trace: all)"
    )
    what.add_argument("--warmup", type=float, default=10.0, help="seconds before these, in no number (default: 10)")
    what.add_argument("--deadline", type=kinds.seconds, default=30.0, help="for goodput, seconds (default: 30)")
    what.add_argument("--seed", type=kinds.index, default=0, help="of arrivals, questions and orders (default: 0)")
    bounds = parser.add_argument_group("bounds")
    bounds.add_argument("--run-timeout", type=kinds.seconds, default=600.0, help="longest a run may take, seconds")
    bounds.add_argument(
        "--max-outstanding", type=kinds.count, default=512, help="runs at a time; beyond it none is sent"
    )
    bounds.add_argument("--max-lateness", type=kinds.seconds, default=0.05, help="of the generator, p99, seconds")
    ramp = parser.add_argument_group("ramp")
    ramp.add_argument("--hold-goodput", type=kinds.share, default=0.9, help="smallest share (default: 0.9)")
    ramp.add_argument("--hold-p99", type=kinds.rate, default=5.0, help="largest p99, times that at FROM (default: 5)")
    ramp.add_argument("--refine", type=kinds.index, default=3, help="bisections at the end (default: 3)")
    fill = parser.add_argument_group("memory pressure")
    fill.add_argument("--fill", type=kinds.share, metavar="SHARE", help="of the KV pool that foreign requests occupy")
    fill.add_argument("--fill-prompt", type=kinds.count, default=2048, help="tokens of each")
    fill.add_argument("--fill-answer", type=kinds.count, default=256, help="tokens of each answer")
    fill.add_argument(
        "--token-range",
        type=kinds.index,
        nargs=2,
        metavar=("FIRST", "LAST"),
        default=(1000, 40000),
        help="of their random token ids",
    )
    running = parser.add_argument_group("with --url")
    running.add_argument(
        "--worker-url", type=kinds.url, action="append", default=[], help="worker to flush before each block; repeat"
    )
    running.add_argument("--engine-url", type=kinds.url, help="for --fill: the sglang-router")
    running.add_argument("--prefill-url", type=kinds.url, help="for --fill: the prefill worker behind it")
    running.add_argument("--decode-url", type=kinds.url, help="for --fill: the decode worker behind it")
    out = parser.add_argument_group("results")
    out.add_argument("--name", type=kinds.words, help="name of the folder (default: the tree and the UTC time)")
    out.add_argument("--runs-dir", type=Path, default=Path("runs"), help="where folders go (default: runs)")
    return parser
