"""Recorded tables of cards, and sizes of models from recorded configs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from launch.gpu.cards import CardTable, load_cards
from launch.gpu.demand import Demand
from launch.gpu.reserve import GpuRole
from launch.gpu.sizes import ModelSize, size_of

HERE = Path(__file__).resolve().parent
MODELS = HERE / "models"
TABLES = sorted((HERE / "cards").glob("*.json"))


def cards(name: str) -> CardTable:
    return load_cards(HERE / "cards" / f"{name}.json")


def model_config(name: str) -> dict[str, Any]:
    """The numbers of a model's public config.json."""
    config: dict[str, Any] = json.loads((MODELS / f"{name}.json").read_text())
    return config


def recorded_size(path: str, dtype: str) -> ModelSize:
    """A `SizeOf` that knows the recorded models by their hub id."""
    return size_of(model_config(path.rpartition("/")[2]), dtype)


def write_hub(folder: Path) -> None:
    """Make `folder` the hub's cache, with what `hf download NAME config.json` leaves there of each recorded model."""
    for path in MODELS.glob("*.json"):
        repository = folder / f"models--Qwen--{path.stem}"
        (repository / "snapshots" / "1").mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("1")
        shutil.copy(path, repository / "snapshots" / "1" / "config.json")


def demand(model: str, role: GpuRole, gigabytes: float, number: int = 0, **changes: Any) -> Demand:
    """A worker with so many GB of weights in all, 147,456 bytes of KV a token and a context of 8,192 tokens."""
    tp_size: int = changes.pop("tp_size", 1)
    fields: dict[str, Any] = {
        "path": f"$.{model}.{role}[{number}]",
        "name": f"{model}-{role}-{number}",
        "model": model,
        "role": role,
        "tp_size": tp_size,
        "pinned": (),
        "weight_bytes": int(gigabytes * 1e9 / tp_size),
        "kv_bytes_per_token": 147_456 // tp_size,
        "least_tokens": 8192,
        "tokens": None,
        "fraction": None,
        "fraction_field": f"$.{model}.{role}[{number}].mem_fraction_static",
        "flags": (),
        "multimodal": False,
    }
    return Demand(**{**fields, **changes})
