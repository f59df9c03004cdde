"""The first token after the commit, against a pair that answers at once: what is sent and counted."""

from __future__ import annotations

from collections import Counter

import pytest

from experiments.kernel.engine import PairClient
from experiments.overlap import stats, ttft
from experiments.overlap.counters import Snapshot
from experiments.overlap.loads import Load, LoadParameters
from experiments.overlap.stats import MODES, Sample
from experiments.overlap.ttft import Bench, Case, Marks, TtftParameters, account_of
from sglang_ext.protocol import SessionCounters, SessionInfo, SessionsStatus
from tests.experiments.overlap.served import POOL, TOKENS, served
from tests.fakes.pair import PAGE_BYTES

SHORT = TtftParameters(prompt=128, chunk=32, tail=16, answer=2, modes=MODES, repetitions=2)


async def take(client: PairClient, load: Load, parameters: TtftParameters = SHORT) -> list[Sample]:
    bench = Bench(client, TOKENS, parameters)
    return [sample async for sample in bench.run([Case(name=load, load=load, prompt=parameters.prompt)])]


async def test_every_mode_sends_the_whole_prompt_and_counts_what_it_cost() -> None:
    async with served() as (pair, client):
        samples = await take(client, "idle")
        assert [s.error for s in samples] == [None] * 9
        assert sum(s.warmup for s in samples) == 3
        assert sorted(Counter(s.mode for s in stats.measured(samples)).values()) == [2, 2, 2]
        whole = {tuple(ids) for _, ids in pair.prompts if len(ids) == SHORT.prompt}
        assert len(whole) == 9, "no two samples share their tokens"
        assert pair.sessions == 0
        for one in samples:
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
        met = {g.name: g.met for g in ttft.goals(samples, SHORT, client.status)}
        assert met["idle: recomputed tokens"] is True
        assert met["idle: bytes after the commit"] is True


async def test_foreign_prompts_fill_the_pool_between_append_and_commit() -> None:
    async with served() as (pair, client):
        samples = await take(client, "pressure")
        assert all(s.error is None for s in samples)
        kinds = Counter(kind for kind, _ in pair.prompts)
        assert kinds["foreign"] == 9 * LoadParameters().foreign_rounds * POOL / 512
        assert {s.bytes_after_commit for s in samples if s.mode == "resend"} == {PAGE_BYTES}


async def test_bytes_are_unknown_when_the_load_sent_something() -> None:
    """The engine ends each busy answer at once, so each is started again during every sample."""
    loads = LoadParameters(busy_requests=2, busy_tokens=3)
    parameters = TtftParameters(
        prompt=64, chunk=16, tail=16, modes=("resend", "incremental"), repetitions=1, warmups=0, loads=loads
    )
    async with served() as (_, client):
        samples = await take(client, "busy_decode", parameters)
        found = {s.mode: (s.error, s.bytes_after_commit) for s in samples}
        assert found == {"resend": (None, None), "incremental": (None, PAGE_BYTES)}


async def test_failures_are_counted_and_leave_nothing() -> None:
    """So is a session that the transport replaced by plain requests: its time is not that of the mode."""
    async with served(fail=Counter({"commit": 1, "append": 1, "open": 1, "overlap": 1})) as (pair, client):
        samples = await take(client, "idle")
        assert sum(stats.failures(samples)["idle"].values()) == 4
        told = " ".join(s.error for s in samples if s.error)
        for reason in ("fell back to plain requests (lost)", "over_budget", "no more room"):
            assert reason in told
        assert pair.sessions == 0


@pytest.mark.parametrize(("again", "recomputed", "hidden"), [(0, None, None), (16, 16, 32)])
def test_what_was_let_go_and_not_counted_is_no_number(again: int, recomputed: int | None, hidden: int | None) -> None:
    def snapshot(lets_go: int, recomputed_tokens: int) -> Snapshot:
        mine = SessionInfo(
            session_id="s", state="open", known_tokens=50, held_tokens=48, pushed_tokens=48, recomputed_tokens=0,
            lets_go=0, idle_s=0,
        )  # fmt: skip
        status = SessionsStatus(
            open=(mine,), held_tokens=48, max_sessions=8, max_held_tokens=POOL, max_ttl_s=9, page_bytes=PAGE_BYTES,
            counters=SessionCounters(lets_go=lets_go, recomputed_tokens=recomputed_tokens),
        )  # fmt: skip
        return Snapshot(started=0, transfers=None, transferred_bytes=None, sessions=status)

    quiet = snapshot(0, 0)
    marks = Marks(before=quiet, early=quiet, ready=snapshot(1, 0), after=snapshot(1, again))
    account = account_of("incremental", "s", marks, [])
    assert (account.recomputed_tokens, account.hidden_tokens) == (recomputed, hidden)
