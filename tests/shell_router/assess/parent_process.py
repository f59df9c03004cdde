"""An assessor and its parent: `python -m tests.shell_router.assess.parent_process`. It uses it at each SIGUSR1."""

from __future__ import annotations

import asyncio
import signal

from shell_router.assess.client import open_assessor


async def main() -> None:
    again = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, again.set)
    async with open_assessor(None) as assessor:
        print(await assessor.ballots(["a", "a"], "text"), flush=True)
        while await again.wait():
            again.clear()
            print(await assessor.ballots(["a", "b"], "text"), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
