"""What the extension uses, against the SGLang that is installed; and that there is no other way to use any."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sglang_ext import compat, plugin
from sglang_ext.compat.descriptions import DESCRIPTIONS, missing, table
from sglang_ext.compat.hooks import Hook

ROOT = Path(__file__).parents[3]
EXTENSION = ROOT / "sglang_ext"
PAGE = ROOT / "docs" / "sessions.md"

SPEAKS_OF_SESSIONS_ONLY = {"__init__", "messages", "metrics", "drafting"}
"""Modules of the engine that touch no object of SGLang's but a message of ours."""


@pytest.fixture(autouse=True)
def the_http_process_too(recwarn: pytest.WarningsRecorder) -> None:
    import sglang.srt.managers.tokenizer_manager  # noqa: F401 - its description is checked where it is imported


def test_the_installed_sglang_has_all_that_is_used() -> None:
    assert all(description.applies() for description in DESCRIPTIONS if not description.only and not description.but)
    assert missing() == []


def test_all_hooks_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[tuple[str, Any, Any]] = []
    monkeypatch.setattr("sglang_ext.compat.hooks._Registry.register", lambda *hook: registered.append(hook))
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", "1")
    compat.install(plugin.hooks())
    assert [target for target, _, _ in registered] == [hook.target for hook in plugin.hooks()]


def test_a_worker_with_another_sglang_ends_and_says_all_that_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.disaggregation.nixl.conn import CommonKVManager
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.managers.scheduler import Scheduler

    monkeypatch.delattr(Req, "detach_kv")
    monkeypatch.delattr(CommonKVManager, "conclude_failure")
    monkeypatch.delattr(Scheduler, "maybe_sleep_on_idle")
    monkeypatch.setattr(Scheduler, "_set_or_validate_priority", lambda self, req, queue: True)
    with pytest.raises(SystemExit) as ended:
        plugin.load()
    said = str(ended.value)
    assert said.startswith(f"graft: the SGLang extension cannot run here: sglang {compat.sglang_version()} lacks")
    assert [line.strip().partition(":")[0] for line in said.splitlines()[1:]] == [
        "hook target sglang.srt.managers.scheduler.Scheduler.maybe_sleep_on_idle is missing",
        "sglang.srt.disaggregation.nixl.conn.NixlKVManager.conclude_failure is missing",
        "sglang.srt.managers.schedule_batch.Req.detach_kv is missing",
        "sglang.srt.managers.scheduler.Scheduler._set_or_validate_priority cannot be called as (self, req",
    ]


def test_a_scheduler_that_lacks_something_ends_before_its_first_request() -> None:
    """Which classes a scheduler's parts have, flags decide: only the live ones tell."""
    from sglang.srt.disaggregation.utils import DisaggregationMode

    tree = SimpleNamespace(unlock=lambda lock: None)
    scheduler: Any = SimpleNamespace(disaggregation_mode=DisaggregationMode.PREFILL, tree_cache=tree, waiting_queue=[])
    with pytest.raises(SystemExit) as ended:
        compat.as_prefill(scheduler)
    said = str(ended.value)
    assert "PrefillScheduler.disagg_prefill_bootstrap_queue is missing" in said
    assert "PrefillScheduler.tree_cache.lock is missing (on a SimpleNamespace)" in said
    assert "tree_cache.unlock" not in said
    assert "waiting_queue" not in said
    assert "disagg_decode" not in said


def _takes_nothing(result: None, scheduler: object) -> None: ...
def _renames(result: None, scheduler: object, requests: object) -> None: ...
def _fits(result: None, scheduler: object, recv_reqs: object) -> None: ...
def _passes_more(original: object, scheduler: object, recv_reqs: object, more: int = 0) -> None: ...
def _passes_as_it_came(original: object, *args: object, **options: object) -> None: ...


@pytest.mark.parametrize(
    ("kind", "function", "problem"),
    [
        ("after", _fits, None),
        ("after", _takes_nothing, "our hook does not: too many positional arguments"),
        ("after", _renames, "our hook does not: missing a required argument: 'requests'"),
        ("around", _passes_more, "our hook passes on more: too many positional arguments"),
        ("around", _passes_as_it_came, None),
    ],
)
def test_a_hook_takes_what_its_target_can_be_called_with(
    monkeypatch: pytest.MonkeyPatch, kind: Any, function: Callable[..., Any], problem: str | None
) -> None:
    monkeypatch.setattr("sglang_ext.compat.hooks._Registry.register", lambda *_: None)
    monkeypatch.setattr("sglang_ext.compat.hooks.missing", list)
    hooks = (Hook(compat.PROCESS_INPUT, kind, function, "a reason"),)
    if problem is None:
        compat.install(hooks)
        return
    with pytest.raises(compat.IncompatibleEngine) as caught:
        compat.install(hooks)
    assert problem in str(caught.value)


def test_the_engine_cannot_use_what_is_not_described() -> None:
    """mypy sees the descriptions for SGLang's objects; without `Any` in a module it refuses every other attribute."""
    overrides = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["overrides"]
    (without_any,) = (override["module"] for override in overrides if override.get("disallow_any_expr"))
    modules = {file.stem for file in (EXTENSION / "engine").glob("*.py")} - SPEAKS_OF_SESSIONS_ONLY
    assert {f"sglang_ext.engine.{module}" for module in modules} == set(without_any)
    for module in modules:
        text = (EXTENSION / "engine" / f"{module}.py").read_text()
        assert not [way for way in ("type: ignore", "getattr(", "setattr(", "cast(", "vars(") if way in text]


def test_private_parts_of_others_are_touched_in_compat_alone() -> None:
    files = set(EXTENSION.rglob("*.py")) - set((EXTENSION / "compat").rglob("*.py"))
    assert EXTENSION / "engine" / "prefill.py" in files
    touched = [
        f"{file.name}:{node.lineno}: {node.attr}"
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
        if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    ]
    assert touched == []


def test_the_page_has_the_table() -> None:
    """After a change: `python -c 'from sglang_ext.compat.descriptions import ...'` as docs/sessions.md says."""
    page = PAGE.read_text()
    assert table() in page
    for hook in plugin.hooks():
        assert hook.target.rpartition(".")[2] in page
    for version in compat.SUPPORTED_SGLANG:
        assert version in page
