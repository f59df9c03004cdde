"""The overlap benchmark against a pair that answers at once: what is sent, counted and concluded; no time is judged."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.kernel.client import ClientError
from experiments.kernel.command import EXIT_FAILED, EXIT_USAGE
from experiments.kernel.pair import Pair
from experiments.kernel.target import TargetError
from experiments.overlap import command as overlap
from experiments.overlap import layer, stats, target, traffic, ttft
from experiments.overlap.client import EngineClient, Snapshot, both
from experiments.overlap.layer import Case, LayerBench, LayerParameters, Splice, spliced_case
from experiments.overlap.loads import BusyDecode, LoadParameters, TokenSource, press
from experiments.overlap.prompts import MODES, Marks, Mode, make_prompt
from experiments.overlap.stats import Sample, goal
from experiments.overlap.traffic import TrafficBench, TrafficParameters
from experiments.overlap.ttft import Bench, TtftParameters
from launch.config import ConfigError, load_cluster
from sglang_ext.protocol import SessionCounters
from tests.experiments.fake_pair import PAGE, PAGE_BYTES, POOL, FakePair

CLUSTER = Path(__file__).resolve().parents[3] / "cfgs" / "cluster" / "cpu_smollm2.json"
SHORT = TtftParameters(prompt=128, chunk=32, tail=16, answer=2, modes=MODES, repetitions=2)


def tokens() -> TokenSource:
    return TokenSource(1, 1000, 40_000)


@asynccontextmanager
async def served(**options: Any) -> AsyncIterator[tuple[FakePair, EngineClient]]:
    async with FakePair(**options) as pair, EngineClient(pair.pair, timeout_s=20) as client:
        yield pair, client


def sample(mode: Mode, repetition: int = 0, case: str = "idle", **values: Any) -> Sample:
    return Sample(case=case, mode=mode, repetition=repetition, warmup=repetition < 0, **values)


async def test_every_mode_sends_the_whole_prompt_and_counts_what_it_cost() -> None:
    async with served() as (pair, client):
        facts = await client.facts()
        bench = Bench(client, facts, tokens(), SHORT)
        await bench.run("idle", [SHORT.prompt], cases=["idle"])
        assert [s.error for s in bench.samples] == [None] * 9
        assert sum(s.warmup for s in bench.samples) == 3
        assert sorted(Counter(s.mode for s in stats.measured(bench.samples)).values()) == [2, 2, 2]
        whole = {tuple(ids) for _, ids in pair.prompts if len(ids) == SHORT.prompt}
        assert len(whole) == 9, "no two samples share their tokens"
        assert pair.open_sessions == 0
        for one in bench.samples:
            assert one.prompt_tokens == 128
            assert one.recomputed_tokens == 0
            assert one.ttft_s is not None
            if one.mode == "blocking":
                assert (one.append_s, one.hidden_prefill_fraction) == ((), 0.0)
                assert (one.bytes_before_commit, one.bytes_after_commit) == (0, 8 * PAGE_BYTES)
            else:
                assert len(one.append_s) == 4
                assert one.hidden_prefill_fraction == pytest.approx(112 / 128)
                assert one.bytes_after_commit == PAGE_BYTES
                # The last token of each probe is always computed, and its page moved once more.
                assert one.bytes_before_commit is not None
                assert one.bytes_before_commit >= 7 * PAGE_BYTES
        numbers = ttft.result(bench.samples)
        assert {"ttft_s", "append_s", "recomputed_tokens", "hidden_prefill_fraction"} < numbers.keys()
        met = {g.name: g.met for g in ttft.goals(bench.samples, SHORT, facts)}
        assert met["idle: recomputed tokens"] is True
        assert met["idle: bytes after the commit"] is True


async def test_foreign_prompts_fill_the_pool_between_append_and_commit() -> None:
    async with served() as (pair, client):
        bench = Bench(client, await client.facts(), tokens(), SHORT)
        await bench.run("pressure", [SHORT.prompt], cases=["pressure"])
        assert all(s.error is None for s in bench.samples)
        kinds = Counter(kind for kind, _ in pair.prompts)
        assert kinds["foreign"] == 9 * LoadParameters().foreign_rounds * POOL / 512
        assert {s.bytes_after_commit for s in bench.samples if s.mode == "resend"} == {PAGE_BYTES}


async def test_bytes_are_unknown_when_the_load_sent_something() -> None:
    """The engine ends each busy answer at once, so each is started again during every sample."""
    loads = LoadParameters(busy_requests=2, busy_tokens=3)
    parameters = TtftParameters(
        prompt=64, chunk=16, tail=16, modes=("resend", "incremental"), repetitions=1, warmups=0, loads=loads
    )
    async with served() as (_, client):
        bench = Bench(client, await client.facts(), tokens(), parameters)
        await bench.run("busy_decode", [64], cases=["busy_decode"])
        found = {s.mode: (s.error, s.bytes_after_commit) for s in bench.samples}
        assert found == {"resend": (None, None), "incremental": (None, PAGE_BYTES)}


async def test_failures_are_counted_and_leave_nothing() -> None:
    async with served(fail=Counter({"commit": 1, "append": 1, "open": 1, "overlap": 1})) as (pair, client):
        bench = Bench(client, await client.facts(), tokens(), SHORT)
        await bench.run("idle", [SHORT.prompt], cases=["idle"])
        assert sum(modes for modes in stats.failures(bench.samples)["idle"].values()) == 4
        reasons = {s.error.partition(": ")[2] for s in bench.samples if s.error}
        assert reasons == {
            "HTTP 410: it was lost (closed)", "HTTP 429: no place (over_budget)", "HTTP 503: no more room (busy)",
        }  # fmt: skip
        assert pair.open_sessions == 0
        assert pair.aborted


async def test_a_busy_request_that_fails_is_told() -> None:
    async with served(fail=Counter({"busy": 1})) as (_, client):
        with pytest.raises(ClientError, match="no more room"):
            async with BusyDecode(client, tokens(), LoadParameters()):
                pass


async def test_a_foreign_prompt_that_fails_is_told() -> None:
    async with served(fail=Counter({"foreign": 1})) as (_, client):
        with pytest.raises(ClientError, match="1 of 8 foreign prompts failed"):
            await press(client, tokens(), POOL, LoadParameters())


async def test_when_one_worker_fails_the_other_is_not_waited_for() -> None:
    ended: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    async def fails() -> None:
        raise ClientError("gone")

    with pytest.raises(ClientError, match="gone"):
        await both(forever(), fails())
    assert ended == ["cancelled"]


@pytest.mark.parametrize("precursors", [1, 3])
async def test_the_second_layer_reads_every_answer(precursors: int) -> None:
    parameters = LayerParameters(input_range=(1, 64), answer=2, modes=MODES, repetitions=1)
    case = Case(name="layer", answers=(20,) * precursors)
    async with served() as (pair, client):
        bench = LayerBench(client, await client.facts(), tokens(), parameters)
        await bench.run([case])
        assert [s.error for s in bench.samples] == [None] * 6
        answer = [41_000 + n for n in range(1, 21)]
        ends = [ids for kind, ids in pair.prompts if ids[-len(answer) * precursors :] == answer * precursors]
        assert len(ends) == 6
        # All modes of a repetition read prompts of the same length.
        assert len({s.prompt_tokens for s in stats.measured(bench.samples)}) == 1
        for one in bench.samples:
            assert one.run_ttft_s is not None
            assert one.total_s is not None
            assert one.ttft_s is not None
            assert one.layer_s is not None
            assert 0 < one.ttft_s <= one.layer_s
            assert one.run_ttft_s <= one.total_s
            assert one.hidden_prefill_fraction is not None
            assert 0 <= one.hidden_prefill_fraction < 1
            if one.mode == "blocking":
                assert (one.hidden_prefill_s, one.hidden_prefill_fraction) == (0, 0)
        numbers = layer.result(bench.samples)
        assert {"ttft_s", "layer_s", "total_s", "hidden_prefill_s", "bytes_after_commit"} < numbers.keys()
        assert pair.open_sessions == 0


async def test_bytes_of_a_layer_are_those_of_the_successors_prompts() -> None:
    """Not those of the precursors' prompts, and of runs at once the share of each."""
    parameters = LayerParameters(input_range=(64, 64), answer=2, modes=MODES, repetitions=1, concurrency=3)
    async with served() as (pair, client):
        bench = LayerBench(client, await client.facts(), tokens(), parameters)
        await bench.run([spliced_case(100, 2)])
        assert len(bench.samples) == 2 * 3 * 3
        assert sorted({s.run for s in bench.samples}) == [0, 1, 2]
        pages = -(-(64 + 100) // PAGE)
        for one in bench.samples:
            assert (one.error, one.prompt_tokens) == (None, 164)
            assert one.bytes_before_commit is not None
            assert one.bytes_after_commit is not None
            if one.mode == "blocking":
                assert (one.bytes_before_commit, one.bytes_after_commit) == (0, pages * PAGE_BYTES)
            if one.mode == "incremental":
                assert one.bytes_before_commit + one.bytes_after_commit == pages * PAGE_BYTES
            if one.mode == "resend":
                # The last page of each probe is moved once more.
                assert one.bytes_before_commit + one.bytes_after_commit >= pages * PAGE_BYTES
        assert pair.open_sessions == 0


def test_what_is_spliced_is_shared_out_to_the_last_token() -> None:
    assert spliced_case(1024, 3).answers == (342, 341, 341)
    assert spliced_case(8, 8).answers == (1,) * 8


async def test_a_prompt_that_the_pool_cannot_hold_is_told_before_anything_is_sent() -> None:
    parameters = LayerParameters(input_range=(64, 64), modes=MODES, repetitions=1)
    async with served() as (pair, client):
        bench = LayerBench(client, await client.facts(), tokens(), parameters)
        with pytest.raises(
            ClientError, match=r"4096 tokens: a prompt and its answer may have 4176 tokens, .* has 2048"
        ):
            await bench.run([spliced_case(100, 2), spliced_case(4096, 2)])
        assert pair.prompts == []


async def test_a_precursor_that_fails_ends_the_sample() -> None:
    parameters = LayerParameters(input_range=(1, 8), modes=("incremental",), repetitions=1)
    async with served(fail=Counter({"precursor": 1})) as (pair, client):
        bench = LayerBench(client, await client.facts(), tokens(), parameters)
        await bench.run([Case(name="layer", answers=(4, 4, 4))])
        assert [s.error is None for s in bench.samples] == [False, True]
        assert pair.open_sessions == 0


async def test_a_run_that_fails_leaves_those_beside_it() -> None:
    parameters = LayerParameters(input_range=(1, 8), modes=("incremental",), repetitions=1, warmups=0, concurrency=3)
    async with served(fail=Counter({"commit": 1})) as (pair, client):
        bench = LayerBench(client, await client.facts(), tokens(), parameters)
        await bench.run([Case(name="layer", answers=(4,))])
        assert sorted(s.error is None for s in bench.samples) == [False, True, True]
        # What the failed one had moved is not known.
        assert {s.bytes_after_commit for s in bench.samples} == {None}
        assert pair.open_sessions == 0


async def test_traffic_with_and_without_sessions() -> None:
    parameters = TrafficParameters(requests=6, session=512, fill=0.8, repetitions=2, warmups=1)
    async with served(fail=Counter({"plain": 1})) as (pair, client):
        bench = TrafficBench(client, await client.facts(), tokens(), parameters)
        await bench.run()
        assert len(bench.samples) == 6
        assert {(s.sessions, s.held_before) for s in bench.samples if s.with_sessions} == {(3, 1536)}
        assert {(s.sessions, s.held_before) for s in bench.samples if not s.with_sessions} == {(0, 0)}
        assert sum(s.failed for s in bench.samples) == 1
        assert pair.open_sessions == 0
        numbers: Any = traffic.result(bench.samples)
        assert numbers["with_sessions"]["requests"] == 12
        (only,) = traffic.goals(bench.samples)
        assert only.value is not None


async def test_traffic_tells_why_there_are_fewer_sessions() -> None:
    parameters = TrafficParameters(requests=2, session=512, fill=0.8, repetitions=1, warmups=0)
    async with served(fail=Counter({"append": 1})) as (pair, client):
        bench = TrafficBench(client, await client.facts(), tokens(), parameters)
        await bench.run()
        (full,) = [s for s in bench.samples if s.with_sessions]
        assert "no place" in full.errors[0]
        assert pair.open_sessions == 0


def test_ratios_are_of_one_repetition_and_warm_ups_do_not_count() -> None:
    samples = [
        sample("blocking", -1, ttft_s=100.0),
        sample("incremental", -1, ttft_s=1.0),
        *(sample("blocking", n, ttft_s=value) for n, value in enumerate((10.0, 20.0, 40.0))),
        *(sample("incremental", n, ttft_s=value) for n, value in enumerate((1.0, 4.0))),
        sample("incremental", 2, error="gone"),
    ]
    ratio = stats.ratio(samples, lambda s: s.ttft_s, ("idle", "incremental"), ("idle", "blocking"))
    assert ratio is not None
    assert [ratio.min, ratio.max] == pytest.approx([0.1, 0.2])
    assert ratio.n == 2
    table = stats.by_case_and_mode(samples, lambda s: s.ttft_s)
    blocking, incremental = table["idle"]["blocking"], table["idle"]["incremental"]
    assert blocking is not None
    assert incremental is not None
    assert (blocking.median, incremental.n) == (20.0, 2)
    assert stats.failures(samples) == {"idle": {"blocking": 0, "incremental": 1}}


def test_runs_at_once_are_one_repetition_of_a_ratio() -> None:
    values: dict[tuple[Mode, int], tuple[float, float]] = {
        ("blocking", 0): (4.0, 4.0),
        ("incremental", 0): (1.0, 4.0),
        ("blocking", 1): (1.0, 1.0),
    }
    samples = [
        sample(mode, repetition, run=run, ttft_s=seconds)
        for (mode, repetition), runs in values.items()
        for run, seconds in enumerate(runs)
    ]
    found = stats.against(samples, {"ttft_s": lambda s: s.ttft_s}, seed=0)
    assert found.keys() == {"idle"}
    assert found["idle"].keys() == {"incremental / blocking"}
    only = found["idle"]["incremental / blocking"]["ttft_s"]
    assert only.values == pytest.approx((0.5,))
    assert only.ratio is not None
    assert (only.ratio.n, only.ratio.low) == (1, None)
    lists = stats.repetitions(samples, {"ttft_s": lambda s: s.ttft_s})
    assert lists["idle"]["blocking"] == {"ttft_s": [4.0, 4.0, 1.0, 1.0]}


def test_nothing_is_guessed_where_all_failed() -> None:
    samples = [sample("blocking", error="no"), sample("incremental", error="no")]
    assert stats.by_case_and_mode(samples, lambda s: s.ttft_s) == {"idle": {"blocking": None, "incremental": None}}
    assert stats.ratio(samples, lambda s: s.ttft_s, ("idle", "incremental"), ("idle", "blocking")) is None
    assert goal("g", None, 1.0).met is None
    assert (goal("g", 1.0, 1.0).met, goal("g", 1.1, 1.0).met) == (True, False)


@given(st.data())
def test_a_splice_takes_every_token_once(data: st.DataObject) -> None:
    """In any schedule: whole pages while it grows, and in the end the head and each answer in one piece."""
    count = data.draw(st.integers(1, 4))
    head = [1] * data.draw(st.integers(0, 40))
    lengths = [data.draw(st.integers(1, 30)) for _ in range(count)]
    splice = Splice(head, count)
    sent = [0] * count
    taken: list[int] = []
    while any(sent[n] <= lengths[n] for n in range(count)):
        n = data.draw(st.sampled_from([n for n in range(count) if sent[n] <= lengths[n]]))
        assert not splice.whole
        if sent[n] == lengths[n]:
            splice.end(n)
        else:
            splice.add(n, [100 + n])
        sent[n] += 1
        if data.draw(st.booleans()):
            taken += splice.take(PAGE)
            assert len(taken) % PAGE == 0
    assert splice.whole
    taken += splice.rest()
    assert taken[: len(head)] == head
    answers = taken[len(head) :]
    order = list(dict.fromkeys(answers))
    assert answers == [token for token in order for _ in range(lengths[token - 100])]
    assert len(order) == count


def test_pressure_is_the_same_cluster_with_small_pools() -> None:
    config = load_cluster(CLUSTER)
    small = target.small_pools(config, 3200)
    assert small.name == "cpu_smollm2-pressure"
    assert [model.max_total_tokens for model in small.models] == [3200]
    assert small.models[0].context_length == config.models[0].context_length


def test_one_pair_is_measured(tmp_path: Path) -> None:
    document = json.loads(CLUSTER.read_text())
    document["models"][0]["prefill"] *= 2
    document["shell_router"]["trees"] = []
    file = tmp_path / "two.json"
    file.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="one pair of one model"):
        target.cluster_pair(file, tmp_path, 3200)


