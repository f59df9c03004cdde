"""A tree made in Python: two sides argue, answer each other, and a judge reads what they came to.

python examples/debate.py smollm2 > debate.json      # then: its path goes into `shell_router.trees` of a cluster JSON
"""

from __future__ import annotations

import sys

import msgspec

import graft

OPEN = "You argue {side} the claim. Give your two best reasons, and begin with the word {side!r}."
REPLY = "Claim: <|question|>\n\nWhat was said:\n\n<|answers|>You argue {side} it. Answer the other side."
JUDGE = "Claim: <|question|>\n\nWhat was said:\n\n<|answers|>Who argued better, and why?"
SAID = "<|answer|>\n\n"


def debate(model: str) -> graft.Tree:
    """Two sides, two rounds, a judge, all on one model."""
    sides = {"for": "against", "against": "for"}
    templates: dict[str, dict[str, str]] = {
        "judge": {"system": "You judge debates.", "user": JUDGE, "answer": SAID},
    }
    agents: list[dict[str, object]] = []
    for side, other in sides.items():
        templates[f"{side}_1"] = {"system": OPEN.format(side=side), "user": "Claim: <|question|>"}
        templates[f"{side}_2"] = {"user": REPLY.format(side=side), "answer": SAID}
        agents.append({"id": f"{side}_1", "template": f"{side}_1"})
        agents.append({"id": f"{side}_2", "template": f"{side}_2", "inputs": [f"{side}_1", f"{other}_1"]})
    agents.append({"id": "judge", "template": "judge", "inputs": ["for_2", "against_2"]})
    document = {"name": "debate", "model": model, "templates": templates, "agents": agents}
    # What is wrong with it is said with its path.
    return msgspec.convert(document, graft.Tree)


if __name__ == "__main__":
    print(msgspec.json.format(msgspec.json.encode(debate(sys.argv[1])), indent=2).decode())
