"""Compares answers, in a child process: likeness by token embeddings, and votes.

The router's own process loads neither torch nor sentence-transformers nor math-verify (`embedding.py` and `ballots.py`
do, in the child), and nothing here ever makes its event loop wait.
"""
