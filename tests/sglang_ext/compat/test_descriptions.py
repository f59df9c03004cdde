"""The check finds everything that is not as described, by name, and all of it at once."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from inspect import signature
from types import ModuleType, SimpleNamespace
from typing import Any, Protocol

import pytest

from sglang_ext.compat import descriptions
from sglang_ext.compat.descriptions import Description, describes, imported, missing, missing_in, refusal


class Base:
    def __init__(self) -> None:
        self.of_base = 1

    def elsewhere(self, other: Any) -> None:
        other.of_another = 1


class Engine(Base):
    of_class = 1
    annotated: int

    def __init__(self) -> None:
        super().__init__()
        self.set_late()

    def set_late(self) -> None:
        first, self.late = 1, 2
        self.longer: int = first

    @property
    def computed(self) -> int:
        return 1

    def run(self, batch: list[int], *, quick: bool = False) -> None: ...


@dataclass(slots=True)
class Slotted:
    slot: int


ENGINE, SLOTTED = f"{__name__}.Engine", f"{__name__}.Slotted"


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests describe is none of the extension's."""
    monkeypatch.setattr(descriptions, "DESCRIPTIONS", [])
    monkeypatch.setattr(descriptions, "_PROTOCOLS", set())
    monkeypatch.setattr(descriptions, "_OURS", __name__)


def test_attributes_are_found_wherever_they_come_from() -> None:
    @describes(ENGINE)
    class Fits(Protocol):
        of_base: int
        of_class: int
        annotated: int
        late: int
        longer: int
        computed: int

        def run(self, batch: list[int], /, *, quick: bool) -> None: ...

    @describes(SLOTTED)
    class Slot(Protocol):
        slot: int

    assert missing() == []


def test_everything_that_is_missing_is_named_at_once() -> None:
    @describes(ENGINE)
    class Old(Protocol):
        of_another: int
        """Set on something else than `self`."""
        late: int
        gone: int

        def removed(self) -> None: ...
        def run(self, batch: list[int], slow: bool, /) -> None: ...

    describes(f"{__name__}.Nobody")(Old)
    imported("nowhere.at_all")(refusal)
    lines = missing()
    assert lines[:3] == [f"{ENGINE}.{name} is missing" for name in ("of_another", "gone", "removed")]
    assert lines[3] == f"{ENGINE}.run cannot be called as (self, batch: 'list[int]', slow: 'bool', /): " + (
        "too many positional arguments"
    )
    assert [line.partition(":")[0] for line in lines[4:]] == [
        f"{__name__}.Nobody is missing", "nowhere.at_all is missing",
    ]  # fmt: skip


def test_imported_puts_the_real_one_in_place_and_keeps_a_stub_else() -> None:
    @imported(f"{__name__}.Engine")
    def make_engine(*, size: int) -> None: ...

    def stub() -> None: ...

    assert make_engine.__name__ == "Engine"
    assert imported("nowhere.at_all")(stub) is stub
    (one, other) = missing()
    assert one.startswith(f"{ENGINE} cannot be called as (*, size: 'int'): ")
    assert other.startswith("nowhere.at_all is missing")


def test_what_versions_differ_in_is_looked_for_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    @describes(ENGINE, only="1.1")
    class Old(Protocol):
        gone: int

    @describes(ENGINE, but="1.1")
    class New(Protocol):
        to_come: int

    for version, name in (("1.1", "gone"), ("1.2", "to_come"), ("1.3", "to_come")):
        monkeypatch.setattr(descriptions, "sglang_version", lambda version=version: version)
        assert missing() == [f"{ENGINE}.{name} is missing"]


def test_what_this_process_must_not_import_is_looked_for_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    @describes("apart_from_us.Engine", if_imported=True)
    class Away(Protocol):
        gone: int

    assert missing() == []
    module = ModuleType("apart_from_us")
    vars(module)["Engine"] = Engine
    monkeypatch.setitem(sys.modules, "apart_from_us", module)
    assert missing() == ["apart_from_us.Engine.gone is missing"]


class Inner(Protocol):
    slot: int

    def go(self, count: int, /) -> None: ...


class Outer(Protocol):
    of_base: int


class OuterInRole(Outer, Protocol):
    inner: Inner
    perhaps: Inner | None
    several: list[Inner]


@pytest.fixture
def described() -> None:
    describes(SLOTTED)(Inner)
    describes(ENGINE)(Outer)
    describes(ENGINE)(OuterInRole)


@pytest.mark.usefixtures("described")
def test_live_objects_are_compared_down_to_what_they_hold() -> None:
    inner = SimpleNamespace(slot=1, go=lambda count: None)
    whole = SimpleNamespace(of_base=1, inner=inner, perhaps=None, several=[])
    assert missing_in(whole, OuterInRole) == []
    del whole.of_base
    whole.inner = SimpleNamespace(go=lambda: None)
    whole.perhaps = SimpleNamespace(slot=1)
    assert missing_in(whole, OuterInRole) == [
        "OuterInRole.of_base is missing (on a SimpleNamespace)",
        "OuterInRole.inner.slot is missing (on a SimpleNamespace)",
        "OuterInRole.inner.go cannot be called as (count: 'int', /): too many positional arguments",
        "OuterInRole.perhaps.go is missing (on a SimpleNamespace)",
    ]


@pytest.mark.usefixtures("described")
def test_a_role_is_compared_with_what_it_adds() -> None:
    assert missing([Description(ENGINE, OuterInRole)]) == [
        f"{ENGINE}.{name} is missing" for name in ("inner", "perhaps", "several")
    ]


def _one(a: int, b: int = 0) -> None: ...
def _renamed(a: int, c: int = 0) -> None: ...
def _by_position(a: int, b: int = 0, /) -> None: ...
def _wider(*args: int, **options: int) -> None: ...
def _needs_more(a: int, b: int, c: int) -> None: ...


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (_one, None),
        (_wider, None),
        (_renamed, "got an unexpected keyword argument 'b'"),
        (_by_position, "positional only"),
        (_needs_more, "missing a required argument: 'c'"),
    ],
)
def test_a_function_must_take_every_call_that_is_allowed(function: Any, reason: str | None) -> None:
    found = refusal(function, signature(_one))
    assert (found is None) == (reason is None)
    assert (reason or "") in (found or "")
