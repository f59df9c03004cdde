"""Prompts and answers of recorded runs, as a drafter meets them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from shell_router.config import ConfigError
from shell_router.record import AgentRecord, RunRecord

Layer = Literal["proposers", "aggregators", "root"]
LAYERS: tuple[Layer, ...] = ("proposers", "aggregators", "root")


@dataclass(frozen=True)
class Written:
    """One agent's prompt and answer."""

    layer: Layer
    prompt: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    """[start, end) of its precursors' answers in the prompt."""
    answer: tuple[int, ...]


class _Line(msgspec.Struct, frozen=True):
    """What is read of a line of `runs.jsonl`."""

    record: RunRecord | None


def read(folder: Path) -> list[list[list[Written]]]:
    """The runs of a folder of `graft run`: their layers, from the proposers on, and their agents.

    Raises `ConfigError` when the folder holds no run.
    """
    path = folder / "runs.jsonl"
    try:
        lines = [msgspec.json.decode(line, type=_Line) for line in path.read_bytes().splitlines()]
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    runs = [_layers(line.record) for line in lines if line.record is not None]
    if not runs:
        raise ConfigError(f"{path}: there is no run in it")
    return runs


def _layers(record: RunRecord) -> list[list[Written]]:
    agents = {agent.id: agent for agent in record.agents}
    read_by_others = {precursor for agent in record.agents for precursor in agent.precursors}
    layers: dict[int, list[Written]] = {}
    for agent in record.agents:
        if not agent.output_ids or not agent.prompt_ids:
            continue
        named: Layer = "proposers"
        if agent.precursors:
            named = "aggregators" if agent.id in read_by_others else "root"
        precursors = [agents[name] for name in agent.slot_order]
        written = Written(named, agent.prompt_ids, tuple(_spans(agent, precursors)), agent.output_ids)
        layers.setdefault(agent.layer, []).append(written)
    return [layers[layer] for layer in sorted(layers)]


def _spans(agent: AgentRecord, precursors: Iterable[AgentRecord]) -> Iterable[tuple[int, int]]:
    """Where the precursors' answers stand, in the order of the slots; a last token that ended an answer is left out."""
    start = 0
    for precursor in precursors:
        for answer in (precursor.output_ids, precursor.output_ids[:-1]):
            place = _find(agent.prompt_ids, answer, start)
            if place is not None:
                start = place + len(answer)
                yield place, start
                break


def _find(text: tuple[int, ...], part: tuple[int, ...], start: int) -> int | None:
    for place in range(start, len(text) - len(part) + 1):
        if part and text[place : place + len(part)] == part:
            return place
    return None
