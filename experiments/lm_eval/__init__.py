"""lm-evaluation-harness as a client of the shell router: `python -m experiments.lm_eval --url URL --tree TREE`."""
