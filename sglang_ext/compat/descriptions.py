"""What the extension uses of SGLang, written down as types, and the check that the installed SGLang has it.

`describes` is put on a Protocol that has what we use of a class of SGLang's and nothing else; `imported` on the stub
of a function, constructor or constant class, in whose place it puts SGLang's own. mypy sees the descriptions only, so
code cannot use what they lack; `missing` compares all of them with SGLang. What they say of types is for mypy: the
check looks for names, and for methods and functions that can be called as described.
"""

from __future__ import annotations

import dis
import inspect
import pkgutil
import sys
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from inspect import Parameter, Signature
from types import UnionType
from typing import Any, TypeVar

from sglang_ext.compat.versions import sglang_version

T = TypeVar("T", bound=Callable[..., Any])

_OURS = __name__.rpartition(".")[0]


@dataclass(frozen=True)
class Description:
    """`ours` says what we use of the object of SGLang's at `path`."""

    path: str
    ours: Any
    only: str | None = None
    """The one version of SGLang that is used so."""
    but: str | None = None
    """The one version of SGLang that is not used so."""
    if_imported: bool = False
    """Nothing is looked for in a process that has not imported it: its import does things there."""

    def applies(self) -> bool:
        if self.if_imported and self.path.rpartition(".")[0] not in sys.modules:
            return False
        return self.only in (None, sglang_version()) and self.but != sglang_version()


DESCRIPTIONS: list[Description] = []
_PROTOCOLS: set[Any] = set()


def describes(
    *paths: str, only: str | None = None, but: str | None = None, if_imported: bool = False
) -> Callable[[T], T]:
    """The Protocol under it has what we use of the instances of the classes at `paths`."""

    def register(ours: T) -> T:
        DESCRIPTIONS.extend(Description(path, ours, only, but, if_imported) for path in paths)
        _PROTOCOLS.add(ours)
        return ours

    return register


def imported(path: str) -> Callable[[T], T]:
    """Puts SGLang's object at `path` in the place of the stub under it; a stub that stays, `missing` names."""

    def replace(ours: T) -> T:
        DESCRIPTIONS.append(Description(path, ours))
        try:
            found: T = pkgutil.resolve_name(path)
        except Exception:  # noqa: BLE001 - `missing` tries again and tells, with all the others
            return ours
        return found

    return replace


def missing(descriptions: Iterable[Description] | None = None) -> list[str]:
    """Everything described that the installed SGLang lacks or wants called otherwise, one line each."""
    return [
        line
        for description in (DESCRIPTIONS if descriptions is None else descriptions)
        if description.applies()
        for line in _missing(description)
    ]


def missing_in(instance: Any, described: type, name: str = "") -> list[str]:
    """What `instance` lacks of its description `described`, and so on down to all described objects it holds.

    For the objects of a running worker, whose classes depend on its flags.
    """
    name = name or described.__name__
    lines = []
    for member, (ours, hint) in _members(described, inherited=True).items():
        try:
            value = getattr(instance, member)
        except AttributeError:
            lines.append(f"{name}.{member} is missing (on a {type(instance).__qualname__})")
            continue
        if inspect.isfunction(ours):
            lines += _unfit(f"{name}.{member}", value, _signature(ours, bound=True))
        elif value is not None and (protocol := _protocol_in(hint)) is not None:
            lines += missing_in(value, protocol, f"{name}.{member}")
    return lines


def table() -> str:
    """All that is described, as the rows of a Markdown table: object of SGLang's, what is used of it, version."""
    rows: dict[tuple[str, str], list[str]] = {}
    for description in DESCRIPTIONS:
        path, names = description.path.removeprefix("sglang."), list(_members(description.ours))
        if not names:
            # A function or a constructor, in the row of its module.
            path, _, name = path.rpartition(".")
            names = [f"{name}()"]
        versions = description.only or (f"all but {description.but}" if description.but else "all")
        found = rows.setdefault((path, versions), [])
        found += [name for name in names if name not in found]
    return "".join(
        f"| `{path}` | {', '.join(f'`{name}`' for name in sorted(names))} | {versions} |\n"
        for (path, versions), names in sorted(rows.items())
    )


