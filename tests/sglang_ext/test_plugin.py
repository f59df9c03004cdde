"""The plugin: which hooks belong where, and that what does not fit ends the process."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from sglang_ext import compat, plugin, protocol
from sglang_ext.cpu import waiting


def test_cpu_hooks_are_for_cpu_engines_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SGLANG_USE_CPU_ENGINE", raising=False)
    everywhere = [hook.target for hook in plugin.hooks()]
    assert len(set(everywhere)) == len(everywhere)
    assert not {compat.NIXL_MANAGER_INIT, compat.TORCH_NATIVE_EXTEND} & set(everywhere)
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", "1")
    assert {compat.NIXL_MANAGER_INIT, compat.TORCH_NATIVE_EXTEND} < {hook.target for hook in plugin.hooks()}


def test_dummy_weights_are_drawn_as_wide_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAFT_DUMMY_WEIGHTS", raising=False)
    assert compat.DUMMY_WEIGHTS not in {hook.target for hook in plugin.hooks()}
    monkeypatch.setenv("GRAFT_DUMMY_WEIGHTS", "0.03")
    (hook,) = [hook for hook in plugin.hooks() if hook.target == compat.DUMMY_WEIGHTS]
    assert hook.function("model") == (("model",), {"low": -0.03, "high": 0.03, "seed": 1234})
    monkeypatch.setenv("GRAFT_DUMMY_WEIGHTS", "2")
    with pytest.raises(ValueError, match="GRAFT_DUMMY_WEIGHTS='2'"):
        plugin.hooks()


def test_a_cpu_scheduler_that_waits_for_a_transfer_leaves_its_core_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    turns: list[object] = []

    class Idle:
        def __init__(self, idle: bool) -> None:
            self.idle = idle

        def is_fully_idle(self) -> bool:
            return self.idle

    for idle in (True, False):
        waiting.on_idle(turns.append, Idle(idle))  # type: ignore[arg-type]
    assert len(turns) == 2
    assert len(slept) == 1


def test_another_sglang_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sglang_ext.compat.versions.SUPPORTED_SGLANG", ("9.9.9",))
    with pytest.raises(SystemExit, match=r"sglang [0-9.]+ is installed; this extension supports 9\.9\.9"):
        plugin.load()


@pytest.mark.parametrize(
    ("target", "message"),
    [("sglang.srt.plugins.nothing.here", "is missing"), ("sglang.srt.plugins.GENERAL_PLUGINS_GROUP", "not callable")],
)
def test_a_hook_without_its_target_ends_the_process(monkeypatch: pytest.MonkeyPatch, target: str, message: str) -> None:
    hook = compat.Hook(target, "after", lambda result: result, "a reason")
    monkeypatch.setattr(plugin, "hooks", lambda: (hook,))
    with pytest.raises(SystemExit, match=f"hook target {target} .*{message}"):
        plugin.load()


@pytest.mark.parametrize(
    ("lack", "told"),
    [
        (
            "from sglang_ext.compat import versions; versions.SUPPORTED_SGLANG = ()",
            "is installed; this extension supports",
        ),
        ("sys.modules['sglang.srt.disaggregation.nixl.conn'] = None", "nixl.conn.NixlKVSender is missing"),
    ],
    ids=["version", "module"],
)
def test_a_failing_plugin_stops_sglang_itself(lack: str, told: str) -> None:
    """SGLang's loader swallows exceptions, those of importing us too; ours must get through it."""
    code = (
        "import sys; from sglang_ext.cpu import fallbacks; fallbacks.install()\n"
        f"{lack}\n"
        "from sglang.srt.plugins import load_plugins; load_plugins(); print('served without the extension')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "graft: the SGLang extension cannot run here" in done.stderr
    assert told in done.stderr
    assert "served without" not in done.stdout


def test_status_names_hooks_that_are_not_in_force() -> None:
    hook = protocol.HookStatus(target="a.b", reason="r", applied=False)
    status = protocol.Status(
        plugin_version="1", sglang_version="2", role="prefill", device="cpu", page_size=16,
        bootstrap_port=None, sessions=None, refusal=None,
        hooks=(hook, protocol.HookStatus(target="c.d", reason="r", applied=True)),
    )  # fmt: skip
    assert status.missing() == ("a.b",)
