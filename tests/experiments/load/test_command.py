"""The load test at work: on a simulated server in virtual time, and from its command line to its folder over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import selectors
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from aiohttp import web

from experiments.kernel.engine import OnTokens, Pool, TokenSource
from experiments.kernel.target import TargetError
from experiments.load.arrivals import Arrival, make_arrivals
from experiments.load.bench import Bench
from experiments.load.block import values
from experiments.load.client import LoadClient
from experiments.load.config import FillParameters, LoadConfig, Ramp, Setting
from experiments.load.fill import Fill
from experiments.load.folder import LoadFolder
from experiments.load.generator import OpenLoop, Outcome, Sample
from experiments.load.report import make_report
from experiments.load.show import format_report
from graft.cli import FAILED, INTERRUPTED, WRONG
from shell_router.client import AsyncClient, ClientError
from shell_router.errors import EngineError
from tests.commands import command
from tests.experiments.load.test_numbers import SPLICED, config
from tests.experiments.moved import move
from tests.fakes.shell_router import Ask, FakeRouter, Reply

main = command("bench", "load")


T = TypeVar("T")


class Skipping(selectors.DefaultSelector):
    """Nothing is waited for: the time that a wait would take is skipped."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout:
            self.now += timeout
        return ready


def in_virtual_time(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` on an event loop whose clock goes only while nothing else is to do."""
    selector = Skipping()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(work)


class Server:
    """`places` runs at a time take `service_s` each; others wait, `queue` of them at most. Virtual time."""

    def __init__(self, service_s: dict[str, float], places: int = 1, queue: int = 10**6) -> None:
        self._service_s = service_s
        self._places = asyncio.Semaphore(places)
        self._most = places + queue
        self._inside = 0
        self.asked: list[tuple[str, float, str]] = []

    async def ask(self, arrival: Arrival, setting: Setting) -> Outcome:
        loop = asyncio.get_running_loop()
        self.asked.append((setting.name, loop.time(), arrival.question))
        if self._inside >= self._most:
            return Outcome(state="refused", reason="HTTP 429", ended=loop.time())
        self._inside += 1
        try:
            async with self._places:
                opened = loop.time()
                await asyncio.sleep(self._service_s[setting.name])
        finally:
            self._inside -= 1
        return Outcome(state="done", opened=opened, first=opened, ended=loop.time(), output_tokens=10)

    async def queued(self) -> tuple[float, float] | None:
        return None

    async def check(self) -> None:
        pass


def play(server: Server, arrivals: Sequence[Arrival], most: int = 1000) -> tuple[Sample, ...]:
    async def ask(arrival: Arrival) -> Outcome:
        return await server.ask(arrival, SPLICED)

    return in_virtual_time(OpenLoop(arrivals, ask, max_outstanding=most).run())


def every(gap: float, count: int) -> list[Arrival]:
    return [Arrival(at=n * gap, tree="tree_3_1", question=f"q{n}", seed=n) for n in range(count)]


def test_arrivals_follow_the_plan_however_slow_the_answers_are() -> None:
    arrivals = make_arrivals(config(), 5.0, 0)
    server = Server({"spliced": 100.0}, places=1000)
    samples = play(server, arrivals)
    first = server.asked[0][1] - arrivals[0].at
    assert [at - first for _, at, _ in server.asked] == pytest.approx([arrival.at for arrival in arrivals])
    assert [s.latency_s for s in samples] == pytest.approx([100.0] * len(arrivals))
    assert max(s.lateness_s or 0.0 for s in samples) < 1e-6


def test_times_count_from_the_scheduled_time() -> None:
    """One place and runs of 1 s that arrive every half second: each waits half a second more than the one before."""
    samples = play(Server({"spliced": 1.0}), every(0.5, 20))
    assert [s.queue_s for s in samples] == pytest.approx([n * 0.5 for n in range(20)])
    assert [s.latency_s for s in samples] == pytest.approx([1.0 + n * 0.5 for n in range(20)])


def test_a_generator_that_stands_still_is_late_and_the_runs_do_not_profit() -> None:
    async def ask(arrival: Arrival) -> Outcome:
        loop = asyncio.get_running_loop()
        if arrival.at == 0.0:
            # What a busy process does: the clock goes on and nothing happens.
            loop._selector.now += 3.0  # type: ignore[attr-defined]
        return Outcome(state="done", ended=loop.time())

    samples = in_virtual_time(OpenLoop(every(1.0, 6), ask, max_outstanding=10).run())
    assert [s.lateness_s for s in samples] == pytest.approx([0.0, 2.0, 1.0, 0.0, 0.0, 0.0], abs=1e-6)
    assert [s.latency_s for s in samples[1:3]] == pytest.approx([2.0, 1.0])


def test_beyond_the_bound_nothing_is_sent_and_all_is_counted() -> None:
    server = Server({"spliced": 100.0}, places=1000)
    samples = play(server, every(0.1, 10), most=3)
    assert Counter(s.state for s in samples) == {"done": 3, "unsent": 7}
    assert len(server.asked) == 3


def begin(tmp_path: Path, wanted: LoadConfig) -> LoadFolder:
    return LoadFolder.create(tmp_path / "load", wanted)


def test_settings_take_turns_with_the_same_arrivals(tmp_path: Path) -> None:
    wanted = config(blocks=4)
    folder = begin(tmp_path, wanted)
    flushes: list[int] = []

    async def flush() -> None:
        flushes.append(len(folder.blocks))

    async def work() -> Server:
        server = Server({"blocking": 0.2, "spliced": 0.1}, places=50)
        await Bench(wanted, server, folder, flush=flush).run()
        return server

    server = in_virtual_time(work())
    assert flushes == list(range(8))
    order = [key.setting for key in folder.blocks]
    assert all(sorted(order[n : n + 2]) == ["blocking", "spliced"] for n in range(0, 8, 2))
    assert len({tuple(order[n : n + 2]) for n in range(0, 8, 2)}) == 2, "the order is drawn"
    asked = {name: [q for who, _, q in server.asked if who == name] for name in ("blocking", "spliced")}
    assert asked["blocking"] == asked["spliced"]
    report = make_report(folder, (), interrupted=False)
    assert report.ok
    ratio = report.comparisons[0].ratios["latency_s_p50"]
    assert ratio is not None
    assert ratio.value == pytest.approx(0.5)
    assert ratio.n == 4
    assert "end to end p99.9, s" in format_report(report)


def test_refused_runs_are_part_of_the_offered_load(tmp_path: Path) -> None:
    wanted = config(rate=4.0, blocks=1, duration_s=50.0)
    folder = begin(tmp_path, wanted)

    async def work() -> None:
        await Bench(wanted, Server({"blocking": 1.0, "spliced": 0.01}, queue=1), folder).run()

    in_virtual_time(work())
    blocking, spliced = make_report(folder, (), interrupted=False).settings
    counts = blocking.counts
    assert counts.refused > 50
    assert counts.offered == counts.done + counts.refused == spliced.counts.offered == spliced.counts.done
    block = next(block for key, block in folder.blocks.items() if key.setting == "blocking")
    numbers = values(block, wanted)
    assert numbers["latency_s_p99"] is None
    assert numbers["goodput_share"] is not None
    assert numbers["goodput_share"] < 0.3
    assert numbers["trees_per_s"] == pytest.approx(1.0, abs=0.1)


def test_the_ramp_finds_the_knee_of_each_setting(tmp_path: Path) -> None:
    """One place: the capacity is 1 / service time, 2 and 5 runs per second."""
    ramp = Ramp(lowest=0.5, highest=8.0, step=1.0, refine=3, growth=1000.0)
    wanted = config(ramp=ramp, duration_s=300.0, deadline_s=10.0, max_outstanding=10**6, blocks=1)
    folder = begin(tmp_path, wanted)

    async def work() -> Bench:
        bench = Bench(wanted, Server({"blocking": 0.5, "spliced": 0.2}), folder)
        await bench.run()
        assert bench.finished
        return bench

    bench = in_virtual_time(work())
    blocking, spliced = bench.knees
    assert blocking.held == pytest.approx(2.0, abs=0.3)
    assert spliced.held == pytest.approx(5.0, abs=0.6)
    report = make_report(folder, bench.knees, interrupted=False)
    assert "knee, runs / s" in format_report(report)

    async def again() -> Bench:
        bench = Bench(wanted, Server({}), LoadFolder.reopen(folder.path, LoadConfig))
        await bench.run()
        return bench

    assert in_virtual_time(again()).knees == bench.knees, "all of it is on disk"


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    wanted = config(blocks=3)
    folder = begin(tmp_path, wanted)

    class Breaks(Server):
        async def ask(self, arrival: Arrival, setting: Setting) -> Outcome:
            if len(folder.blocks) == 3:
                return Outcome(state="failed", reason="gone", ended=0.0)
            return await super().ask(arrival, setting)

        async def check(self) -> None:
            if len(folder.blocks) == 3:
                raise ClientError("no router")

    services = {"blocking": 0.2, "spliced": 0.1}

    async def work(server: Callable[[], Server], folder: LoadFolder) -> Server:
        made = server()
        await Bench(wanted, made, folder).run()
        return made

    with pytest.raises(TargetError, match="no router"):
        in_virtual_time(work(lambda: Breaks(services), folder))
    kept = folder.blocks_file.read_bytes()
    assert kept.count(b"\n") == 3
    # A process that is killed may leave half a line.
    folder.blocks_file.write_bytes(kept + b'{"key": {"sett')
    resumed = LoadFolder.reopen(folder.path, LoadConfig)
    assert (resumed.blocks, resumed.config) == (folder.blocks, folder.config)
    in_virtual_time(work(lambda: Server(services), resumed))
    assert folder.blocks_file.read_bytes().startswith(kept)
    assert len(LoadFolder.reopen(folder.path, LoadConfig).blocks) == 6


def test_a_setting_that_never_works_is_found_before_the_first_block(tmp_path: Path) -> None:
    class Refuses(Server):
        async def ask(self, arrival: Arrival, setting: Setting) -> Outcome:
            return Outcome(state="failed", reason="HTTP 400: no embedding model", ended=0.0)

    folder = begin(tmp_path, config())

    async def work() -> None:
        await Bench(config(), Refuses({}), folder).run()

    with pytest.raises(TargetError, match="no embedding model"):
        in_virtual_time(work())
    assert folder.blocks == {}


class Engine:
    """Foreign requests that take as many seconds as they have tokens to answer."""

    def __init__(self, fail: int = 0) -> None:
        self.now = 0
        self.most = 0
        self.prompts: list[tuple[int, ...]] = []
        self._fail = fail

    async def ask(self, kind: str, ids: Sequence[int], answer: int, on_tokens: OnTokens | None = None) -> object:
        assert kind == "foreign"
        self.prompts.append(tuple(ids))
        if self._fail and len(self.prompts) >= self._fail:
            raise EngineError("no more room")
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            assert on_tokens is not None
            on_tokens([1])
            await asyncio.sleep(answer)
        finally:
            self.now -= 1
        return None

    async def pools(self) -> tuple[Pool, Pool]:
        return Pool(100, 1000), Pool(self.now * 120, 1000)


def test_foreign_requests_keep_the_pools_occupied(tmp_path: Path) -> None:
    parameters = FillParameters(share=0.8, prompt=100, answer=20)
    wanted = config(fill=parameters)
    folder = begin(tmp_path, wanted)
    engine, tokens = Engine(), TokenSource(1, 10**6)

    async def work() -> None:
        def fill() -> Fill:
            return Fill(engine, tokens, parameters)

        await Bench(wanted, Server({"blocking": 1.0, "spliced": 1.0}, places=50), folder, fill=fill).run()

    in_virtual_time(work())
    assert (engine.most, engine.now) == (7, 0)
    assert len(set(engine.prompts)) == len(engine.prompts) > 24
    report = make_report(folder, (), interrupted=False)
    for each in report.fills:
        assert each.fill.decode_used is not None
        assert (each.fill.requests, each.fill.failed) == (7, 0)
        assert each.fill.decode_used.median == pytest.approx(0.84)
    assert "7 foreign requests at a time" in format_report(report)


def test_foreign_requests_never_want_more_than_there_is() -> None:
    pools = {share: FillParameters(share=share, prompt=1000, answer=1000).requests(20_000) for share in (0.5, 0.9, 1.0)}
    assert pools == {0.5: 6, 0.9: 10, 1.0: 10}


@pytest.mark.parametrize(("share", "fail", "told"), [(0.8, 1, "no more room"), (0.1, 0, "has no room for a foreign")])
def test_pools_that_cannot_be_filled_are_told(share: float, fail: int, told: str) -> None:
    async def work() -> None:
        parameters = FillParameters(share=share, prompt=100, answer=20)
        engine = Engine(fail)
        async with Fill(engine, TokenSource(1, 10**6), parameters):
            pass

    with pytest.raises(EngineError, match=told):
        in_virtual_time(work())


def test_foreign_requests_that_fail_later_are_counted() -> None:
    async def work() -> Fill:
        parameters = FillParameters(share=0.8, prompt=100, answer=20)
        engine = Engine(fail=8)
        async with Fill(engine, TokenSource(1, 10**6), parameters) as fill:
            await asyncio.sleep(60)
        return fill

    record = in_virtual_time(work()).record()
    assert record.failed > 0
    assert record.errors == ("no more room",)


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def outcome_of(handler: Handler, timeout_s: float = 20.0) -> Outcome:
    """One run on a real HTTP server."""
    app = web.Application()
    app.router.add_post("/v1/chat/completions", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with AsyncClient(f"http://127.0.0.1:{runner.addresses[0][1]}", run_timeout_s=timeout_s) as client:
            return await LoadClient(client).ask(every(1.0, 1)[0], SPLICED)
    finally:
        await runner.cleanup()


def stream(*events: object) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        assert body["graft"] == {"slots": "fixed", "mode": "spliced"}
        assert body["stream_options"] == {"include_usage": True}
        response = web.StreamResponse()
        await response.prepare(request)
        for event in events:
            data = event if isinstance(event, str) else json.dumps(event)
            await response.write(f"data: {data}\n\n".encode())
        return response

    return answer


OPENING = {"id": "r", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}], "usage": None}
PIECE = {"id": "r", "choices": [{"index": 0, "delta": {"content": "18"}}], "usage": None}
USAGE = {"id": "r", "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}}


async def test_an_answer_is_timed_and_counted() -> None:
    outcome = await outcome_of(stream(OPENING, PIECE, USAGE, "[DONE]"))
    assert (outcome.state, outcome.prompt_tokens, outcome.output_tokens) == ("done", 7, 5)
    assert outcome.opened is not None
    assert outcome.first is not None
    assert outcome.opened <= outcome.first <= outcome.ended


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ((OPENING, PIECE), r"without \[DONE\]"),
        ((OPENING, {"error": {"message": "an agent failed", "code": None}}), "the stream failed: an agent failed"),
        (("{",), "cannot be read"),
    ],
)
async def test_an_answer_that_breaks_off_has_failed(events: tuple[object, ...], reason: str) -> None:
    outcome = await outcome_of(stream(*events))
    assert outcome.state == "failed"
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(outcome.reason)


async def test_a_429_is_refused_and_no_end_is_a_failure() -> None:
    async def refuse(_: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "full", "code": "too_many_runs"}}, status=429)

    async def hang(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(5)
        raise web.HTTPOk

    assert (await outcome_of(refuse)).state == "refused"
    late = await outcome_of(hang, timeout_s=0.05)
    assert (late.state, late.reason) == ("failed", "no end within 0.05 s")


def arguments(router: FakeRouter, tmp_path: Path, *more: str) -> list[str]:
    # The bound on lateness is not what is tested, and this machine may be busy.
    common = ["--url", router.url, "--runs-dir", str(tmp_path), "--name", "t", "--max-lateness", "60"]
    return [*common, "--rate", "40", "--duration", "0.4", "--warmup", "0.1", "--blocks", "2", *more]


def test_from_the_command_line_to_the_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeRouter(lambda ask: Reply(status=429) if ask.number == 5 else Reply()) as router:
        code = main(arguments(router, tmp_path))
        out, err = capsys.readouterr()
    assert code == 0
    document = json.loads(out.splitlines()[-1])
    assert document["ok"] is True
    assert [each["setting"] for each in document["settings"]] == ["blocking", "spliced"]
    assert document["reasons"] == {"HTTP 429: no more room (busy)": 1}
    assert {"settings", "comparisons", "definitions", "parameters", "sessions"} < document.keys()
    assert document == json.loads((tmp_path / "t" / "report.json").read_text())
    assert len((tmp_path / "t" / "blocks.jsonl").read_bytes().splitlines()) == 4
    assert "40 runs / s" in out
    assert "goodput" in err
    assert "not flushed" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_what_is_finished_and_resume_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    file = tmp_path / "t" / "blocks.jsonl"
    stopped: list[int] = []

    def reply(ask: Ask) -> Reply:
        # The first run after the first block that is on disk.
        if not stopped and file.exists():
            stopped.append(ask.number)
            return Reply(before_end=lambda: os.kill(os.getpid(), number), cut=True)
        return Reply()

    with FakeRouter(reply) as router:
        assert main(arguments(router, tmp_path)) == INTERRUPTED
        out, err = capsys.readouterr()
        document = json.loads(out.splitlines()[-1])
        assert document["interrupted"] is True
        kept = file.read_bytes()
        assert kept.count(b"\n") == 1
        assert "--resume" in err
        move(tmp_path / "t")
        assert main(["--resume", str(tmp_path / "t")]) == WRONG
        assert "was made with another commit; begin a new experiment" in capsys.readouterr().err
        assert file.read_bytes() == kept
        assert main(["--resume", str(tmp_path / "t"), "--elsewhere"]) == 0
        document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (document["interrupted"], document["ok"]) == (False, True)
    assert [session["environment"]["commit"] == "0" * 40 for session in document["sessions"]] == [True, False]
    # Nothing is missing any more: no router is asked, and none is there.
    assert main(["--resume", str(tmp_path / "t")]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == document
    assert file.read_bytes().startswith(kept)
    assert file.read_bytes().count(b"\n") == 4


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--tree", "none"], "tree 'none' is not served"),
        (["--setting", "a"], "NAME=JSON"),
        (["--fill", "0.5"], "--fill with --url needs"),
        (["--prefill-url", "http://p"], "go together"),
    ],
)
def test_a_wrong_command_line_is_told(
    more: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeRouter() as router:
        assert main(arguments(router, tmp_path, *more)) == WRONG
        assert router.asks == []
    assert told in capsys.readouterr().err


def test_results_are_never_overwritten_and_only_ours_are_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t").mkdir()
    with FakeRouter() as router:
        assert main(arguments(router, tmp_path)) == WRONG
    assert main(["--resume", str(tmp_path / "t")]) == WRONG
    assert "is there already" in capsys.readouterr().err


def test_no_router_at_the_url(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--url", "http://127.0.0.1:9", "--rate", "1", "--runs-dir", str(tmp_path)])
    assert code == FAILED
    assert "does not answer" in capsys.readouterr().err


def test_a_config_survives_the_disk() -> None:
    wanted = config(fill=FillParameters(share=0.5))
    assert msgspec.json.decode(msgspec.json.encode(wanted), type=LoadConfig) == wanted
