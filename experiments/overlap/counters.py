"""What the prefill worker counts, so that it can be told what one prompt has cost."""

from __future__ import annotations

import asyncio
import time

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from experiments.kernel.engine import PairClient
from sglang_ext.protocol import SessionsStatus

SETTLE_S = 2.0
"""How long its metrics may lag behind a request's first token."""
_MEGABYTE = 1024 * 1024
_TRANSFERRED = "sglang:kv_transfer_total_mb"


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Counters at one moment; differences of two are what happened between."""

    started: int
    """Plain requests of this client that have had a first token, so whose KV has been moved."""
    transfers: int | None
    """KV transfers it has seen the end of. None when its metrics do not tell, or did not keep up with `started`."""
    transferred_bytes: int | None
    sessions: SessionsStatus | None


async def snapshot(client: PairClient, since: Snapshot | None = None) -> Snapshot:
    """The counters now; with `since`, once all transfers that began after it and must have ended are in them."""
    started = client.engine.started
    deadline = time.monotonic() + SETTLE_S
    while True:
        transfers, transferred = read_transfers((await client.get(f"{client.pair.prefill}/metrics")).decode())
        if since is None or since.transfers is None or transfers is None:
            break
        if transfers - since.transfers >= started - since.started:
            break
        if time.monotonic() > deadline:
            transfers = transferred = None
            break
        await asyncio.sleep(0.02)
    return Snapshot(
        started=started,
        transfers=transfers,
        transferred_bytes=transferred,
        sessions=await client.sessions_status(),
    )


def read_transfers(metrics: str) -> tuple[int | None, int | None]:
    """Number and bytes of the KV transfers in Prometheus' text, over all label sets; None where there are none."""
    # There are hundreds of other lines, and this is asked for again and again.
    mine = "".join(f"{line}\n" for line in metrics.splitlines() if line.startswith(_TRANSFERRED))
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(mine):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    count, megabytes = sums.get(f"{_TRANSFERRED}_count"), sums.get(f"{_TRANSFERRED}_sum")
    if count is None or megabytes is None:
        return None, None
    return round(count), round(megabytes * _MEGABYTE)


def moved(start: Snapshot, end: Snapshot) -> int | None:
    """Bytes moved between two snapshots."""
    if start.transferred_bytes is None or end.transferred_bytes is None:
        return None
    return end.transferred_bytes - start.transferred_bytes
