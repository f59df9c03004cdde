"""A file of questions, one a line, a few at a time, until a budget of tokens is used up.

python examples/batch.py http://127.0.0.1:8000 tree_3_1 questions.txt 20000
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import graft

AT_ONCE = 4


async def main(url: str, tree: str, waiting: Sequence[str], budget: int) -> None:
    asked, spent = 0, 0

    async def ask(client: graft.AsyncClient) -> None:
        nonlocal asked, spent
        # What is under way when the budget ends is waited for: it may be exceeded by so many runs.
        while spent < budget and asked < len(waiting):
            question, asked = waiting[asked], asked + 1
            try:
                answer = await client.ask(question, tree=tree)
            except graft.GraftError as error:
                print(f"{question}\n  failed: {error}")
                continue
            spent += answer.usage.prompt_tokens + answer.usage.completion_tokens
            print(f"{question}\n  {answer.text.strip()}")

    async with graft.AsyncClient(url) as client:
        await asyncio.gather(*(ask(client) for _ in range(AT_ONCE)))
    print(f"{asked} of {len(waiting)} questions, {spent} tokens")


if __name__ == "__main__":
    questions = [line for line in Path(sys.argv[3]).read_text().splitlines() if line.strip()]
    asyncio.run(main(sys.argv[1], sys.argv[2], questions, int(sys.argv[4])))
