"""Incremental sessions inside SGLang's processes: the channel between them, and the part of each worker's scheduler."""
