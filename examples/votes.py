"""A cluster does not wait for the rest once those that are missing cannot change the majority.

python examples/votes.py http://127.0.0.1:8000 tree_9_3_1 "What is 17 times 3?"
"""

from __future__ import annotations

import sys

import graft


def main(url: str, tree: str, question: str) -> None:
    options = {"early_exit": {"mode": "vote", "ballots": "math"}}
    with graft.Client(url) as client:
        answer = client.ask(question, tree=tree, options=options)
        record = client.record(answer.run_id)
    print(answer.text)
    for check in record.checks:
        print(f"cluster {check.cluster}: {check.outcome} after {', '.join(check.agents)}")
    spared = [agent.id for agent in record.agents if agent.state == "cancelled"]
    print(f"not waited for: {', '.join(spared) or 'nobody'}; up to {record.tokens_saved} tokens saved")


if __name__ == "__main__":
    main(*sys.argv[1:])
