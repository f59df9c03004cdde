"""The programs of examples/, each run as a user runs it, against a router on a stand-in engine."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from launch.checkpoint import resolve
from shell_router.app import build_app, open_app
from shell_router.config import RouterConfig, load_json
from shell_router.core.tree import TreeConfig, build_tree
from shell_router.transport.fake import FakeEngine
from tests.fakes.openai import FakeOpenAI, complete
from tests.shell_router.serving import Client, fake_service, serving
from tests.shell_router.test_openai_schema import Case

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


async def run(name: str, *arguments: str, code: int = 0) -> str:
    """What the example prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(EXAMPLES / name),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    out, err = await process.communicate()
    assert process.returncode == code, err.decode()
    return out.decode()


@asynccontextmanager
async def router(case: Case | None = None) -> AsyncIterator[Client]:
    """Serves three proposers and a root as `t`."""
    async with serving(build_app((case or Case()).service(), body_bytes=100_000)) as client:
        yield client


def test_all_of_them_are_run_here_and_told_of() -> None:
    names = {path.name for path in EXAMPLES.glob("*.py")}
    here, told = Path(__file__).read_text(), (EXAMPLES / "README.md").read_text()
    assert all(f'"{name}"' in here and f"({name})" in told for name in names)
    assert len(names) == 6


async def test_openai_stream() -> None:
    async with router() as client:
        out = await run("openai_stream.py", client.url, "t", "why?")
    *answer, counts = out.splitlines()
    assert "".join(answer).strip()
    assert counts.endswith("out")
    assert "tokens in" in counts


async def test_votes_name_who_was_not_waited_for() -> None:
    """Proposers with one prompt answer alike, so that two of three are a majority; the third never ends."""
    async with router(Case(held="p3")) as client:
        out = await run("votes.py", client.url, "t", "why?")
    assert "cluster 0: exit after p1, p2" in out
    assert "not waited for: p3" in out


async def test_a_debate_is_a_tree_that_runs() -> None:
    printed = await run("debate.py", "smollm2")
    tree = build_tree(msgspec.json.decode(printed, type=TreeConfig))
    assert [agent.id for agent in tree.agents if agent.layer == 1] == ["for_2", "against_2"]
    async with serving(build_app(fake_service(FakeEngine(), tree), body_bytes=100_000)) as client:
        status, answer, _ = await client.chat(model="debate")
    assert status == 200
    assert answer["choices"][0]["message"]["content"]


@pytest.mark.usefixtures("graft_home")
async def test_a_router_over_two_vendors(tmp_path: Path) -> None:
    tokenizer = str(resolve("builtin:tiny-llama"))
    async with FakeOpenAI(complete, served=("small",)) as small, FakeOpenAI(complete, served=("large",)) as large:
        config = tmp_path / "router.json"
        out = await run(
            "two_vendors.py", str(config), f"small={small.url},{tokenizer}", f"large={large.url},{tokenizer}"
        )
        assert f"python -m shell_router --config {config}" in out
        async with open_app(load_json(config, RouterConfig)) as app, serving(app) as client:
            status, answer, _ = await client.chat(model="two_vendors", max_tokens=5)
    assert (status, answer["usage"]["completion_tokens"] > 5) == (200, True)
    assert len([body for body in small.requests if body["model"] == "small"]) >= 3
    assert any(body["model"] == "large" for body in large.requests)


async def test_a_batch_ends_with_its_budget(tmp_path: Path) -> None:
    questions = tmp_path / "questions.txt"
    questions.write_text("\n".join(f"what is {n}?" for n in range(20)))
    async with router() as client:
        whole = await run("batch.py", client.url, "t", str(questions), "1000000")
        cut = await run("batch.py", client.url, "t", str(questions), "1")
        failed = await run("batch.py", client.url, "no such tree", str(questions), "1")
    assert whole.splitlines()[-1].startswith("20 of 20 questions, ")
    assert cut.splitlines()[-1].startswith("4 of 20 questions, "), "those that were under way"
    assert failed.count("failed: HTTP 404") == 20
    assert failed.endswith("20 of 20 questions, 0 tokens\n")


async def test_layers_of_the_last_runs() -> None:
    async with router() as client:
        assert await run("layers.py", client.url) == "0 runs; medians\n"
        await client.chat(model="t")
        out = await run("layers.py", client.url)
    first, *layers = out.splitlines()
    assert first == "1 runs; medians"
    assert [line.partition(":")[0] for line in layers] == ["layer 0", "layer 1"]
