"""`graft score --tree TREE FOLDER... --out FILE`: a table of what the members of a pool have answered.

Each FOLDER is one of `graft run`; what members answered there is judged by the benchmark's scorer. `--url` adds what
clients have said of the runs of a router (`POST /v1/runs/{id}/feedback`). `--votes` adds answers that nobody judged and
that were voted on (early exit by `vote`): right is what more than half concluded, and it counts by half. The table goes
to FILE, a summary to stdout, whose last line is one JSON document. `--head MODEL` also trains a classifier over this
embedding model for each member of which the table has rows enough (`shell_router.assess.training`); it is in the table.

Exit codes: 0 written, 1 the router does not answer, 2 wrong command line, or nothing to be learnt, 130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from experiments.kernel.folder import write_document
from experiments.kernel.tables import align
from experiments.scores.observed import Observation, at_router, in_folder, models_of
from launch import arguments as kinds
from launch.checkpoint import resolve
from shell_router.client.key import KEY_VARIABLE, client_key
from shell_router.config import ConfigError
from shell_router.scores import MOST_ROWS, ScoreHead, ScoreRow, ScoreTable


class MemberSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A member in a table."""

    agent: str
    model: str
    answers: int
    mean: float
    """Of their scores, each by its weight."""
    brier: float | None = None
    """Of its trained head; None without one."""
    brier_constant: float | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What was written."""

    table: str
    tree: str
    rows: int
    members: tuple[MemberSummary, ...]


def main(argv: Sequence[str]) -> int:
    """Make a table as the command line says. Raises `ConfigError`, `ClientError`."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if not arguments.folders and arguments.url is None:
        parser.error("name folders of `graft run`, or a router with --url")
    table = make_table(arguments.tree, _observe(arguments))
    if arguments.head is not None:
        table = msgspec.structs.replace(table, head=trained(table, resolve(arguments.head)))
    write_document(arguments.out, table)
    report = Report(table=str(arguments.out), tree=table.tree, rows=len(table.rows), members=_summaries(table))
    rows = [["agent", "model", "answers", "mean score", "head: Brier score (of the mean)"]]
    rows += [[each.agent, each.model, str(each.answers), f"{each.mean:.3f}", _head(each)] for each in report.members]
    print(align(rows))
    print("\n" + msgspec.json.encode(report).decode(), flush=True)
    return 0


def make_table(tree: str, observations: Sequence[Observation]) -> ScoreTable:
    """Raises `ConfigError` when there is nothing to be learnt, or too much for one table."""
    if not observations:
        raise ConfigError(f"no run tells what a member of a pool of tree {tree!r} has answered")
    if len(observations) > MOST_ROWS:
        raise ConfigError(f"{len(observations):,} runs; a table has {MOST_ROWS:,} rows at most")
    rows = tuple(
        ScoreRow(question=each.question, scores=each.scores, weight=each.weight)
        for each in observations
        # Nothing is like an empty question.
        if each.question
    )
    if not rows:
        raise ConfigError(f"all questions of tree {tree!r} are empty")
    return ScoreTable(tree=tree, models=models_of(observations), rows=rows)


def trained(table: ScoreTable, embedding: str) -> ScoreHead:
    """The head of `table` over the embedding model at a path, trained in a process of its own. Raises `ConfigError`."""
    finished = subprocess.run(
        [sys.executable, "-m", "shell_router.assess.training", embedding],
        input=msgspec.json.encode(table),
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    if finished.returncode:
        why = finished.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"exit {finished.returncode}"]
        raise ConfigError(f"--head: {embedding}: {why[0]}")
    return msgspec.json.decode(finished.stdout, type=ScoreHead)


def _head(member: MemberSummary) -> str:
    return "-" if member.brier is None else f"{member.brier:.4f} ({member.brier_constant:.4f})"


def _observe(arguments: argparse.Namespace) -> list[Observation]:
    found = [one for folder in arguments.folders for one in in_folder(folder, arguments.tree, votes=arguments.votes)]
    if arguments.url is not None:
        found += asyncio.run(at_router(arguments.url, arguments.tree, client_key(), votes=arguments.votes))
    return found


def _summaries(table: ScoreTable) -> tuple[MemberSummary, ...]:
    summaries: list[MemberSummary] = []
    for agent, model in table.models.items():
        known = [(row.scores[agent], row.weight) for row in table.rows if agent in row.scores]
        mean = sum(score * weight for score, weight in known) / sum(weight for _, weight in known)
        head = table.head.members.get(agent) if table.head is not None else None
        summaries.append(
            MemberSummary(
                agent=agent,
                model=model,
                answers=len(known),
                mean=mean,
                brier=head.brier if head is not None else None,
                brier_constant=head.brier_constant if head is not None else None,
            )
        )
    return tuple(summaries)


def _parser() -> argparse.ArgumentParser:
    parser = kinds.Parser(
        prog="graft score",
        description="Make a table of what the members of a tree's pool have answered, for its scorer.",
        epilog=f"A shell router that wants an API key is sent that of the environment variable {KEY_VARIABLE}.",
    )
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="folder of `graft run`")
    parser.add_argument("--tree", required=True, help="name of a tree with a pool")
    parser.add_argument("--url", type=kinds.url, help="and what was said of the runs of this shell router")
    parser.add_argument("--votes", action="store_true", help="and answers that were voted on, where nobody judged them")
    parser.add_argument("--head", metavar="MODEL", help="train a head over this embedding model: a path or `builtin:`")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the table goes")
    return parser
