"""A cluster's JSON with other workers than it was written with."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.gpu.demand import EMBEDDING_PATH
from launch.gpu.program.options import Place

_WORKER = re.compile(r"^\$\.models\[(\d+)\]\.(\w+)\[(\d+)\]$")
_OWN = ("port", "bootstrap_port", "cores")
"""Fields of a worker that a copy of it cannot have as well."""


def with_workers(document: Mapping[str, Any], places: Sequence[Place]) -> dict[str, Any]:
    """`document`, the JSON of a cluster, with the workers `places` on its GPUs, each pinned to its cards. Models that
    run elsewhere keep theirs."""
    changed = copy.deepcopy(dict(document))
    lists: dict[tuple[int, str], list[dict[str, Any]]] = {}
    copied: set[str] = set()
    # In the configuration's order; of copies by their cards.
    for place in sorted(places, key=lambda one: (*_where(one), one.cards)):
        if place.copied.path == EMBEDDING_PATH:
            changed["shell_router"]["embedding"]["device"] = f"cuda:{place.cards[0]}"
            continue
        model, role, number = _where(place)
        worker = dict(document["models"][model][role][number])
        if place.copied.path in copied:
            worker = {field: value for field, value in worker.items() if field not in _OWN}
        copied.add(place.copied.path)
        # The cards say how many they are.
        worker.pop("tp_size", None)
        lists.setdefault((model, role), []).append({**worker, "gpus": list(place.cards)})
    for (model, role), workers in lists.items():
        changed["models"][model][role] = workers
    return changed


def moved(document: Mapping[str, Any], base: Path, folder: Path) -> dict[str, Any]:
    """`document`, which was written in `base`, as it must be written in `folder` to name the same files."""
    changed = copy.deepcopy(dict(document))
    router = changed["shell_router"]

    def path(text: str) -> str:
        return os.path.relpath((base / text).resolve(), folder.resolve())

    for field in ("trees", "scores"):
        if field in router:
            router[field] = [path(each) for each in router[field]]
    if (router.get("keys") or {}).get("file") is not None:
        router["keys"]["file"] = path(router["keys"]["file"])
    return changed


def _where(place: Place) -> tuple[int, str, int]:
    found = _WORKER.match(place.copied.path)
    return (-1, "", -1) if found is None else (int(found[1]), found[2], int(found[3]))
