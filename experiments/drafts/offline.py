"""`python -m experiments.drafts.offline FOLDER...`: how many tokens a step gives, by counting on recorded answers.

FOLDER is one of `graft run`. The agents of a layer write at the same time, a step each at a time; a draft's tokens are
right as far as the recorded answer has them. The first token of an answer comes from prefill and is not counted. Drafts
are always as long as they may be. The table's last line is one JSON document.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from experiments.drafts.contenders import CONTENDERS, Contender
from experiments.drafts.texts import LAYERS, Written, read
from shell_router.config import ConfigError

LIMITS = (4, 8, 16)


class Count(msgspec.Struct, kw_only=True):
    """What a contender did on the answers of one layer."""

    contender: str
    layer: str
    limit: int
    """Most tokens of a draft."""
    answers: int = 0
    tokens: int = 0
    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    tokens_per_step: float = 0.0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All counts."""

    runs: int
    counts: tuple[Count, ...]


def count(name: str, contender: Contender, limit: int, runs: Sequence[Sequence[Sequence[Written]]]) -> list[Count]:
    """One contender on all layers."""
    counts = {layer: Count(contender=name, layer=layer, limit=limit) for layer in LAYERS}
    for run in runs:
        for layer in run:
            _write(layer, contender, limit, counts[layer[0].layer])
    for each in counts.values():
        each.tokens_per_step = each.tokens / each.steps if each.steps else 0.0
    return [each for each in counts.values() if each.answers]


def _write(layer: Sequence[Written], contender: Contender, limit: int, into: Count) -> None:
    drafters = contender(layer)
    done = [0] * len(layer)
    while any(place < len(each.answer) for place, each in zip(done, layer, strict=True)):
        for number, (each, drafter) in enumerate(zip(layer, drafters, strict=True)):
            place = done[number]
            if place >= len(each.answer):
                continue
            if place == 0:
                into.answers += 1
                drafter.extend(each.answer[:1])
                done[number] = 1
                continue
            draft = drafter.draft(min(limit, len(each.answer) - place - 1))
            right = 0
            while right < len(draft) and draft[right] == each.answer[place + right]:
                right += 1
            drafter.extend(each.answer[place : place + right + 1])
            done[number] = place + right + 1
            into.steps += 1
            into.tokens += right + 1
            into.drafted += len(draft)
            into.accepted += right


def main(argv: Sequence[str]) -> int:
    """Count as the command line says; answers the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.drafts.offline", description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="of `graft run`")
    arguments = parser.parse_args(argv)
    try:
        runs = [run for folder in arguments.folders for run in read(folder)]
    except ConfigError as error:
        parser.error(str(error))
    counts = [
        each
        for limit in LIMITS
        for name, contender in CONTENDERS.items()
        for each in count(name, contender, limit, runs)
    ]
    for each in counts:
        share = each.accepted / max(1, each.drafted)
        print(f"{each.limit:3} {each.contender:38} {each.layer:12} {each.tokens_per_step:5.2f} {share:5.0%}")
    print(msgspec.json.encode(Report(runs=len(runs), counts=tuple(counts))).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
