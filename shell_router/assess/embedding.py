"""The embedding model, in the assessing process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from shell_router.assess.likeness import Rows
from shell_router.config import EmbeddingConfig

_FRAME_TOKENS = ("cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id", "pad_token_id")


class Embedder:
    """Embeds the tokens of texts with a sentence-transformers model."""

    def __init__(self, config: EmbeddingConfig) -> None:
        """Raises what loading the model raises."""
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(config.path, device=config.device)
        ids = {getattr(self._model.tokenizer, name, None) for name in _FRAME_TOKENS}
        self._frame_ids = [each for each in ids if each is not None]
        # Also warms the model up: the first call is the slowest.
        self.dimension = self.embed(["warm"])[0].shape[1]

    def embed(self, texts: Sequence[str]) -> list[Rows]:
        """For each text the embeddings of its tokens, one row for each.

        Left out are padding (by the attention mask) and the tokens that a tokenizer puts around a text, such as [CLS]
        and [SEP] (by their ids): every answer has them alike. A text longer than the model takes is embedded in parts.
        """
        parts = [self._parts(text) for text in texts]
        flat = [part for each in parts for part in each]
        # An empty prompt: one that the model brings along would be in every answer.
        outputs = iter(self._model.encode(flat, prompt="", output_value=None, batch_size=32, show_progress_bar=False))
        return [np.concatenate([self._rows(next(outputs)) for _ in each]) for each in parts]

    def _rows(self, output: dict[str, Any]) -> Rows:
        mask = output["attention_mask"].cpu().numpy().astype(bool)
        framing = np.isin(output["input_ids"].cpu().numpy(), self._frame_ids)
        rows: Rows = output["token_embeddings"].float().cpu().numpy()[mask & ~framing]
        return rows

    def _parts(self, text: str) -> list[str]:
        """`text`, halved until each part fits into the model: what does not fit would be cut off silently."""
        limit = self._model.max_seq_length
        if limit is None or len(text) < 2 or len(self._model.tokenizer(text, verbose=False)["input_ids"]) <= limit:
            return [text]
        middle = len(text) // 2
        return self._parts(text[:middle]) + self._parts(text[middle:])
