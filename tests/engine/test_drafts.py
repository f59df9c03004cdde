"""Drafts on real workers: they change no answer, they save steps, and the workers say so."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from launch.cluster import Cluster
from sglang_ext import protocol
from sglang_ext.protocol import Drafts, drafts_to
from tests.engine.pair import Pair, Session, random_prompt, until_nothing_is_held
from tests.engine.test_sessions import pair_of

pytestmark = pytest.mark.engine

LONG = {"max_new_tokens": 48, "temperature": 0, "ignore_eos": True}
OFF = drafts_to(Drafts(off=True))


async def status(pair: Pair) -> protocol.DraftsStatus:
    drafts = (await pair.status(pair.decode)).drafts
    assert drafts is not None
    assert (await pair.status(pair.prefill)).drafts is None
    return drafts


def steps(answer: dict[str, Any]) -> int:
    count: int = answer["meta_info"]["spec_verify_ct"]
    return count


async def test_a_sibling_that_writes_the_same_saves_steps(tiny_cluster: Cluster) -> None:
    async with pair_of(tiny_cluster) as pair:
        prompt = random_prompt(random.Random(1), 100, 100)
        before = (await status(pair)).counters
        plain = await pair.ask(prompt, sampling_params={**LONG, "custom_params": OFF})
        # Each step of a request without drafts is one token; the first is the prefill worker's.
        assert steps(plain) == 47
        grouped = {**LONG, "custom_params": drafts_to(Drafts(group="twins"))}
        first = await pair.ask(prompt, sampling_params=grouped)
        second = await pair.ask(prompt, sampling_params=grouped)
        session = Session(pair, max_prompt_tokens=100)
        await session.open(prompt[:60])
        third = await session.commit(prompt[60:], sampling_params=grouped)
        assert plain["output_ids"] == first["output_ids"] == second["output_ids"] == third["output_ids"]
        assert steps(second) < 30
        assert steps(third) < 30
        meta = third["meta_info"]
        assert meta["spec_num_correct_drafts"] == 47 - steps(third)
        assert meta["spec_num_proposed_drafts"] >= meta["spec_num_correct_drafts"]
        after = (await status(pair)).counters
        assert after.without.get("off", 0) == before.without.get("off", 0) + 1
        assert after.requests == before.requests + 3
        assert after.accepted - before.accepted >= 2 * 17
        await until_nothing_is_held(pair)


async def test_a_predicted_answer_saves_steps(tiny_cluster: Cluster) -> None:
    """Right, wrong and half right."""
    async with pair_of(tiny_cluster) as pair:
        draw = random.Random(5)
        for _ in range(3):
            prompt = random_prompt(draw, 50, 100)
            plain = await pair.ask(prompt, sampling_params={**LONG, "custom_params": OFF})
            answer = plain["output_ids"]
            strange = random_prompt(draw, 48, 48)
            half = [*answer[:20], *strange[20:24], *answer[24:]]
            for predicted, most in ((answer, 10), (half, 24), (strange, 47), ([*answer, *strange], 10)):
                custom = drafts_to(Drafts(predicted=tuple(predicted)))
                found = await pair.ask(prompt, sampling_params={**LONG, "custom_params": custom})
                assert found["output_ids"] == answer
                assert steps(found) <= most
        await until_nothing_is_held(pair)


async def test_answers_end_where_they_should(tiny_cluster: Cluster) -> None:
    """A stop token, a stop string or the limit in the middle of accepted drafts."""
    async with pair_of(tiny_cluster) as pair:
        draw = random.Random(2)
        for number in range(6):
            prompt = random_prompt(draw, 50, 100)
            whole = await pair.ask(prompt, sampling_params={**LONG, "custom_params": OFF})
            for name, more in (
                ("token", {"stop_token_ids": [whole["output_ids"][draw.randrange(5, 40)]]}),
                ("limit", {"max_new_tokens": draw.randrange(2, 40)}),
                ("string", {"stop": whole["text"][20:24]}),
            ):
                plain = await pair.ask(prompt, sampling_params={**LONG, **more, "custom_params": OFF})
                group = {"custom_params": drafts_to(Drafts(group=f"ends-{number}"))}
                await pair.ask(prompt, sampling_params={**LONG, **group})
                drafted = await pair.ask(prompt, sampling_params={**LONG, **more, **group})
                assert drafted["output_ids"] == plain["output_ids"], name
                assert drafted["text"] == plain["text"], name
                assert drafted["meta_info"]["finish_reason"] == plain["meta_info"]["finish_reason"], name
        await until_nothing_is_held(pair)


async def test_log_probabilities_are_the_same(tiny_cluster: Cluster) -> None:
    async with pair_of(tiny_cluster) as pair:
        prompt = random_prompt(random.Random(3), 80, 80)
        asked = {"return_logprob": True, "top_logprobs_num": 3}
        plain = await pair.ask(prompt, sampling_params={**LONG, "custom_params": OFF}, **asked)
        group = {**LONG, "custom_params": drafts_to(Drafts(group="logprobs"))}
        await pair.ask(prompt, sampling_params=group)
        drafted = await pair.ask(prompt, sampling_params=group, **asked)
        assert steps(drafted) < 30
        for name in ("output_token_logprobs", "output_top_logprobs"):
            wanted, found = plain["meta_info"][name], drafted["meta_info"][name]
            assert len(found) == len(wanted) == 48
            for one, other in zip(wanted, found, strict=True):
                rows = ([one], [other]) if name == "output_token_logprobs" else (one, other)
                assert [row[1] for row in rows[1]] == [row[1] for row in rows[0]]
                assert [row[0] for row in rows[1]] == pytest.approx([row[0] for row in rows[0]], abs=1e-4)


async def test_grammars_penalties_and_sampling_beside_drafts(tiny_cluster: Cluster) -> None:
    """What no draft can be for is decoded as ever, whoever decodes beside it; seeds are no part of it."""
    async with pair_of(tiny_cluster) as pair:
        draw = random.Random(4)
        special: list[dict[str, Any]] = [
            {"frequency_penalty": 0.7},
            {"repetition_penalty": 1.3},
            {"min_new_tokens": 20, "ignore_eos": False},
            {"regex": "[a-f]{30,40}", "ignore_eos": False},
            {"logit_bias": {"7": 4.0}},
        ]
        prompts = [random_prompt(draw, 30, 60) for _ in special]
        alone = [
            await pair.ask(prompt, sampling_params={**LONG, **more, "custom_params": OFF})
            for prompt, more in zip(prompts, special, strict=True)
        ]
        twin = random_prompt(draw, 60, 60)
        group = {**LONG, "custom_params": drafts_to(Drafts(group="beside"))}
        expected = (await pair.ask(twin, sampling_params=group))["output_ids"]
        warm = {**LONG, "temperature": 0.8, "top_p": 0.9, "custom_params": drafts_to(Drafts(group="beside"))}
        answers = await asyncio.gather(
            *(
                pair.ask(prompt, sampling_params={**LONG, **more})
                for prompt, more in zip(prompts, special, strict=True)
            ),
            *(pair.ask(twin, sampling_params=group) for _ in range(3)),
            *(pair.ask(twin, sampling_params=warm) for _ in range(3)),
        )
        for found, wanted in zip(answers, alone, strict=False):
            assert found["output_ids"] == wanted["output_ids"]
        for found in answers[len(special) : len(special) + 3]:
            assert found["output_ids"] == expected
        assert all(len(found["output_ids"]) == 48 for found in answers[-3:])
        await until_nothing_is_held(pair)
