"""What a client asks of the root's answer, on real workers: JSON, biases, penalties, log-probabilities, responses."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from launch.cluster import Cluster
from shell_router.client import AsyncClient
from tests.engine.pair import EVERY_APPEND

pytestmark = pytest.mark.engine

QUESTION = "Is this a question?"
YES_OR_NO = {"type": "string", "enum": ["yes", "no"]}
AS_JSON: Any = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": YES_OR_NO}}


async def asked(cluster: Cluster, tree: str = "chain_2", **fields: Any) -> Any:
    async with openai.AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key="-", max_retries=0) as client:
        given: dict[str, Any] = {"max_tokens": 8, "temperature": 0} | fields
        messages: Any = [{"role": "user", "content": QUESTION}]
        return await client.chat.completions.create(model=tree, messages=messages, **given)


@pytest.mark.parametrize("mode", ["blocking", "spliced"])
async def test_a_schema_holds_the_root_in_either_mode(tiny_cluster: Cluster, mode: str) -> None:
    options = {"mode": mode, "chunks": EVERY_APPEND}
    answer = await asked(tiny_cluster, response_format=AS_JSON, extra_body={"graft": options})
    assert answer.choices[0].message.content in ('"yes"', '"no"')
    async with AsyncClient(tiny_cluster.url) as client:
        record = await client.record(answer.id)
    assert record.root.served_by == ("plain" if mode == "blocking" else "resend")
    assert record.agents[0].text not in ('"yes"', '"no"')


async def test_a_schema_that_is_none_is_told_and_the_workers_live(tiny_cluster: Cluster) -> None:
    wrong: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    with pytest.raises(openai.APIStatusError) as refused:
        await asked(tiny_cluster, response_format=wrong)
    assert refused.value.status_code == 400
    assert refused.value.param == "response_format"
    assert (await asked(tiny_cluster)).choices[0].message.content


async def test_a_bias_decides_and_a_penalty_counts(tiny_cluster: Cluster) -> None:
    """In spliced mode, whose root is committed in a session."""
    plain = await asked(tiny_cluster, logprobs=True)
    biased = await asked(tiny_cluster, logit_bias={"300": 100}, logprobs=True)
    tokens = [each.token for each in biased.choices[0].logprobs.content]
    assert len(tokens) == 8
    assert len(set(tokens)) == 1
    assert tokens != [each.token for each in plain.choices[0].logprobs.content]
    # Each time that it is there costs it 2 of its 100: the second time it may still win, against a bias of 99 not.
    both = await asked(
        tiny_cluster, logit_bias={"300": 100, "301": 99}, logprobs=True, frequency_penalty=2, presence_penalty=2
    )
    assert len({each.token for each in both.choices[0].logprobs.content}) == 2


async def test_log_probabilities_are_those_of_the_tokens(tiny_cluster: Cluster) -> None:
    answer = await asked(tiny_cluster, logprobs=True, top_logprobs=3)
    told = answer.choices[0].logprobs.content
    assert len(told) == 8
    for each in told:
        values = [top.logprob for top in each.top_logprobs]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert each.logprob == pytest.approx(values[0], abs=1e-4), "greedy: the likeliest"
    shown = [each.token for each in told if "\ufffd" not in each.token]
    assert all(token in answer.choices[0].message.content for token in shown)


async def test_responses_stream_from_real_workers(tiny_cluster: Cluster) -> None:
    async with openai.AsyncOpenAI(base_url=f"{tiny_cluster.url}/v1", api_key="-", max_retries=0) as client:
        stream = await client.responses.create(model="chain_2", input=QUESTION, max_output_tokens=8, stream=True)
        events = [event async for event in stream]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last = events[-1]
    assert last.type in ("response.completed", "response.incomplete")
    assert last.response.output_text == text != ""
