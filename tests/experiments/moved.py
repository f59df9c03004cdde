"""An experiment that is gone on with elsewhere."""

from __future__ import annotations

from pathlib import Path

import msgspec

from experiments.kernel.folder import Session


def move(folder: Path) -> None:
    """Have what there is be made by other code than this."""
    file = folder / "sessions.jsonl"
    sessions = [msgspec.json.decode(line, type=Session) for line in file.read_bytes().splitlines()]
    moved = [
        msgspec.structs.replace(each, environment=msgspec.structs.replace(each.environment, commit="0" * 40))
        for each in sessions
    ]
    file.write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in moved))
