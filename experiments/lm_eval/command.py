"""`graft bench lm-eval --url URL --tree TREE`: what lm-evaluation-harness makes of a tree's answers.

The stock harness asks a few of our questions through OpenAI's API and scores them; our scorer judges the same answers.
Tables go to stdout, whose last line is one JSON document.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec

from experiments.kernel.command import EXIT_FAILED
from experiments.lm_eval.harness import Api, Sample, evaluate, install, write_task
from experiments.questions import CATALOG, Question, QuestionsConfig, QuestionSource, open_questions, select
from launch import arguments as kinds
from shell_router.client.key import KEY_VARIABLE, client_key
from shell_router.config import ConfigError
from shell_router.documents import DocumentError, decode_document
from shell_router.errors import GraftError
from shell_router.options import RunOptions


class Verdicts(msgspec.Struct, frozen=True, kw_only=True):
    """One answer, judged twice."""

    id: str
    expected: str
    answer: str
    harness_number: str
    harness_right: bool
    our_number: str | None
    our_right: bool


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint."""

    api: Api
    count: int
    answered: int
    harness_right: int
    our_right: int
    agree: bool
    """On every item."""
    items: tuple[Verdicts, ...]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The last line of stdout."""

    ok: bool
    tree: str
    questions: str
    """Which, of which source: a sample is not the benchmark."""
    comparisons: tuple[Comparison, ...]


def compare(api: Api, source: QuestionSource, questions: Sequence[Question], samples: Sequence[Sample]) -> Comparison:
    """Judge the answers that the harness got. Raises `GraftError` when it has not judged all questions."""
    judged = {sample.id: sample for sample in samples}
    if missing := [question.id for question in questions if question.id not in judged]:
        raise GraftError(f"the harness did not judge {', '.join(missing)}")
    items = tuple(_verdicts(source, question, judged[question.id]) for question in questions)
    return Comparison(
        api=api,
        count=len(items),
        answered=sum(1 for item in items if item.answer),
        harness_right=sum(item.harness_right for item in items),
        our_right=sum(item.our_right for item in items),
        agree=all(item.harness_right is item.our_right for item in items),
        items=items,
    )


def main(argv: Sequence[str]) -> int:
    """Compare as the command line says; answers 0 when both agree on every item and each has an answer, else 1.

    Raises `GraftError`: `ConfigError` for a wrong command line, another when the harness failed.
    """
    arguments = _parser().parse_args(argv)
    asked = QuestionsConfig(source=arguments.source, start=arguments.start, count=arguments.count)
    with open_questions(asked) as source:
        return _compare_all(arguments, source)


def _compare_all(arguments: argparse.Namespace, source: QuestionSource) -> int:
    questions = select(source.questions, arguments.source, start=arguments.start, count=arguments.count)
    graft = _graft(arguments.graft)
    key = client_key()
    python = install()
    comparisons: list[Comparison] = []
    with tempfile.TemporaryDirectory(prefix="graft-lm-eval-") as name:
        folder = Path(name)
        write_task(folder, questions, graft)
        for api in arguments.api or get_args(Api):
            samples = evaluate(
                python, folder, arguments.url, arguments.tree, api,
                max_tokens=arguments.max_tokens, timeout_s=arguments.timeout, api_key=key,
            )  # fmt: skip
            comparisons.append(compare(api, source, questions, samples))
            print(_format(comparisons[-1]) + "\n", flush=True)
    report = Report(
        ok=all(each.agree and each.answered == each.count for each in comparisons),
        tree=arguments.tree,
        questions=f"{source.origin.part(len(questions))}, from {arguments.start} on",
        comparisons=tuple(comparisons),
    )
    print(msgspec.json.encode(report).decode(), flush=True)
    return 0 if report.ok else EXIT_FAILED


def _verdicts(source: QuestionSource, question: Question, sample: Sample) -> Verdicts:
    score = source.score(question, sample.answer)
    return Verdicts(
        id=question.id,
        expected=question.answer,
        answer=sample.answer,
        harness_number=sample.number,
        harness_right=sample.right,
        our_number=score.extracted,
        our_right=score.correct,
    )


def _format(comparison: Comparison) -> str:
    lines = [
        f"{comparison.api}: {comparison.answered} of {comparison.count} answered, right by the harness "
        f"{comparison.harness_right}, by us {comparison.our_right}"
    ]
    for item in comparison.items:
        verdict = "agree" if item.harness_right is item.our_right else "DISAGREE"
        lines.append(
            f"  {item.id}  expected {item.expected}  harness {item.harness_number}  we {item.our_number}  {verdict}"
        )
    return "\n".join(lines)


def _graft(text: str) -> dict[str, Any]:
    try:
        document = text.encode(errors="surrogateescape")
        # What the router would refuse in each of the runs.
        decode_document(document, RunOptions)
        return msgspec.json.decode(document, type=dict[str, Any])
    except DocumentError as error:
        raise ConfigError(f"--graft {text}: {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = kinds.Parser(
        prog="graft bench lm-eval",
        description="Let lm-evaluation-harness ask a tree, and compare its score with ours.",
        epilog=f"A shell router that wants an API key is sent that of the environment variable {KEY_VARIABLE}.",
    )
    parser.add_argument("--url", type=kinds.url, required=True, help="base URL of the shell router")
    parser.add_argument("--tree", type=kinds.words, required=True, help="which of its trees is asked")
    parser.add_argument("--api", action="append", choices=get_args(Api), help="endpoint; default: both")
    # The harness's task is that of GSM8K.
    sources = [name for name, entry in CATALOG.items() if entry.scorer == "number"]
    parser.add_argument("--source", default="gsm8k_sample", choices=sources, help="of the questions (gsm8k_sample)")
    parser.add_argument("--start", type=kinds.index, default=0, help="first question (0)")
    parser.add_argument("--count", type=kinds.count, default=4, help="how many (4)")
    parser.add_argument("--max-tokens", type=kinds.count, default=256, help="most tokens of the root's answer (256)")
    parser.add_argument("--graft", default="{}", metavar="JSON", help="our own options, sent with each request")
    parser.add_argument(
        "--timeout", type=kinds.seconds, default=1800.0, help="seconds that one pass of the harness may take"
    )
    return parser
