"""Named API keys, as a file or an environment variable has them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from shell_router.config import ClientCaps, ConfigError, KeysConfig, Name, NonNegativeInt, PositiveInt


class KeyConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One named key. Whoever sends it sees and ends the runs of that name, and no others."""

    name: Name
    """Of the client, as it stands in the records of its runs."""
    key: Annotated[str, Meta(min_length=8)] | None = None
    """The key itself."""
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")] | None = None
    """Its SHA-256 instead, in hexadecimal, so that the file does not tell the key."""
    operator: bool = False
    """Whether it sees and ends everybody's runs, and reads `/metrics`."""
    concurrent_runs: PositiveInt | None = None
    """Runs of this client that execute at a time; the router's own bound holds as well."""
    queued_runs: NonNegativeInt | None = None
    """Runs of this client that wait for a place."""
    caps: ClientCaps | None = None
    """What this client may ask for, in place of the router's `caps`."""

    def __post_init__(self) -> None:
        if (self.key is None) == (self.sha256 is None):
            raise ValueError("a key needs either `key` or `sha256`")

    @property
    def digest(self) -> bytes:
        """SHA-256 of the key."""
        return bytes.fromhex(self.sha256) if self.sha256 is not None else digest(self.key or "")


class KeysFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a file of keys, or an environment variable in its place, holds."""

    keys: Annotated[tuple[KeyConfig, ...], Meta(min_length=1)]

    def __post_init__(self) -> None:
        names: set[str] = set()
        digests: dict[bytes, str] = {}
        for number, each in enumerate(self.keys):
            if each.name in names:
                raise ValueError(f"Name {each.name!r} is used twice - at `$.keys[{number}].name`")
            if (other := digests.get(each.digest)) is not None:
                raise ValueError(f"The key of {each.name!r} is that of {other!r} - at `$.keys[{number}]`")
            names.add(each.name)
            digests[each.digest] = each.name


def digest(key: str) -> bytes:
    """SHA-256 of `key`. Digests have one length, so that a comparison's time tells nothing of the key's."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def load_keys(config: KeysConfig, environment: Mapping[str, str]) -> KeysFile:
    """The keys of `config`. Raises `ConfigError`; its message never tells what the file or the variable holds."""
    if config.file is not None:
        place = f"keys.file: {config.file}"
        try:
            written = Path(config.file).read_bytes()
        except OSError as error:
            raise ConfigError(f"{place}: cannot be read: {error.strerror}") from error
    else:
        place = f"keys.env: the environment variable {config.env}"
        written = environment.get(config.env or "", "").encode(errors="surrogateescape")
        if not written.strip():
            raise ConfigError(f"{place} is not set, or empty")
    try:
        return msgspec.json.decode(written, type=KeysFile)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{place}: {error}") from error
    except msgspec.DecodeError:
        raise ConfigError(f"{place}: it is not JSON") from None
