"""Placement as an integer program: how many workers of each model, on which cards, for a load that is known.

`launch.gpu.place` finds room for the workers that a configuration names. This package chooses the workers: it is what
MOSAIC (arXiv 2606.03014) does by its abstract, an integer program that places models and shares out prompts together,
from costs that are known beforehand. Its formulas were not at hand; those in `problem.py` are our own.

classes.py   what a run asks of each model: the agents of the trees
specs.py     published numbers of cards
costs.py     seconds of a model on a card, estimated from these or from a profile
problem.py   the program: options, tasks, what they come to (pure)
solver.py    the program for HiGHS, through scipy
options.py   the program of a configuration: which workers there may be, with what load
optimum.py   all of it for one configuration, beside the plan without it
document.py  the configuration with the workers that were chosen
shown.py     an optimum as text
"""
