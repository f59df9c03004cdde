"""`graft`'s client on real workers."""

from __future__ import annotations

import pytest

import graft
from launch.cluster import Cluster

pytestmark = pytest.mark.engine


def test_ask_stream_and_cancel(tiny_cluster: Cluster) -> None:
    with graft.Served(tiny_cluster).client() as client:
        answer = client.ask("What is 17 times 3?", tree="tree_3_1", max_tokens=8)
        record = client.record(answer.run_id)
        assert record.state == "done"
        assert record.usage.completion_tokens == answer.usage.completion_tokens
        with client.stream("And 17 times 4?", tree="tree_3_1") as pieces:
            next(pieces)
            assert pieces.run_id is not None
            assert client.cancel(pieces.run_id).state == "cancelled"
            with pytest.raises(graft.StreamError, match="was deleted") as told:
                list(pieces)
        assert told.value.run_id == pieces.run_id
        assert [run.state for run in client.runs(limit=2)] == ["cancelled", "done"]
