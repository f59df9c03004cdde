"""lm-evaluation-harness as a client of the shell router: `graft bench lm-eval --url URL --tree TREE`."""
