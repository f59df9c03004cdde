"""The page at `/ui` in a real browser: ask, watch, cancel, compare, reconnect. Nothing that an answer says is run."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import msgspec
import pytest
import pytest_asyncio

from shell_router.auth import Guard
from shell_router.core.early_exit import ExitOverride
from shell_router.core.messages import Message
from shell_router.options import RunOptions
from shell_router.prepare import RunRequest
from tests.browser.stage import chromium, launched, opened, says, stage
from tests.waiting import until

from playwright.async_api import Browser, Page, Route, expect  # isort:skip  (`stage` skips where it is missing)

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(chromium() is None, reason="no Chromium is installed here (Debian: apt-get install chromium)"),
    pytest.mark.asyncio(loop_scope="module"),
]

QUESTION = "What is 17 times 3?"
EVIL = (
    "<script>document.title = 'owned'</script>"
    "<img src=x onerror=\"document.title = 'owned'\">"
    "<a href=\"javascript:document.title='owned'\">click</a> [click](javascript:document.title='owned')"
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with launched() as found:
        yield found


async def ask(page: Page, question: str = QUESTION, button: str = "Ask") -> None:
    await page.get_by_label("Question").fill(question)
    await page.get_by_role("button", name=button, exact=True).click()


async def ended(page: Page, state: str = "done", runs: int = 1) -> None:
    await expect(page.locator(f'.run-head .state[data-state="{state}"]')).to_have_count(runs)


async def test_a_question_is_asked_and_its_tree_watched(browser: Browser) -> None:
    async with stage(says("final")) as play, opened(browser, f"{play.url}/ui") as page:
        going_on = asyncio.Event()
        play.engine.holds = {"p1": (2, going_on), "final": (1, asyncio.Event())}
        await ask(page)
        await expect(page.locator(".card")).to_have_count(13)
        assert [await page.locator(f".layer >> nth={layer} >> .card").count() for layer in range(3)] == [9, 3, 1]
        await expect(page.locator('[data-agent="p1"] .state')).to_contain_text("answering")
        await expect(page.locator('[data-agent="p1"] .tail')).to_have_text("I am p1. Sev", use_inner_text=True)
        await expect(page.locator('[data-agent="p2"] .state')).to_contain_text("done")
        await expect(page.locator('[data-agent="a1"]')).to_have_attribute(
            "aria-label", re.compile("waiting|prefilling")
        )
        going_on.set()
        await expect(page.locator('[data-agent="final"] .state')).to_contain_text("answering")
        await expect(page.locator(".answer .long-text").last).to_have_text("The an", use_inner_text=True)
        await expect(page.get_by_role("button", name="Cancel")).to_be_visible()
        play.engine.holds["final"][1].set()
        await ended(page)
        await expect(page.locator(".answer .long-text").last).to_have_text("The answer is 51.", use_inner_text=True)
        await expect(page.get_by_role("button", name="Cancel")).to_be_hidden()

        # One agent, by keyboard: its prompt is text with the slots marked.
        await page.locator('[data-agent="p1"]').focus()
        await page.keyboard.press("ArrowDown")
        await page.keyboard.press("Enter")
        panel = page.get_by_role("region", name="Agent a1")
        await expect(panel.locator(".prompt")).to_contain_text("Q: What is 17 times 3?")
        await expect(panel.locator("mark.slot")).to_have_count(3)
        shown = await panel.locator("mark.slot").all_text_contents()
        assert {each.partition("I am ")[0] for each in shown} == {f"answer of p{number}" for number in (1, 2, 3)}
        await expect(panel.locator(".facts")).to_contain_text("exposed prefill")

        # The timeline is a picture, and a table for those who do not see it.
        await page.get_by_text("As a table").click()
        await expect(page.locator(".timeline tbody tr")).to_have_count(13)
        canvas = page.locator(".timeline canvas")
        await canvas.focus()
        for pressed in "++0":
            await page.keyboard.press(pressed)
        await expect(canvas).to_have_attribute("aria-label", re.compile("spliced: done"))


async def test_a_run_is_cancelled(browser: Browser) -> None:
    async with stage(says("final")) as play, opened(browser, f"{play.url}/ui") as page:
        play.engine.holds = {"p1": (1, asyncio.Event())}
        await ask(page)
        await page.get_by_role("button", name="Cancel").click()
        await ended(page, "cancelled")
        await expect(page.get_by_role("alert").filter(has_text="the run was deleted")).to_be_visible()
        await until(lambda: play.engine.running == set())


async def test_a_stream_that_breaks_off_is_gone_on_with_and_loses_nothing(browser: Browser) -> None:
    long = "".join(f"line {number} of many\n" for number in range(400))
    async with stage(says("final", long), token_s=0.001) as play, opened(browser, f"{play.url}/ui") as page:
        shown = page.locator(".answer .long-text").last
        for line in (5, 60, 150):
            # Six bytes a delta.
            hold = asyncio.Event()
            before = play.engine.holds.get("final")
            play.engine.holds["final"] = (long.index(f"line {line} ") // 6 + 4, hold)
            if before is None:
                await ask(page)
            else:
                before[1].set()
            await expect(shown).to_contain_text(f"line {line} of")
            await until(lambda: play.watched)
            assert play.cut() == 1
        hold.set()
        await ended(page)
        await expect(shown).to_have_text(long)
        # Who comes back later sees the same.
        await page.reload()
        await ended(page)
        await expect(shown).to_have_text(long)


async def test_both_modes_are_compared_one_after_the_other(browser: Browser) -> None:
    async with stage(says("final"), token_s=0.002, prefill_s=0.02) as play, opened(browser, f"{play.url}/ui") as page:
        await ask(page, button="Compare both modes")
        await ended(page, runs=2)
        assert re.search(r"#/compare/run-[0-9a-f]+/run-[0-9a-f]+$", page.url)
        heads = page.locator(".compared thead th")
        await expect(heads).to_have_text(["", "blocking", "spliced", "second / first"])
        await expect(page.locator(".compared tbody tr").first).to_contain_text("end to end")
        await expect(page.locator(".compared tbody tr").nth(3)).to_contain_text("hidden prefill")
        first, second = (run.summary() for run in reversed(play.service.runs()))
        assert (first.mode, second.mode) == ("blocking", "spliced")
        assert first.created + (first.duration_s or 0) <= second.created
        await expect(page.locator(".timeline canvas")).to_have_attribute(
            "aria-label", re.compile(r"blocking: done.*spliced: done")
        )


async def test_an_exit_is_told_and_whom_it_spared(browser: Browser) -> None:
    async with stage(says("final")) as play:
        play.engine.holds = {f"p{number}": (1, asyncio.Event()) for number in (3, 6, 9)}
        run = play.service.start(
            RunRequest(
                tree="tree_9_3_1",
                conversation=(Message("user", QUESTION),),
                options=RunOptions(early_exit=ExitOverride(mode="vote", ballots="text")),
            )
        )
        async with opened(browser, f"{play.url}/ui/#/run/{run.head.id}") as page:
            await ended(page)
            exits = page.get_by_role("region", name="Early exits and votes")
            await expect(exits.locator('li[data-exits="true"]').first).to_contain_text("Not waited for: p")
            await expect(exits).to_contain_text("votes 2")
            await expect(page.locator('.card[data-state="cancelled"]').first).to_have_attribute(
                "aria-label", re.compile("p[369]: cancelled")
            )


async def test_a_run_that_is_not_there_is_said_to_be(browser: Browser) -> None:
    async with stage(says("final")) as play, opened(browser, f"{play.url}/ui/#/run/run-0") as page:
        await expect(page.get_by_role("alert").filter(has_text="there is no run 'run-0'")).to_be_visible()


async def test_what_an_answer_says_is_text(browser: Browser) -> None:
    scripts = dict.fromkeys(says("final"), EVIL)
    async with stage(scripts) as play, opened(browser, f"{play.url}/ui") as page:
        await ask(page, EVIL)
        await ended(page)
        await page.locator('[data-agent="a1"]').click()
        await expect(page.locator(".prompt mark")).to_have_count(3)
        assert await page.locator(".answer .long-text").last.text_content() == EVIL
        await page.goto(f"{play.url}/ui/#/runs")
        await expect(page.locator(".run-row")).to_have_count(1)
        assert await page.locator("main script, main img, main a[href^='javascript']").count() == 0
        assert await page.title() == "Runs · Graft"


async def test_the_policy_forbids_inline_script_and_markup_from_strings(browser: Browser) -> None:
    async with stage(says("final")) as play:
        found = await browser.new_context()
        page = await found.new_page()
        response = await page.goto(f"{play.url}/ui")
        assert response is not None
        policy = response.headers["content-security-policy"]
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        ran = await page.evaluate(
            """() => {
                const script = document.createElement("script");
                try { script.text = "window.owned = true"; document.body.append(script); } catch {}
                try { document.body.innerHTML = "<b>markup</b>"; } catch (error) { window.refused = error.name; }
                return [window.owned === true, window.refused];
            }"""
        )
        assert ran == [False, "TypeError"]
        await found.close()


async def test_a_key_is_asked_for_where_one_is_wanted(browser: Browser) -> None:
    async with stage(says("final"), guard=Guard("the-right-key")) as play, opened(browser, f"{play.url}/ui") as page:
        await expect(page.get_by_role("dialog")).to_contain_text("wants an API key")
        await page.locator("#key-input").fill("a-wrong-key")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("dialog")).to_contain_text("the API key is wrong")
        await page.locator("#key-input").fill("the-right-key")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("dialog")).to_be_hidden()
        await ask(page)
        await ended(page)
        await page.get_by_role("button", name="Forget the key").click()
        await expect(page.get_by_role("dialog")).to_be_visible()


async def test_a_thousand_runs_are_a_list_of_few_elements(browser: Browser) -> None:
    async with (
        stage(says("final", "short"), finished_runs=1000) as play,
        opened(browser, f"{play.url}/ui") as page,
    ):
        await ask(page)
        await ended(page)
        (run,) = play.service.runs()
        # Made here: a thousand runs of thirteen agents would take their time.
        summary = run.summary()

        async def listed(route: Route) -> None:
            many = [
                msgspec.structs.replace(summary, id=f"run-{number}", question=f"question {number}")
                for number in range(1000)
            ]
            await route.fulfill(body=msgspec.json.encode({"object": "list", "data": many}).decode())

        await page.route("**/v1/runs?**", listed)
        await page.goto(f"{play.url}/ui/#/runs")
        await expect(page.get_by_role("status").filter(has_text="1,000 runs of 1000")).to_be_visible()
        assert await page.locator(".run-row").count() < 60
        await page.locator(".run-row a").first.focus()
        await page.keyboard.press("End")
        await expect(page.locator(".run-row a:focus")).to_contain_text("question 999")
        await page.get_by_label("Search").fill("question 77")
        await expect(page.get_by_role("status").filter(has_text="19 runs of")).to_be_visible()
        await page.get_by_label("State").select_option("failed")
        await expect(page.get_by_role("status").filter(has_text="0 runs of")).to_be_visible()


async def test_an_answer_of_twenty_thousand_tokens_is_drawn_in_blocks(browser: Browser) -> None:
    words = "".join(f"word{number}" + ("\n" if number % 12 == 0 else " ") for number in range(20_000))
    async with stage(says("final", words)) as play, opened(browser, f"{play.url}/ui") as page:
        play.engine._at_once = 400
        await ask(page)
        await ended(page)
        shown = page.locator(".answer .long-text").last
        assert await shown.text_content() == words
        assert 20 < await shown.locator(".block").count() < 80
        # Who reads above is not taken away from it, and who is at the end stays there.
        assert await shown.evaluate("each => each.scrollTop + each.clientHeight >= each.scrollHeight - 30")


MARKDOWN = """## Clips