def refusal(function: Callable[..., Any], called: Signature) -> str | None:
    """Why `function` cannot be called in every way that the signature `called` allows, or None when it can."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    parameters = [p for p in called.parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    required = [p for p in parameters if p.default is Parameter.empty]
    for chosen in (parameters, required):
        for by_name in ({Parameter.KEYWORD_ONLY}, {Parameter.KEYWORD_ONLY, Parameter.POSITIONAL_OR_KEYWORD}):
            named = {p.name: None for p in chosen if p.kind in by_name}
            try:
                signature.bind(*[None for p in chosen if p.kind not in by_name], **named)
            except TypeError as error:
                return str(error)
    return None


def _missing(description: Description) -> Iterator[str]:
    path, ours = description.path, description.ours
    try:
        found = pkgutil.resolve_name(path)
    except Exception as error:  # noqa: BLE001 - whatever its import raises, it cannot be had
        yield f"{path} is missing: {error}"
        return
    if not isinstance(ours, type):
        yield from _unfit(path, found, _signature(ours, bound=False))
        return
    for member, (member_ours, _) in _members(ours).items():
        if not _has(found, member):
            yield f"{path}.{member} is missing"
        elif inspect.isfunction(member_ours):
            # Looked up on the class: an attribute that is a function there keeps its first parameter.
            yield from _unfit(f"{path}.{member}", inspect.getattr_static(found, member), _signature(member_ours, False))


def _unfit(name: str, found: Any, called: Signature) -> Iterator[str]:
    if isinstance(found, staticmethod | classmethod):
        found = found.__func__
    if not callable(found):
        yield f"{name} cannot be called"
    elif (reason := refusal(found, called)) is not None:
        yield f"{name} cannot be called as {called}: {reason}"


def _signature(ours: Callable[..., Any], bound: bool) -> Signature:
    """How `ours` says that SGLang's function is called; `self`, whatever its name there, goes by position."""
    signature = inspect.signature(ours)
    parameters = list(signature.parameters.values())
    if parameters and parameters[0].name == "self":
        parameters[0] = parameters[0].replace(kind=Parameter.POSITIONAL_ONLY)
        parameters = parameters[1:] if bound else parameters
    return Signature(parameters)


def _members(described: Any, inherited: bool = False) -> dict[str, tuple[Any, Any]]:
    """The described attributes and methods: name -> (function, type). Of what a description extends, only what nothing
    else describes, or all of it if `inherited`.
    """
    members: dict[str, tuple[Any, Any]] = {}
    for ours in reversed(getattr(described, "__mro__", ())):
        if ours.__module__.startswith(_OURS) and (inherited or ours is described or ours not in _PROTOCOLS):
            members |= {name: (None, hint) for name, hint in inspect.get_annotations(ours, eval_str=True).items()}
            members |= {
                name: (value, None)
                for name, value in vars(ours).items()
                if (inspect.isfunction(value) or isinstance(value, property | classmethod)) and name[:2] != "__"
            }
    return members


def _protocol_in(hint: Any) -> Any:
    """The description of what an attribute of type `hint` holds, if it is described; also in `X | None`."""
    either = typing.get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return next((each for each in either if each in _PROTOCOLS), None)


def _has(found: Any, name: str) -> bool:
    """Whether objects of the class `found` have the attribute: of the class, annotated, or set by one of its methods.
    Or whether `found` has it, if that is no class.
    """
    if not isinstance(found, type):
        return hasattr(found, name)
    return any(
        name in vars(each) or name in vars(each).get("__annotations__", ()) or _sets(each, name)
        for each in found.__mro__
    )


def _sets(cls: type, name: str) -> bool:
    """Whether a method that `cls` itself has says `self.name = ...`. Read from its bytecode, which is there already."""
    for method in vars(cls).values():
        code = getattr(inspect.unwrap(method) if inspect.isfunction(method) else None, "__code__", None)
        if code is None or name not in code.co_names:
            continue
        before: Any = None
        for step in dis.get_instructions(code):
            # Where one instruction loads two variables, the object comes last.
            if step.opname == "STORE_ATTR" and step.argval == name and before in ("self", ("self",)):
                return True
            before = step.argval[1:] if isinstance(step.argval, tuple) else step.argval
    return False
