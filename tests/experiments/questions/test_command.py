"""`graft questions`."""

from __future__ import annotations

import importlib.metadata

import pytest

from experiments.questions import CATALOG
from experiments.questions.command import main
from shell_router.config import ConfigError
from tests.experiments.questions.confidential import SECRETS, Hub


def test_list_names_every_benchmark_and_what_would_bring_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GRAFT_DATA", raising=False)
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(CATALOG)
    assert "gsm8k_sample: 48 questions of gsm8k, test: a part of 1,319 (gsm8k_sample, which ships with Graft)" in lines
    assert any(line.startswith("bbh: none of 6,511 questions here; set GRAFT_DATA ") for line in lines)


def test_show_prints_prompts_and_right_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "gsm8k_sample", "--count", "1"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("1 question of gsm8k, test: a part of 1,319 (gsm8k_sample, which ships with Graft)\n")
    assert "\n== gsm8k-test-0013\nMelanie is " in shown
    assert shown.endswith("\n-- answer: 18\n")


def test_show_fills_in_the_benchmarks_template(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        importlib.metadata.version("sgl-eval")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("sgl-eval is not installed")
    assert main(["show", "aime2025", "--start", "0", "--count", "1", "--source", "offline"]) == 0
    shown = capsys.readouterr().out
    assert "within \\boxed{}." in shown
    assert "-- answer: 70" in shown


def test_what_is_not_there_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAFT_DATA", raising=False)
    with pytest.raises(ConfigError, match="set GRAFT_DATA") as caught:
        main(["show", "bbh", "--source", "offline"])
    assert caught.value.exit_code == 2
    with pytest.raises(ConfigError, match="holds 48 questions, 2 from 47 on are asked for"):
        main(["show", "gsm8k_sample", "--start", "47"])


def test_of_a_confidential_benchmark_only_ids_are_shown(
    confidential_hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", "gpqa_diamond", "--source", "hub"]) == 0
    shown = capsys.readouterr().out
    assert confidential_hub.ids[0] in shown
    assert not [secret for secret in SECRETS if secret in shown]
