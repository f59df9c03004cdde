"""The folder of a load test: its configuration, and a line for each block, written as the block ends."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import msgspec

from experiments.kernel.environment import Environment
from experiments.load.block import Block, BlockKey
from experiments.load.config import LoadConfig
from shell_router.config import ConfigError, load_json


class Begun(msgspec.Struct, frozen=True, kw_only=True):
    """What is known before the first block."""

    config: LoadConfig
    environment: Environment


class Folder:
    """`blocks` holds what has been measured, also before an interrupt."""

    def __init__(self, path: Path, begun: Begun) -> None:
        self.path = path
        self.begun = begun
        self.blocks: dict[BlockKey, Block] = {}

    @property
    def blocks_file(self) -> Path:
        return self.path / "blocks.jsonl"

    @property
    def report_file(self) -> Path:
        return self.path / "report.json"

    @classmethod
    def create(cls, path: Path, begun: Begun) -> Self:
        """Raises `ConfigError` when it is there: results are never overwritten."""
        try:
            path.mkdir(parents=True)
        except FileExistsError as error:
            raise ConfigError(f"{path} is there already; choose another --name, or --resume it") from error
        text = msgspec.json.format(msgspec.json.encode(begun), indent=1)
        (path / "config.json").write_bytes(text + b"\n")
        return cls(path, begun)

    @classmethod
    def resume(cls, path: Path) -> Self:
        """Raises `ConfigError` when it is not one of ours."""
        folder = cls(path, load_json(path / "config.json", Begun))
        lines = folder.blocks_file.read_bytes().split(b"\n") if folder.blocks_file.exists() else [b""]
        # What follows the last newline is nothing, or a line that was cut off in writing.
        whole, torn = lines[:-1], lines[-1]
        for number, line in enumerate(whole, 1):
            try:
                block = msgspec.json.decode(line, type=Block)
            except msgspec.DecodeError as error:
                raise ConfigError(f"{folder.blocks_file}, line {number}: {error}") from error
            folder.blocks[block.key] = block
        if torn:
            folder.blocks_file.write_bytes(b"".join(line + b"\n" for line in whole))
        return folder

    def add(self, block: Block) -> None:
        """Keep a block that has ended."""
        self.blocks[block.key] = block
        with self.blocks_file.open("ab") as handle:
            handle.write(msgspec.json.encode(block) + b"\n")
