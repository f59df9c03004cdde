"""Tokens per step, counted on answers that are known."""

import json
from pathlib import Path

import msgspec
import pytest

from experiments.drafts import offline
from experiments.drafts.contenders import CONTENDERS, prompt_lookup, suffix
from experiments.drafts.texts import Written, read
from shell_router.config import ConfigError
from tests.experiments.records import make_record

COPY = Written("root", (50, 51, 1, 2, 3, 4, 5, 6, 7, 8, 52), ((2, 10),), (1, 2, 3, 4, 5, 6, 7, 8, 9))
NEW = Written("proposers", (50, 51, 52), (), (1, 2, 3, 4, 5, 6))


def steps(contender: str, limit: int, *layer: Written) -> int:
    (count,) = offline.count(contender, CONTENDERS[contender], limit, [[layer]])
    assert count.tokens == sum(len(each.answer) - 1 for each in layer)
    assert count.tokens - count.steps == count.accepted <= count.drafted
    return count.steps


@pytest.mark.parametrize("contender", CONTENDERS)
def test_what_copies_nothing_takes_a_step_for_each_token(contender: str) -> None:
    assert steps(contender, 8, NEW) == 5


def test_a_copy_takes_a_step_for_each_draft() -> None:
    assert steps("graft", 8, COPY) == 1  # the first token, of prefill, is found in the precursor's answer
    assert steps("graft", 3, COPY) == 2
    assert steps("prompt lookup, 2 to 1 (transformers)", 8, COPY) == 1
    assert steps("prompt lookup, 5 to 2 (vLLM)", 8, COPY) == 2
    assert steps("suffix decoding", 8, COPY) == 3  # 1, then 3, then 7 tokens match, and are followed by as many


def test_siblings_draft_for_each_other() -> None:
    ahead = Written("proposers", (50, 60, 61, 60), (), (60, 61, 60, 1, 2, 3, 4, 5, 6, 7))
    behind = Written("proposers", (50,), (), (8, 9, 10, 11, 1, 2, 3, 4, 5, 6, 7, 12))
    for contender in ("graft", "suffix decoding"):
        assert steps(f"{contender}, siblings", 8, ahead, behind) < steps(contender, 8, ahead, behind)


def test_prompt_lookup_takes_the_earliest_place_of_the_longest_match() -> None:
    (drafter,) = prompt_lookup(3, 1)([Written("root", (1, 2, 9, 3, 1, 2, 8, 3, 1, 2, 7, 0, 1, 2), (), (1,))])
    assert drafter.draft(2) == [9, 3]
    drafter.extend([7, 0, 1, 2])
    assert drafter.draft(2) == [7, 0]


def test_suffix_decoding_takes_the_likeliest_continuation() -> None:
    (drafter,) = suffix(siblings=False)([Written("root", (1, 2, 9, 0, 1, 2, 8, 5, 1, 2, 8, 6, 1, 2), (), (1,))])
    assert list(drafter.draft(8)) == [8, 5]


def test_layers_and_spans_are_read_from_a_folder_of_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = make_record("spliced", layers=(2, 1))
    answers = {"p1": (7, 8, 9, 2), "p2": (5, 6), "a1": (7, 8, 9)}
    agents = tuple(
        msgspec.structs.replace(
            agent,
            output_ids=answers[agent.id],
            prompt_ids=(0, 7, 8, 9, 1, 5, 6, 3) if agent.precursors else (0, 1),
        )
        for agent in record.agents
    )
    record = msgspec.structs.replace(record, agents=agents)
    (tmp_path / "runs.jsonl").write_bytes(msgspec.json.encode({"record": record}) + b'\n{"record": null}\n')
    ((proposers, (root,)),) = read(tmp_path)
    assert [each.layer for each in (*proposers, root)] == ["proposers", "proposers", "root"]
    assert root.spans == ((1, 4), (5, 7))  # the first answer without the token that ended it
    assert offline.main([str(tmp_path)]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["runs"] == 1
    assert len(report["counts"]) == 2 * len(CONTENDERS) * len(offline.LIMITS)


def test_a_folder_without_runs_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        offline.main([str(tmp_path)])
    assert "runs.jsonl" in capsys.readouterr().err
    (tmp_path / "runs.jsonl").write_text('{"record": null}\n')
    with pytest.raises(ConfigError, match="there is no run in it"):
        read(tmp_path)
