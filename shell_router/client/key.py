"""The API key as a client of the shell router has it."""

from __future__ import annotations

import os

from shell_router.config import ConfigError

KEY_VARIABLE = "GRAFT_API_KEY"
"""Environment variable with the API key for a shell router that wants one."""


def client_key() -> str | None:
    """The key in `KEY_VARIABLE`, if there is one. Raises `ConfigError` for one that no header can hold."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key.isprintable():
        # Without the key: it is told to nobody.
        raise ConfigError(f"the environment variable {KEY_VARIABLE} holds characters that no key has")
    return key or None
