"""The catalog's files, and that other places say the same."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from experiments.questions import CATALOG, QuestionsConfig
from experiments.questions.catalog import Entry, Package
from experiments.questions.pool import _INSTALL


def test_every_prompt_has_the_places_that_its_rows_fill() -> None:
    for entry in CATALOG.values():
        assert "{question}" in entry.prompt
        assert ("{choices}" in entry.prompt) is (entry.scorer == "letter") is bool(entry.fields.choices)
    assert CATALOG["mmlu"].fill(question="{choices}", choices="c").count("{choices}") == 1


def test_what_the_repository_installs_is_what_the_catalog_reads() -> None:
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


def test_the_scorer_that_is_told_to_be_installed_is_the_one_of_the_extra() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert _INSTALL["math"].removeprefix("pip install ") in project["optional-dependencies"]["benchmarks"]


def test_an_experiment_can_ask_for_what_is_in_the_catalog_and_for_nothing_else() -> None:
    for name in CATALOG:
        assert msgspec.convert({"source": name, "count": 1}, QuestionsConfig).source == name
    with pytest.raises(msgspec.ValidationError, match=r"trivia.*\$\.source"):
        msgspec.convert({"source": "trivia", "count": 1}, QuestionsConfig)


@pytest.mark.parametrize("change", [{"scorer": "guess"}, {"size": 0}, {"sise": 1}, {"offline": [{"in": "moon"}]}])
def test_a_file_that_is_wrong_is_refused(change: dict[str, Any]) -> None:
    good: dict[str, Any] = msgspec.to_builtins(CATALOG["gsm8k"])
    assert msgspec.convert(good, Entry) == CATALOG["gsm8k"]
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(good | change, Entry)
