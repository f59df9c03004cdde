"""The embedding model, in the assessing process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from shell_router.assess.likeness import EmbeddedText, Rows
from shell_router.config import EmbeddingConfig

_UNKNOWN_TOKEN = "unk_token_id"
_FRAME_TOKENS = ("cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id", "pad_token_id")


class Embedder:
    """Embeds the tokens of texts with a sentence-transformers model."""

    def __init__(self, config: EmbeddingConfig) -> None:
        """Raises what loading the model raises."""
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(config.path, device=config.device)
        names = (*_FRAME_TOKENS, _UNKNOWN_TOKEN)
        ids = {getattr(self._model.tokenizer, name, None) for name in names}
        self._left_out = [each for each in ids if each is not None]
        # Also warms the model up: the first call is the slowest.
        self.dimension = self.embed(["warm"])[0].rows.shape[1]

    def embed(self, texts: Sequence[str]) -> list[EmbeddedText]:
        """For each text the embeddings of its tokens, one row for each.

        Left out are padding (by the attention mask) and, by their ids, the token for what the vocabulary lacks and the
        tokens that a tokenizer puts around a text, such as [CLS] and [SEP]: they are alike in every answer. A text
        longer than the model takes is embedded in parts.
        """
        parts = [self._parts(text) for text in texts]
        flat = [part for each in parts for part in each]
        # An empty prompt: one that the model brings along would be in every answer.
        outputs = iter(self._model.encode(flat, prompt="", output_value=None, batch_size=32, show_progress_bar=False))
        rows = [np.concatenate([self._rows(next(outputs)) for _ in each]) for each in parts]
        return [
            EmbeddedText(known, len("".join(text.split())), sum(map(self._unknown_characters, each)))
            for known, text, each in zip(rows, texts, parts, strict=True)
        ]

    def _rows(self, output: dict[str, Any]) -> Rows:
        mask = output["attention_mask"].cpu().numpy().astype(bool)
        left_out = np.isin(output["input_ids"].cpu().numpy(), self._left_out)
        rows: Rows = output["token_embeddings"].float().cpu().numpy()[mask & ~left_out]
        return rows

    def _unknown_characters(self, text: str) -> int:
        """How many characters of `text` are in pieces that the vocabulary lacks, white space left out.

        A slow tokenizer does not tell where its pieces are: there each is taken for one character.
        """
        tokenizer = self._model.tokenizer
        unknown = getattr(tokenizer, _UNKNOWN_TOKEN, None)
        if unknown is None:
            return 0
        encoded = tokenizer(text, return_offsets_mapping=tokenizer.is_fast, add_special_tokens=False, verbose=False)
        ids = encoded["input_ids"]
        spans = encoded["offset_mapping"] if tokenizer.is_fast else [(0, 1)] * len(ids)
        pieces = (text[start:end] for token, (start, end) in zip(ids, spans, strict=True) if token == unknown)
        return sum(len("".join(piece.split())) for piece in pieces)

    def _parts(self, text: str) -> list[str]:
        """`text`, halved until each part fits into the model: what does not fit would be cut off silently."""
        limit = self._model.max_seq_length
        if limit is None or len(text) < 2 or len(self._model.tokenizer(text, verbose=False)["input_ids"]) <= limit:
            return [text]
        middle = len(text) // 2
        return self._parts(text[:middle]) + self._parts(text[middle:])
