"""A router on a scripted engine and a real headless browser in front of it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from shell_router.app import build_app
from shell_router.auth import Guard
from shell_router.config import LimitsConfig
from shell_router.core.early_exit import BallotKind
from shell_router.core.tree import Tree, TreeConfig, build_tree
from shell_router.edge import Handler
from shell_router.service import Service
from tests.browser.paced import PacedEngine
from tests.fakes.assessor import FakeAssessor
from tests.shell_router.serving import fake_service, serving
from tests.shell_router.trees import AGGREGATE, PROPOSE, agent

pytest.importorskip("playwright.async_api", reason="playwright is not installed (the extra `dev`)")
from playwright.async_api import Browser, Page, async_playwright

LONGEST_MS = 10_000
"""For what is to be seen."""


def chromium() -> str | None:
    """The browser of this machine; None without one."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name)) is not None), None)


def tree_9_3_1() -> Tree:
    """As `cfgs/trees/tree_9_3_1.json`, for a scripted engine."""
    proposers = [agent(f"p{number}", max_new_tokens=40_000) for number in range(1, 10)]
    aggregators = [
        agent(f"a{number}", [f"p{each}" for each in range(3 * number - 2, 3 * number + 1)], max_new_tokens=40_000)
        for number in range(1, 4)
    ]
    root = agent("final", ["a1", "a2", "a3"], max_new_tokens=400_000)
    return build_tree(
        TreeConfig(
            name="tree_9_3_1",
            agents=(*proposers, *aggregators, root),
            templates={"propose": PROPOSE, "aggregate": AGGREGATE},
        )
    )


def says(agent_id: str, answer: str = "The answer is 51.") -> dict[str, str]:
    """Scripts in which all agents of the tree say much the same, and `agent_id` says `answer`."""
    names = [*(f"p{number}" for number in range(1, 10)), "a1", "a2", "a3", "final"]
    return {name: f"I am {name}. Seventeen times three is 51.\n" for name in names} | {agent_id: answer}


class AgreeingAssessor(FakeAssessor):
    """All answers are votes for the same."""

    async def ballots(self, answers: Sequence[str], kind: BallotKind) -> list[int | None]:
        return [0] * len(answers)


class Stage:
    """What a test plays on."""

    def __init__(self, url: str, service: Service, engine: PacedEngine, watching: list[web.Request]) -> None:
        self.url, self.service, self.engine = url, service, engine
        self._watching = watching

    @property
    def watched(self) -> bool:
        """Whether anybody watches."""
        return bool(self._watching)

    def cut(self) -> int:
        """Break all connections of those who watch; how many there were."""
        cut = list(self._watching)
        for request in cut:
            if request.transport is not None:
                request.transport.abort()
        return len(cut)


@asynccontextmanager
async def stage(
    scripts: Mapping[str, str],
    *,
    guard: Guard | None = None,
    token_s: float = 0.0,
    prefill_s: float = 0.0,
    finished_runs: int = 64,
) -> AsyncIterator[Stage]:
    """A router that serves `tree_9_3_1`."""
    engine = PacedEngine(scripts, token_s=token_s, prefill_s=prefill_s)
    service = fake_service(
        engine,
        tree_9_3_1(),
        assessor=AgreeingAssessor(),
        context_length=1_000_000,
        limits=LimitsConfig(finished_runs=finished_runs),
    )
    app = build_app(service, body_bytes=1_000_000, guard=guard)
    watching: list[web.Request] = []

    @web.middleware
    async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not request.path.endswith("/watch"):
            return await handler(request)
        watching.append(request)
        try:
            return await handler(request)
        finally:
            watching.remove(request)

    app.middlewares.append(note)
    async with serving(app) as client:
        yield Stage(client.url, service, engine, watching)


@asynccontextmanager
async def opened(browser: Browser, url: str, **context: Any) -> AsyncIterator[Page]:
    """A page of its own at `url`. What goes wrong in it fails the test."""
    found = await browser.new_context(**context)
    page = await found.new_page()
    page.set_default_timeout(LONGEST_MS)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))
    page.on(
        "console",
        lambda message: wrong.append(message.text) if "Content Security Policy" in message.text else None,
    )
    try:
        await page.goto(url)
        yield page
        assert wrong == []
    finally:
        await found.close()


@asynccontextmanager
async def launched() -> AsyncIterator[Browser]:
    """A headless browser."""
    path = chromium()
    assert path is not None
    async with async_playwright() as driver:
        # Root has no sandbox, and small containers have little shared memory.
        browser = await driver.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        try:
            yield browser
        finally:
            await browser.close()
