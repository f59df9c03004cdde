"""Which worker runs on which GPU, with how much of its memory.

cards.py       what a machine has: memory, processes, links between cards; read through NVML or from JSON
sizes.py       weights and KV of a model, from its own config.json
reserve.py     what a worker needs besides these
demand.py      what each worker of a configuration asks for
place.py       the search: demands and cards to placements (pure)
allocation.py  all of it for one configuration
table.py       a plan as text
program/       which workers there should be for a known load: an integer program
"""