* in April **48**
* in May $\\frac{48}{2} = 24$

| month | clips |
|---|--:|
| April | 48 |

\\[
\\boxed{48 + 24 = 72}
\\]

See [more](https://example.org/clips).
"""


async def test_an_answer_is_formatted_and_may_be_had_as_text(browser: Browser) -> None:
    async with stage(says("final", MARKDOWN)) as play, opened(browser, f"{play.url}/ui") as page:
        await ask(page)
        await ended(page)
        shown = page.locator(".answer .long-text").last
        await expect(shown.locator("li")).to_have_count(2)
        await expect(shown.locator("h5")).to_have_text("Clips")
        await expect(shown.locator("td").last).to_have_css("text-align", "right")
        await expect(shown.locator("math")).to_have_count(2)
        # The browser lays it out: what is divided stands above what divides.
        above, below = [await shown.locator("mfrac > mn").nth(each).bounding_box() for each in (0, 1)]
        assert above is not None
        assert below is not None
        assert above["y"] + above["height"] <= below["y"] + 1
        await expect(shown.get_by_role("link")).to_have_attribute("rel", "noopener noreferrer")
        await page.get_by_label("Answers").select_option("text")
        await expect(shown).to_have_text(MARKDOWN)
        await expect(shown.locator("li, math, a")).to_have_count(0)
        await page.reload()
        await ended(page)
        await expect(page.get_by_label("Answers")).to_have_value("text")
        await expect(shown).to_have_text(MARKDOWN)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_fits_a_narrow_screen(browser: Browser, scheme: str) -> None:
    async with (
        stage(says("final")) as play,
        opened(browser, f"{play.url}/ui", viewport={"width": 360, "height": 740}, color_scheme=scheme) as page,
    ):
        await ask(page)
        await ended(page)
        for address in (page.url, f"{play.url}/ui/#/runs", f"{play.url}/ui/#/workers"):
            await page.goto(address)
            await expect(page.locator("main .panel").first).to_be_visible()
            wide = await page.evaluate("document.documentElement.scrollWidth")
            assert wide <= 360, address
        ground = await page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert (ground == "rgb(20, 23, 27)") is (scheme == "dark")