@pytest.mark.parametrize(
    ("served", "told"),
    [
        ({"device": "cpu", "regular": [{}]}, "`regular` workers"),
        ({"openai": {"url": "http://127.0.0.1:1/v1"}}, "an `openai` server"),
    ],
)
def test_a_model_without_a_pair_is_refused(served: dict[str, Any], told: str, tmp_path: Path) -> None:
    document = {"name": "c", "models": [{"name": "lone", "path": "builtin:tiny-llama", **served}]}
    file = tmp_path / "lone.json"
    file.write_text(json.dumps({**document, "shell_router": {"trees": []}}))
    with pytest.raises(ConfigError, match=f"model 'lone' has none, but {told}"):
        target.cluster_pair(file, tmp_path, 3200)


@contextmanager
def in_thread(**options: Any) -> Iterator[FakePair]:
    """A fake pair with a loop of its own, for `main`, which runs one too."""
    up, loop = threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()
    fake = FakePair(**options)

    async def serve() -> None:
        async with fake:
            up.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert up.wait(10)
        yield fake
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


def command(pair: Pair, folder: Path, part: str) -> list[str]:
    return [
        *("--part", part, "--router-url", pair.router, "--prefill-url", pair.prefill, "--decode-url", pair.decode),
        *("--runs-dir", str(folder), "--repetitions", "1", "--prompt", "64", "--long-prompt", "128", "--chunk", "16"),
        *(
            "--tail",
            "16",
            "--busy-tokens",
            "40",
            "--requests",
            "3",
            "--precursor-answer",
            "8",
            "--input-range",
            "1",
            "9",
            "--sizes",
            "60,120",
            "--concurrency",
            "2",
        ),
    ]


