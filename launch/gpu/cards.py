"""The GPUs of a machine and how they are linked, read through NVML or from a JSON table."""

from __future__ import annotations

import importlib
import os
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from shell_router.config import load_json
from shell_router.errors import GraftError

Index = Annotated[int, Meta(ge=0)]
Bytes = Annotated[int, Meta(ge=0)]
LinkKind = Literal["nvlink", "switch", "bridge", "numa", "system"]
"""`nvlink`: NVLink, direct or through NVSwitch. Over PCIe: `switch` only PCIe switches are between, `bridge` one host
bridge, `numa` several of one NUMA node. `system`: the way leads over the processors' own link."""
DISTANCE: dict[LinkKind, int] = {"nvlink": 1, "switch": 2, "bridge": 3, "numa": 4, "system": 5}
"""The less, the faster KV and partial sums pass. A card is at distance 0 from itself."""
VISIBLE = "CUDA_VISIBLE_DEVICES"


class CardsError(GraftError):
    """The driver does not answer."""


class CardProcess(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A process that holds memory of a card."""

    pid: Index
    used_bytes: Bytes | None = None
    """None where the driver does not tell, as in a container."""


class Card(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One GPU."""

    index: Index
    """Its number in the order of the PCI bus, which is NVML's."""
    name: str
    uuid: str
    total_bytes: Annotated[int, Meta(gt=0)]
    free_bytes: Bytes
    numa_node: Index | None = None
    processes: tuple[CardProcess, ...] = ()

    def __post_init__(self) -> None:
        if self.free_bytes > self.total_bytes:
            raise ValueError(f"GPU {self.index} has more memory free than it has")


class Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The best way between two cards."""

    between: tuple[Index, Index]
    kind: LinkKind


class CardTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The cards of one machine. Between cards without a link the way is `system`."""

    cards: tuple[Card, ...] = ()
    links: tuple[Link, ...] = ()

    def __post_init__(self) -> None:
        indices = Counter(card.index for card in self.cards)
        for index, count in indices.items():
            if count > 1:
                raise ValueError(f"GPU {index} is listed twice - at `$.cards`")
        for n, link in enumerate(self.links):
            if link.between[0] == link.between[1] or not indices.keys() >= set(link.between):
                raise ValueError(f"A link is between two GPUs of the table - at `$.links[{n}].between`")

    def distance(self, one: int, other: int) -> int:
        """How far two cards, by their index, are from each other."""
        if one == other:
            return 0
        pair = {one, other}
        kinds = (link.kind for link in self.links if set(link.between) == pair)
        return min((DISTANCE[kind] for kind in kinds), default=DISTANCE["system"])


def load_cards(path: Path) -> CardTable:
    """Read the table at `path`. Raises `ConfigError` naming the file and the JSON path."""
    return load_json(path, CardTable)


def read_cards(visible: str | None = None) -> CardTable:
    """The cards of this machine; none where there is no NVIDIA driver.

    `visible` is what CUDA_VISIBLE_DEVICES says, by default in this process: only these cards are ours to give away.
    Raises `CardsError` when the driver is there and does not answer.
    """
    try:
        nvml = importlib.import_module("pynvml")
    except ModuleNotFoundError as error:
        raise CardsError("the package nvidia-ml-py is not installed; `pip install nvidia-ml-py`") from error
    try:
        nvml.nvmlInit()
    except (nvml.NVMLError_LibraryNotFound, nvml.NVMLError_DriverNotLoaded):
        return CardTable()
    except nvml.NVMLError as error:
        raise CardsError(f"the NVIDIA driver does not answer: {error}") from error
    try:
        table = _table(nvml)
    except nvml.NVMLError as error:
        raise CardsError(f"the NVIDIA driver does not answer: {error}") from error
    finally:
        nvml.nvmlShutdown()
    named = os.environ.get(VISIBLE) if visible is None else visible
    return table if named is None else _restricted(table, named)


def _table(nvml: Any) -> CardTable:
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    cards = tuple(_card(nvml, index, handle) for index, handle in enumerate(handles))
    links = tuple(
        Link(between=(one, other), kind=_kind(nvml, handles[one], handles[other]))
        for one in range(len(handles))
        for other in range(one + 1, len(handles))
    )
    return CardTable(cards=cards, links=links)


def _card(nvml: Any, index: int, handle: Any) -> Card:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return Card(
        index=index,
        name=nvml.nvmlDeviceGetName(handle),
        uuid=nvml.nvmlDeviceGetUUID(handle),
        total_bytes=memory.total,
        free_bytes=memory.free,
        numa_node=_numa_node(nvml, handle),
        processes=tuple(
            CardProcess(pid=process.pid, used_bytes=process.usedGpuMemory) for process in _processes(nvml, handle)
        ),
    )


def _numa_node(nvml: Any, handle: Any) -> int | None:
    try:
        (nodes,) = nvml.nvmlDeviceGetMemoryAffinity(handle, 1, nvml.NVML_AFFINITY_SCOPE_NODE)
    except nvml.NVMLError:
        return None
    # A set of bits; on a machine of one node it may be empty.
    return (nodes & -nodes).bit_length() - 1 if nodes else None


def _processes(nvml: Any, handle: Any) -> list[Any]:
    try:
        return list(nvml.nvmlDeviceGetComputeRunningProcesses(handle))
    except nvml.NVMLError:
        return []


def _kind(nvml: Any, one: Any, other: Any) -> LinkKind:
    try:
        if nvml.nvmlDeviceGetP2PStatus(one, other, nvml.NVML_P2P_CAPS_INDEX_NVLINK) == nvml.NVML_P2P_STATUS_OK:
            return "nvlink"
    except nvml.NVMLError:
        # Cards without NVLink may refuse the question.
        pass
    try:
        level = nvml.nvmlDeviceGetTopologyCommonAncestor(one, other)
    except nvml.NVMLError:
        return "system"
    if level <= nvml.NVML_TOPOLOGY_MULTIPLE:
        return "switch"
    if level <= nvml.NVML_TOPOLOGY_HOSTBRIDGE:
        return "bridge"
    return "numa" if level <= nvml.NVML_TOPOLOGY_NODE else "system"


def _restricted(table: CardTable, visible: str) -> CardTable:
    """`table` without the cards that `visible` does not name, by index or by the beginning of their UUID."""
    names = [name.strip() for name in visible.split(",") if name.strip()]
    cards = tuple(
        card
        for card in table.cards
        if any(name == str(card.index) or (not name.isdigit() and card.uuid.startswith(name)) for name in names)
    )
    kept = {card.index for card in cards}
    return CardTable(cards=cards, links=tuple(link for link in table.links if kept.issuperset(link.between)))
