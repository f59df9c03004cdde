"""What the shell router itself costs: `graft bench router`."""
