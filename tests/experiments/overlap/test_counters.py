"""What is read of the prefill worker's metrics."""

from __future__ import annotations

from experiments.overlap.counters import read_transfers, snapshot
from tests.experiments.overlap.served import TOKENS, served


def test_transfers_are_summed_over_ranks() -> None:
    text = (
        "# HELP sglang:kv_transfer_total_mb Histogram\n# TYPE sglang:kv_transfer_total_mb histogram\n"
        'sglang:kv_transfer_total_mb_sum{name="a}b",tp_rank="0"} 1.5\n'
        'sglang:kv_transfer_total_mb_sum{name="a}b",tp_rank="1"} 0.5\n'
        'sglang:kv_transfer_total_mb_bucket{le="+Inf",tp_rank="0"} 3.0\n'
        'sglang:kv_transfer_total_mb_count{name="a}b",tp_rank="0"} 3.0\n'
        'sglang:kv_transfer_total_mb_count{name="a}b",tp_rank="1"} 1.0\n'
        "sglang:other 7\n"
    )
    assert read_transfers(text) == (4, 2 << 20)
    assert read_transfers("sglang:other 7\n") == (None, None)


async def test_a_snapshot_counts_what_was_sent() -> None:
    async with served() as (_, client):
        before = await snapshot(client)
        await client.ask("plain", TOKENS(40), 2)
        after = await snapshot(client, before)
        assert (after.started - before.started, before.transfers, after.transfers) == (1, 0, 1)
        assert after.sessions is not None
