"""`graft up` whole: a real launcher in the background and a real shell router, before a stand-in for a model's server.

No worker starts, so no checkpoint is needed but a tokenizer.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import psutil
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from launch import process, state
from launch.cluster import ROUTER_CONFIG
from launch.state import ProcessState
from launch.supervisor import LAUNCHER_LOG
from tests.fakes.openai import FakeOpenAI, complete
from tests.waiting import is_gone, until

pytestmark = pytest.mark.heavy

ROUTER = "shell-router"


@pytest.fixture
async def cfg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Path]:
    """A cluster of a shell router alone; its tree has one agent, whose model somebody else serves."""
    monkeypatch.setenv("GRAFT_HOME", str(tmp_path / "home"))
    checkpoint = tmp_path / "tokenizer"
    words = {f"w{n}": n for n in range(100)} | {"<unk>": 100}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unk>")))
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    tokenizer.save_pretrained(checkpoint)
    (checkpoint / "config.json").write_text("{}")
    agent = {"id": "a", "model": "m", "template": "t"}
    tree = {"name": "one", "templates": {"t": {"user": "<|question|>"}}, "agents": [agent]}
    (tmp_path / "tree.json").write_text(json.dumps(tree))
    async with FakeOpenAI(complete) as server:
        model = {"name": "m", "path": str(checkpoint), "openai": {"url": server.url}}
        document = {"name": "c", "models": [model], "shell_router": {"trees": ["tree.json"]}}
        path = tmp_path / "c.json"
        path.write_text(json.dumps(document))
        yield path
    left = await asyncio.create_subprocess_exec(*graft("down"), stdout=-3, stderr=-3)
    await left.wait()


def graft(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "graft", *arguments]


async def run(*arguments: str) -> tuple[int | None, str, str]:
    """Exit code, stdout and stderr of a `graft` command."""
    command = await asyncio.create_subprocess_exec(*graft(*arguments), stdout=-1, stderr=-1)
    out, err = await command.communicate()
    return command.returncode, out.decode(), err.decode()


def router() -> ProcessState:
    found = state.read("c")
    assert found is not None
    (one,) = found.processes
    return one


def kill(one: ProcessState) -> None:
    psutil.Process(one.id.pid).children()[0].kill()


async def served(url: str) -> list[str]:
    async with aiohttp.ClientSession() as client, client.get(f"{url}/v1/models") as reply:
        return [model["id"] for model in (await reply.json())["data"]]


async def test_of_two_starts_at_once_one_is_up_and_what_dies_in_it_is_back(cfg: Path, tmp_path: Path) -> None:
    starts = await asyncio.gather(*(run("up", str(cfg), "--detach") for _ in range(2)))
    (code, out, said), (refused, nothing, why) = sorted(starts, key=lambda each: each[0] or 0)
    found = state.read("c")
    assert found is not None
    assert (code, out) == (0, f"cluster c is ready at {found.url} (logs in {found.run_dir})\n")
    # That it is ready is said once. The shell router is ready, too.
    assert [line for line in said.splitlines() if "ready" in line] == [
        line for line in said.splitlines() if ROUTER in line
    ]
    assert refused in (1, 2)
    assert (nothing, "cluster c is already up" in why) == ("", True)
    # The other has a folder of its own, if it came as far.
    logs = sorted((tmp_path / "home" / "logs").iterdir())
    assert len(logs) == (2 if refused == 1 else 1)
    assert Path(found.run_dir) in logs

    before = router()
    assert await served(before.url) == ["one"]
    kill(before)
    await until(lambda: router().restarts == 1 and router().ready, 60.0)
    assert router().url == before.url
    assert await served(before.url) == ["one"]
    code, out, _ = await run("status")
    assert code == 0
    assert out.startswith(f"cluster c: ready at {found.url}; ")
    assert f"  {ROUTER} died with exit code 137 (SIGKILL" in out
    assert ", restarted once; the end of " in out
    launcher_log = (Path(found.run_dir) / LAUNCHER_LOG).read_text()
    assert f"graft: {ROUTER} is up again [" in launcher_log
    assert await run("down") == (0, "cluster c is down\n", "")


async def test_one_that_cannot_come_back_leaves_word(cfg: Path, tmp_path: Path) -> None:
    code, _, said = await run("up", str(cfg), "--detach", "--run-dir", str(tmp_path / "logs"))
    assert code == 0, said
    found = state.read("c")
    assert found is not None
    (tmp_path / "logs" / ROUTER_CONFIG).write_text("{")
    kill(router())
    await until(lambda: is_gone(found.launcher.pid), 60.0)
    assert process.members(frozenset(one.id.pid for one in found.processes)) == set()
    code, out, _ = await run("status", "c")
    assert code == 1
    assert out.startswith("cluster c: it broke down at ")
    assert f"{ROUTER} died 3 times in a row before it was ready; the last time it died with exit code 2" in out
    # Why it could not start.
    assert ROUTER_CONFIG in out.splitlines()[-1]
    assert (await run("ask", "why?"))[0] == 2
    assert await run("down") == (0, "cluster c is down\n", "")
    assert await run("status") == (0, "no cluster is up\n", "")


async def test_without_restarts_the_first_death_is_the_last(cfg: Path, tmp_path: Path) -> None:
    launcher = await asyncio.create_subprocess_exec(
        *graft("up", str(cfg), "--no-restart", "--run-dir", str(tmp_path / "logs")), stdout=-1, stderr=-1
    )
    assert launcher.stdout is not None
    assert (await launcher.stdout.readline()).startswith(b"cluster c is ready at ")
    kill(router())
    _, told = await launcher.communicate()
    assert launcher.returncode == 1
    assert f"graft: {ROUTER} died with exit code 137 (SIGKILL" in told.decode()
    code, out, _ = await run("status")
    assert code == 1
    assert "it broke down at " in out


async def test_nothing_outlives_a_launcher_that_is_killed_amid_a_restart(cfg: Path, tmp_path: Path) -> None:
    code, _, said = await run("up", str(cfg), "--detach", "--run-dir", str(tmp_path / "logs"))
    assert code == 0, said
    found = state.read("c")
    assert found is not None
    kill(router())
    await until(lambda: router().restarts == 1, 30.0, every_s=0.01)
    groups = frozenset({router().id.pid, found.processes[0].id.pid})
    assert process.members(groups)
    os.kill(found.launcher.pid, signal.SIGKILL)
    await until(lambda: not process.members(groups), 30.0)
    code, out, _ = await run("status")
    assert code == 1
    assert out.startswith("cluster c: its launcher died; ")
