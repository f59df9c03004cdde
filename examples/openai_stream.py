"""The stock OpenAI SDK asks a tree and prints its answer as it comes.

python examples/openai_stream.py http://127.0.0.1:8000 tree_3_1 "What is 17 times 3?"
"""

from __future__ import annotations

import sys

from openai import OpenAI


def main(url: str, tree: str, question: str) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key="-")
    stream = client.chat.completions.create(
        model=tree,
        messages=[{"role": "user", "content": question}],
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"graft": {"mode": "spliced"}},
    )
    for chunk in stream:
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
        if chunk.usage is not None:
            # Of all agents, not of the one whose answer this is.
            print(f"\n{chunk.usage.prompt_tokens} tokens in, {chunk.usage.completion_tokens} out")


if __name__ == "__main__":
    main(*sys.argv[1:])
