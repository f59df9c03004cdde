"""The pure core: trees, prompts, answers and the plan of a run. No I/O, no clock, no asyncio."""
