"""`python -m tests.browser.pictures FOLDER [--url URL]`: the pictures of docs/ui.md."""

from __future__ import annotations

import argparse
import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from playwright.async_api import FloatRect, Page

from tests.browser.stage import launched, opened, says, stage

QUESTION = "Natalia sold 48 clips in April and half as many in May. How many did she sell altogether?"
LONGEST_MS = 600_000
"""For two runs of a small model on two cores."""


async def draw(url: str, folder: Path) -> None:
    """Both pictures."""
    async with launched() as browser, opened(browser, f"{url}/ui/", viewport={"width": 1240, "height": 740}) as page:
        page.set_default_timeout(LONGEST_MS)
        await page.locator("#tree").select_option("tree_9_3_1")
        await page.locator("#question").fill(QUESTION)
        await draw_run(page, folder)
        await page.locator('.run-head .state[data-state="done"]').wait_for()
        await draw_comparison(page, folder)


async def draw_run(page: Page, folder: Path) -> None:
    """A run whose aggregators prefill ahead."""
    await page.get_by_role("button", name="Ask", exact=True).click()
    await page.locator('.card[data-agent="p1"]').click()
    ahead = page.locator('.layer:nth-child(2) .card[data-state="appending"] .figures')
    await ahead.filter(has_text=re.compile("hidden|[1-9][0-9]* tok ahead")).first.wait_for()
    await page.wait_for_timeout(1000)
    await page.screenshot(path=folder / "ui_run.png")


async def draw_comparison(page: Page, folder: Path) -> None:
    """The timelines of both modes."""
    await page.get_by_role("button", name="Compare both modes").click()
    await page.locator('.run:nth-of-type(2) .run-head .state[data-state="done"]').wait_for()
    # The timelines are asked for once more when both have ended.
    await page.wait_for_timeout(2500)
    await page.screenshot(path=folder / "ui_compare.png", full_page=True, clip=await _around(page))


async def _around(page: Page) -> FloatRect:
    """The comparison's table and its timelines."""
    first = await page.locator(".compare > .panel").nth(0).bounding_box()
    last = await page.locator(".compare > .panel").nth(1).bounding_box()
    assert first is not None
    assert last is not None
    top = await page.evaluate("scrollY")
    return {
        "x": first["x"] - 12,
        "y": first["y"] + top - 12,
        "width": first["width"] + 24,
        "height": last["y"] + last["height"] - first["y"] + 24,
    }


@asynccontextmanager
async def _router(url: str | None) -> AsyncIterator[str]:
    """The URL of the router that is asked: `url`, or a scripted engine's, whose times mean nothing."""
    if url is not None:
        yield url
        return
    scripts = dict.fromkeys(says("final"), "She sold 48 clips in April, and half of them, 24, in May: 72 altogether.\n")
    async with stage(scripts, token_s=0.05, prefill_s=1.2) as play:
        yield play.url


async def main(folder: Path, url: str | None) -> None:
    async with _router(url) as asked:
        await draw(asked, folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--url", help="a router that serves tree_9_3_1 (default: one on a scripted engine)")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.folder, arguments.url))
