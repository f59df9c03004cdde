"""Tables of what members of a pool have answered, made of recorded runs: `graft score`."""
