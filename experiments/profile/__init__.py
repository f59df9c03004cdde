"""What prompts and decode steps take of a model's workers: the profile that `graft plan --optimise` reads."""