@pytest.mark.parametrize("part", list(overlap.PARTS))
def test_every_part_ends_in_one_line_of_json(part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with in_thread() as fake:
        assert overlap.main([*command(fake.pair, tmp_path, part), "--out", str(tmp_path / "summary.json")]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out.splitlines()[-1])
    assert (document["part"], document["failed"]) == (part, 0)
    samples = [json.loads(line) for line in Path(document["samples"]).read_text().splitlines()]
    # Progress counted all of them, and knew how many there would be.
    assert f"{len(samples)}/{len(samples)} " in captured.err
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary.items() > document.items()
    assert summary["environment"]["versions"]["graft"]
    assert summary["definitions"] == overlap.DEFINITIONS
    if part in overlap.LAYER_PARTS:
        cases = ["60 tokens", "120 tokens"] if part == "spliced" else [part]
        for case in cases:
            assert set(document["ratios"][case]) == {f"{mode} / {base}" for mode, base in stats.BASES}
            for mode in MODES:
                lists = summary["repetitions"][case][mode]
                assert len(lists["ttft_s"]) == 2
                assert all(value is not None for values in lists.values() for value in values)
    if part == "ttft":
        for key in ("ttft_s", "append_s", "bytes_after_commit", "bytes_before_commit", "recomputed_tokens"):
            assert set(document[key]) == {"idle", "busy_decode", "pressure"}
            assert set(document[key]["idle"]) == set(MODES)
        assert len(document["goals"]) == 10
    if part == "scaling":
        assert [g["name"] for g in document["goals"]] == ["incremental: ttft at 128 tokens against 64 tokens"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--part", "spliced", "--sizes", "2", "--precursors", "3"], "--sizes must leave a token"),
        (["--sizes", "16,16"], "separated by commas, each once"),
        (["--input-range", "9", "1"], "the smaller one first"),
        (["--concurrency", "0"], "must be at least 1"),
        (["--out", "/nowhere/at/all.json"], "there is no folder /nowhere/at"),
    ],
)
def test_a_wrong_command_line_is_told_by_option(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        overlap.main(arguments)
    assert ended.value.code == EXIT_USAGE
    assert told in capsys.readouterr().err


def test_a_worker_without_sessions_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with in_thread(sessions=False) as fake:
        arguments = command(fake.pair, tmp_path, "ttft")
        assert overlap.main(arguments) == EXIT_FAILED
        assert "no incremental sessions: not on this one" in capsys.readouterr().err
        assert overlap.main([*arguments, "--modes", "blocking", "resend", "--loads", "idle"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["goals"] == []


def test_a_cluster_that_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def start(_: bool) -> Iterator[Pair]:
        raise TargetError("a worker died")
        yield Pair(router="", prefill="", decode="")

    monkeypatch.setattr(overlap, "cluster_pair", lambda *_: start)
    assert overlap.main(["--runs-dir", str(tmp_path)]) == EXIT_FAILED
    assert "a worker died" in capsys.readouterr().err
    assert overlap.main(["--cluster", str(tmp_path / "none.json")]) == EXIT_FAILED


@pytest.mark.parametrize(("again", "recomputed", "hidden"), [(0, None, None), (48, 48, 0)])
async def test_what_was_let_go_and_not_counted_is_no_number(
    again: int, recomputed: int | None, hidden: int | None
) -> None:
    def snapshot(lets_go: int, recomputed_tokens: int) -> Snapshot:
        counters = SessionCounters(lets_go=lets_go, recomputed_tokens=recomputed_tokens)
        return Snapshot(started=0, transfers=None, transferred_bytes=None, sessions=counters)

    async with served() as (_, client):
        prompt = make_prompt("incremental", client, await client.facts())
        await prompt.begin(64)
        await prompt.append(tokens()(48))
        answer = await prompt.commit([1], {"max_new_tokens": 1})
    quiet = snapshot(0, 0)
    marks = Marks(before=quiet, early=quiet, ready=snapshot(1, 0), after=snapshot(1, again))
    account = prompt.account(marks, answer)
    assert (account.recomputed_tokens, account.hidden_tokens) == (recomputed, hidden)
