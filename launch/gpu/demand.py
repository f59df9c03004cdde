"""What each worker asks of the cards, from its configuration and its model's size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from launch.checkpoint import CheckpointError
from launch.config import ConfiguredWorker, DecodeConfig, ModelConfig
from launch.gpu.reserve import CONTEXT_BYTES, MULTIMODAL_BYTES, GpuRole, activation_bytes, flag_value
from launch.gpu.sizes import ModelSize, SizeError
from launch.names import EMBEDDING
from shell_router.config import EmbeddingConfig

SizeOf = Callable[[str, str], ModelSize]
"""Size of the model at a path as written in the cluster JSON, served as a dtype.
Raises `CheckpointError`, `SizeError`."""
EMBEDDING_PATH = "$.shell_router.embedding"
_OWN_FIELDS = {
    "--mem-fraction-static": "mem_fraction_static",
    "--max-total-tokens": "max_total_tokens",
    "--tensor-parallel-size": "tp_size",
    "--tp-size": "tp_size",
    "--tp": "tp_size",
}
"""Flags that would undo a plan, and the fields that say the same to the plan."""


@dataclass(frozen=True)
class Demand:
    """A worker that wants `tp_size` cards; all bytes are those on each of them."""

    path: str
    """JSON path of the worker."""
    name: str
    """As in the name of its process."""
    model: str
    role: GpuRole
    tp_size: int
    pinned: tuple[int, ...]
    """The cards it must have; empty leaves them open."""
    weight_bytes: int
    kv_bytes_per_token: int
    least_tokens: int
    """Of its KV pool: one prompt with its answer at full length."""
    tokens: int | None
    """Size of its KV pool where the configuration fixes it."""
    fraction: float | None
    """Share of free memory for weights and KV where the configuration fixes it."""
    fraction_field: str
    """JSON path of what fixes that share, or would."""
    flags: tuple[str, ...]
    multimodal: bool
    step_tokens: int = 1
    """Of one request in one decode step."""

    @property
    def pool_tokens(self) -> int:
        """The least KV pool it can start with, tokens."""
        return self.least_tokens if self.tokens is None else self.tokens

    @property
    def gpus_field(self) -> str:
        """JSON path of what pins it."""
        return f"{self.path}.{'device' if self.role == 'embedding' else 'gpus'}"

    @property
    def cards_field(self) -> str:
        """JSON path of what says which or how many cards it gets."""
        return self.gpus_field if self.pinned else f"{self.path}.tp_size" if self.tp_size > 1 else self.path

    def activation_bytes(self, total_bytes: int) -> int:
        """For activations and CUDA graphs on a card with `total_bytes` of memory."""
        return activation_bytes(total_bytes, self.role, self.tp_size, self.flags, self.step_tokens)

    def overhead_bytes(self, total_bytes: int, activations: int | None = None) -> int:
        """All but weights and KV on a card with `total_bytes` of memory; `activations` where more are set aside than
        must be, bytes."""
        activations = self.activation_bytes(total_bytes) if activations is None else activations
        return CONTEXT_BYTES + activations + (MULTIMODAL_BYTES if self.multimodal else 0)

    def static_bytes(self, free_bytes: int) -> int:
        """Weights and the least KV pool on a card that has `free_bytes` free at the start."""
        least = self.weight_bytes + self.pool_tokens * self.kv_bytes_per_token
        return least if self.fraction is None else max(least, int(self.fraction * (free_bytes - CONTEXT_BYTES)))


def demands(
    workers: Iterable[ConfiguredWorker], embedding: EmbeddingConfig | None, size_of: SizeOf
) -> tuple[tuple[Demand, ...], tuple[str, ...]]:
    """What those of `workers` on GPUs ask for, and the embedding model if it runs there; and all problems, each with
    its JSON path."""
    found: list[Demand] = []
    problems: list[str] = []
    sizes: dict[str, ModelSize | None] = {}
    for one in workers:
        path, model, worker = one.path, one.model, one.config
        if model.device != "cuda":
            continue
        place = path.rpartition(".")[0]
        if model.name not in sizes:
            sizes[model.name] = None
            try:
                sizes[model.name] = size_of(model.path, model.dtype)
            except (CheckpointError, SizeError) as error:
                problems.append(f"{place}.path: {error}")
        problems.extend(each for each in _undone(place, model, path, worker) if each not in problems)
        size = sizes[model.name]
        if size is None:
            continue
        demand = _demand(one, size)
        if size.splits(demand.tp_size):
            found.append(demand)
        else:
            kv = f"{size.kv_heads} KV heads" if size.kv_heads > 1 else f"{size.attention_heads} heads"
            problems.append(
                f"{demand.cards_field}: {model.name} cannot be split over {demand.tp_size} GPUs: it has "
                f"{size.attention_heads} attention heads and {kv}, which {demand.tp_size} does not divide"
            )
    if embedding is not None and embedding.device.startswith("cuda"):
        try:
            found.append(_embedding(embedding, size_of(embedding.path, "auto")))
        except (CheckpointError, SizeError) as error:
            problems.append(f"{EMBEDDING_PATH}.path: {error}")
    return tuple(found), tuple(problems)


def _demand(one: ConfiguredWorker, size: ModelSize) -> Demand:
    path, name, role, model, worker = one
    tp_size = len(worker.gpus) or worker.tp_size or 1
    fraction = model.mem_fraction_static if worker.mem_fraction_static is None else worker.mem_fraction_static
    return Demand(
        path=path,
        name=name,
        model=model.name,
        role=role,
        tp_size=tp_size,
        pinned=tuple(sorted(worker.gpus)),
        weight_bytes=size.weights_on_card(tp_size),
        kv_bytes_per_token=size.kv_on_card(tp_size),
        least_tokens=-(-model.context_length // model.page_size) * model.page_size,
        tokens=model.max_total_tokens,
        fraction=fraction,
        fraction_field=f"{path.rpartition('.')[0] if worker.mem_fraction_static is None else path}.mem_fraction_static",
        flags=(*model.flags, *worker.flags),
        multimodal=size.multimodal,
        step_tokens=1 + model.max_draft_tokens if one.drafts else 1,
    )


def _embedding(config: EmbeddingConfig, size: ModelSize) -> Demand:
    index = config.device.partition(":")[2]
    return Demand(
        path=EMBEDDING_PATH,
        name=EMBEDDING,
        model=EMBEDDING,
        role="embedding",
        tp_size=1,
        pinned=(int(index),) if index.isdigit() else (),
        weight_bytes=size.weight_bytes,
        kv_bytes_per_token=0,
        least_tokens=0,
        tokens=0,
        fraction=None,
        fraction_field=EMBEDDING_PATH,
        flags=(),
        multimodal=False,
    )


def _undone(place: str, model: ModelConfig, path: str, worker: DecodeConfig) -> Iterator[str]:
    """Flags that would overrule the plan behind its back."""
    for where, flags in ((place, model.flags), (path, worker.flags)):
        for flag, field in _OWN_FIELDS.items():
            if flag_value(flags, flag) is not None:
                yield f"{where}.flags: {flag} would overrule the plan; say it with `{field}`"
