"""The bounds of sessions: from a configuration through the environment to a worker."""

from __future__ import annotations

import pytest

from sglang_ext.settings import SessionSettings, from_environment


def test_what_is_set_arrives() -> None:
    settings = SessionSettings(kv_share=0.25, max_sessions=7, ttl_s=3.5)
    assert from_environment(settings.to_environment()) == settings


def test_defaults_need_no_variable() -> None:
    assert SessionSettings().to_environment() == {}
    assert from_environment({"PATH": "/bin"}) == SessionSettings()
    assert SessionSettings(ttl_s=9).to_environment() == {"GRAFT_SESSION_TTL_S": "9"}


@pytest.mark.parametrize(
    ("variable", "value"),
    [("GRAFT_SESSION_KV_SHARE", "1.5"), ("GRAFT_MAX_SESSIONS", "many"), ("GRAFT_SESSION_TTL_S", "0")],
)
def test_a_wrong_variable_is_named(variable: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{variable}='{value}'"):
        from_environment({variable: value})
