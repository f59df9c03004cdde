"""The table of cards: from NVML, from JSON, and what is wrong with one."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from launch.gpu import cards
from launch.gpu.cards import CardProcess, CardsError, CardTable, Link, load_cards, read_cards
from shell_router.config import ConfigError
from tests.launch.gpu.recorded import TABLES

GIB = 1 << 30


class NVMLError(Exception):
    pass


class NVMLError_LibraryNotFound(NVMLError):
    pass


class NVMLError_DriverNotLoaded(NVMLError):
    pass


@dataclass
class FakeNvml:
    """NVML's functions, as far as they are used, over cards 0 to `count` - 1; a card's handle is its number."""

    count: int = 4
    init_error: Exception | None = None
    memory_error: Exception | None = None
    nvlink: Sequence[frozenset[int]] = (frozenset((0, 1)),)
    levels: dict[frozenset[int], int] = field(default_factory=dict)
    open: int = 0

    NVMLError = NVMLError
    NVMLError_LibraryNotFound = NVMLError_LibraryNotFound
    NVMLError_DriverNotLoaded = NVMLError_DriverNotLoaded
    NVML_AFFINITY_SCOPE_NODE = 0
    NVML_P2P_CAPS_INDEX_NVLINK = 2
    NVML_P2P_STATUS_OK = 0
    NVML_TOPOLOGY_MULTIPLE = 20
    NVML_TOPOLOGY_HOSTBRIDGE = 30
    NVML_TOPOLOGY_NODE = 40

    def nvmlInit(self) -> None:
        if self.init_error is not None:
            raise self.init_error
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "NVIDIA H100 80GB HBM3"

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}{handle}ab"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        if self.memory_error is not None:
            raise self.memory_error
        return SimpleNamespace(total=80 * GIB, free=(80 - handle) * GIB, used=handle * GIB)

    def nvmlDeviceGetMemoryAffinity(self, handle: int, size: int, scope: int) -> tuple[int]:
        assert (size, scope) == (1, self.NVML_AFFINITY_SCOPE_NODE)
        if handle == 3:
            raise NVMLError("not supported")
        return (0b10 if handle == 2 else 0b01,)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[SimpleNamespace]:
        if handle == 3:
            raise NVMLError("no permission")
        if handle == 2:
            return [SimpleNamespace(pid=7, usedGpuMemory=None)]
        return [SimpleNamespace(pid=5, usedGpuMemory=GIB)] if handle == 1 else []

    def nvmlDeviceGetP2PStatus(self, one: int, other: int, what: int) -> int:
        assert what == self.NVML_P2P_CAPS_INDEX_NVLINK
        if 3 in (one, other):
            raise NVMLError("not supported")
        return self.NVML_P2P_STATUS_OK if frozenset((one, other)) in self.nvlink else 5

    def nvmlDeviceGetTopologyCommonAncestor(self, one: int, other: int) -> int:
        pair = frozenset((one, other))
        if pair not in self.levels:
            raise NVMLError("unknown")
        return self.levels[pair]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml(
        levels={
            frozenset((0, 2)): 10,
            frozenset((0, 3)): 30,
            frozenset((1, 2)): 40,
            frozenset((1, 3)): 50,
        }
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.delenv(cards.VISIBLE, raising=False)
    return fake


def test_what_nvml_tells(nvml: FakeNvml) -> None:
    table = read_cards()
    assert nvml.open == 0, "NVML is closed again"
    assert [card.index for card in table.cards] == [0, 1, 2, 3]
    one = table.cards[1]
    assert (one.name, one.uuid) == ("NVIDIA H100 80GB HBM3", "GPU-11ab")
    assert (one.total_bytes, one.free_bytes) == (80 * GIB, 79 * GIB)
    assert [card.numa_node for card in table.cards] == [0, 0, 1, None]
    assert one.processes == (CardProcess(pid=5, used_bytes=GIB),)
    assert table.cards[2].processes == (CardProcess(pid=7),)
    assert table.cards[3].processes == ()
    kinds = {link.between: link.kind for link in table.links}
    assert kinds == {
        (0, 1): "nvlink", (0, 2): "switch", (0, 3): "bridge", (1, 2): "numa", (1, 3): "system", (2, 3): "system",
    }  # fmt: skip


def test_distances(nvml: FakeNvml) -> None:
    table = read_cards()
    assert [table.distance(0, other) for other in range(4)] == [0, 1, 2, 3]
    assert table.distance(3, 1) == table.distance(1, 3) == 5
    assert CardTable(cards=table.cards).distance(0, 1) == 5, "without a link the way is the longest"


@pytest.mark.parametrize("error", [NVMLError_LibraryNotFound("no library"), NVMLError_DriverNotLoaded("no driver")])
def test_without_a_driver_there_are_no_cards(nvml: FakeNvml, error: Exception) -> None:
    nvml.init_error = error
    assert read_cards() == CardTable()


def test_a_driver_that_does_not_answer_is_an_error(nvml: FakeNvml) -> None:
    nvml.memory_error = NVMLError("GPU is lost")
    with pytest.raises(CardsError, match="does not answer: GPU is lost"):
        read_cards()
    assert nvml.open == 0
    nvml.init_error = NVMLError("version mismatch")
    with pytest.raises(CardsError, match="version mismatch"):
        read_cards()


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(CardsError, match="nvidia-ml-py is not installed"):
        read_cards()


@pytest.mark.parametrize(("visible", "kept"), [("0,2", [0, 2]), ("GPU-11,GPU-33ab", [1, 3]), ("", []), ("-1", [])])
def test_only_visible_cards_are_ours(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, visible: str, kept: list[int]
) -> None:
    monkeypatch.setenv(cards.VISIBLE, visible)
    table = read_cards()
    assert [card.index for card in table.cards] == kept
    assert all(set(link.between) <= set(kept) for link in table.links)


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_a_table_survives_json(path: Path, tmp_path: Path) -> None:
    table = load_cards(path)
    copy = tmp_path / "cards.json"
    copy.write_bytes(msgspec.json.encode(table))
    assert load_cards(copy) == table


CARD = '{"index": 0, "name": "x", "uuid": "GPU-0", "total_bytes": 8, "free_bytes": 4}'


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ('{"cards": [{}]}', "missing required field `index` - at `$.cards[0]`"),
        (f'{{"cards": [{CARD}, {CARD}]}}', "GPU 0 is listed twice - at `$.cards`"),
        (f'{{"cards": [{CARD.replace("4", "9")}]}}', "GPU 0 has more memory free than it has - at `$.cards[0]`"),
        (f'{{"cards": [{CARD}], "links": [{{"between": [0, 1], "kind": "nvlink"}}]}}', "at `$.links[0].between`"),
        (f'{{"cards": [{CARD}], "links": [{{"between": [0, 0], "kind": "radio"}}]}}', "at `$.links[0].kind`"),
        ('{"gpus": []}', "unknown field `gpus`"),
    ],
)
def test_a_wrong_table_is_refused_by_its_path(document: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "cards.json"
    path.write_text(document)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load_cards(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_links_have_two_ends() -> None:
    with pytest.raises(ValueError, match="two GPUs of the table"):
        CardTable(links=(Link(between=(0, 1), kind="nvlink"),))
