"""What the shell router itself costs: `python -m experiments.router_cost`."""
