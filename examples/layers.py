"""What the router's last runs spent where: by layer, the exposed prefill, the time of decoding, tokens a step.

python examples/layers.py http://127.0.0.1:8000
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence

import graft


def main(url: str) -> None:
    exposed: dict[int, list[float]] = defaultdict(list)
    decoding: dict[int, list[float]] = defaultdict(list)
    per_step: dict[int, list[float]] = defaultdict(list)
    with graft.Client(url) as client:
        records = [client.record(run.id) for run in client.runs(state="done")]
    for agent in (agent for record in records for agent in record.agents):
        if agent.first_token_s is None or agent.ended_s is None:
            continue
        exposed[agent.layer].append(agent.exposed_prefill_s or 0.0)
        decoding[agent.layer].append(agent.ended_s - agent.first_token_s)
        if agent.drafts is not None and agent.drafts.steps:
            per_step[agent.layer].append((agent.drafts.steps + agent.drafts.accepted) / agent.drafts.steps)
    print(f"{len(records)} runs; medians")
    for layer in sorted(exposed):
        steps = f", {_median(per_step[layer]):.1f} tokens a step" if per_step[layer] else ""
        times = f"{_median(exposed[layer]):.2f} s of exposed prefill, {_median(decoding[layer]):.2f} s of decoding"
        print(f"layer {layer}: {times}{steps}")


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


if __name__ == "__main__":
    main(*sys.argv[1:])
