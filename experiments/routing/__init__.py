"""A simulated study of routing among a pool of fifteen models: `graft bench routing`."""
