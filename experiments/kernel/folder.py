"""The folder of one experiment: its configuration, where it was made, and what was measured, a line each, as it ends.

Results are never overwritten, and an interrupt loses none that has ended. A folder that is gone on with is one of the
same configuration, machine and software: numbers of two of these are no numbers of one experiment. Who has to go on
elsewhere, as on a machine that replaces one that was taken away, says so, and the folder keeps what was made where.
"""

from __future__ import annotations

from pathlib import Path
from typing import Generic, Self, TypeVar

import msgspec

from experiments.kernel.environment import Environment
from shell_router.config import ConfigError
from shell_router.documents import DocumentError, decode_document

T = TypeVar("T")
C = TypeVar("C", bound=msgspec.Struct)


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A time during which something was measured; an experiment that was resumed has several."""

    url: str
    """Base URL of the shell router."""
    environment: Environment
    started: float
    """Unix time, seconds."""


class Lines(Generic[T]):
    """JSON, one value a line. What was being written when the power went is taken off when it is read."""

    def __init__(self, path: Path, kind: type[T]) -> None:
        self.path = path
        self._kind = kind

    def read(self) -> list[T]:
        """Every whole line; none where there is no file. Raises `ConfigError` when one is of another kind."""
        if not self.path.exists():
            return []
        try:
            whole, end, torn = self.path.read_bytes().rpartition(b"\n")
            if torn:
                with self.path.open("r+b") as handle:
                    handle.truncate(len(whole + end))
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be read: {error}") from error
        values: list[T] = []
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                values.append(msgspec.json.decode(line, type=self._kind))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise ConfigError(f"{self.path}, line {number}: {error}") from error
        return values

    def add(self, value: T) -> None:
        with self.path.open("ab") as handle:
            handle.write(msgspec.json.encode(value) + b"\n")


class Folder(Generic[C]):
    """A folder of ours. `config.json` says what is measured, `sessions.jsonl` where and when."""

    def __init__(self, path: Path, config: C) -> None:
        """Use `create` or `reopen`."""
        self.path = path
        self.config = config
        self._sessions = Lines(path / "sessions.jsonl", Session)

    @classmethod
    def create(cls, path: Path, config: C) -> Self:
        """A new folder. Raises `ConfigError` when it is there."""
        try:
            path.mkdir(parents=True)
        except FileExistsError as error:
            raise ConfigError(f"{path} is there already; choose another --name, or --resume it") from error
        write_document(path / "config.json", config)
        return cls(path, config)

    @classmethod
    def reopen(cls, path: Path, kind: type[C], config: C | None = None) -> Self:
        """The folder of an experiment that is to go on. Raises `ConfigError` when it is none, or not of `config`."""
        try:
            stored = decode_document((path / "config.json").read_bytes(), kind)
        except (OSError, DocumentError) as error:
            raise ConfigError(f"{path} holds no experiment that can be resumed: {error}") from error
        if config is not None:
            changed = [name for name in config.__struct_fields__ if getattr(config, name) != getattr(stored, name)]
            if changed:
                places = ", ".join(f"`$.{name}`" for name in changed)
                raise ConfigError(f"{path} is of another cfg, only the same one can be resumed; it differs at {places}")
        return cls(path, stored)

    @property
    def sessions(self) -> list[Session]:
        """The times during which its results were made."""
        return self._sessions.read()

    def check_place(self, environment: Environment) -> None:
        """Raise `ConfigError` when what there is was made on another machine or by other software."""
        for earlier in self.sessions:
            changed = earlier.environment.differences(environment)
            if changed:
                raise ConfigError(
                    f"{self.path} was made with another {', '.join(changed)}; begin a new experiment, or go on with "
                    "--elsewhere: its report then tells what was made where"
                )

    def begin(self, session: Session) -> None:
        """Note that something is about to be measured."""
        self._sessions.add(session)


def write_document(path: Path, document: object) -> None:
    """A JSON file that a person can read."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")
