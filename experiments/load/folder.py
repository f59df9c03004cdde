"""The folder of a load test: a line for each block, written as the block ends."""

from __future__ import annotations

from pathlib import Path

from experiments.kernel.folder import Folder, Lines
from experiments.load.block import Block, BlockKey
from experiments.load.config import LoadConfig


class LoadFolder(Folder[LoadConfig]):
    """`blocks` holds what has been measured, also before an interrupt."""

    def __init__(self, path: Path, config: LoadConfig) -> None:
        super().__init__(path, config)
        self._lines = Lines(path / "blocks.jsonl", Block)
        self.blocks: dict[BlockKey, Block] = {block.key: block for block in self._lines.read()}
        self.blocks_file = self._lines.path
        self.report_file = path / "report.json"

    def add(self, block: Block) -> None:
        """Keep a block that has ended."""
        self.blocks[block.key] = block
        self._lines.add(block)
