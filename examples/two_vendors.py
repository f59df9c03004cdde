"""A router over two servers with OpenAI's API, whoever runs them: agents of the one write, one of the other merges.

Each server is `NAME=URL` (with `/v1`, as OpenAI's clients take it), and its tokenizer a folder or a hub id:

    python examples/two_vendors.py router.json small=http://10.0.0.1:8000/v1,Qwen/Qwen3-4B large=https://api.example/v1,Qwen/Qwen3-32B
    python -m shell_router --config router.json

A key that a server wants is in the environment variable NAME_KEY.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import msgspec

CONTEXT = 8192
TEMPLATES = {
    "propose": {"user": "<|question|>"},
    "merge": {
        "user": "Question:\n<|question|>\n\nAnswers of others:\n\n<|answers|>Write one better answer.",
        "answer": "[<|n|>]\n<|answer|>\n\n",
    },
}


def model(told: str) -> dict[str, Any]:
    """A server, of `NAME=URL,TOKENIZER`."""
    name, _, where = told.partition("=")
    url, _, tokenizer = where.partition(",")
    found = {"name": name, "backend": "openai", "router_url": url, "tokenizer": tokenizer, "context_length": CONTEXT}
    key = f"{name.upper()}_KEY"
    return {**found, "upstream_key_env": key} if key in os.environ else found


def main(path: Path, small: str, large: str) -> None:
    models = [model(small), model(large)]
    writers, merger = (each["name"] for each in models)
    proposers = [{"id": f"p{n}", "template": "propose", "model": writers} for n in range(1, 4)]
    final = {"id": "final", "template": "merge", "model": merger, "inputs": [each["id"] for each in proposers]}
    tree = {"name": "two_vendors", "templates": TEMPLATES, "agents": [*proposers, final]}
    beside = path.with_name("two_vendors_tree.json")
    beside.write_bytes(msgspec.json.format(msgspec.json.encode(tree)))
    path.write_bytes(msgspec.json.format(msgspec.json.encode({"models": models, "trees": [str(beside)]})))
    print(f"{path} and {beside} are written; now: python -m shell_router --config {path}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
