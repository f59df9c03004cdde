"""Graft on one GPU with random weights of a real size: the overlap benchmark and the four settings in one command."""
