"""Graft: serve Mixture-of-Agents trees, ask them, and read what became of their runs.

```python
import graft

with graft.serve("cfgs/cluster/cpu_smollm2.json") as cluster, cluster.client() as client:
    answer = client.ask("What is 17 times 3?", tree="tree_3_1")
    print(answer.text, answer.ttft_s, client.record(answer.run_id).duration_s)
```

A router that is up already is asked with `graft.Client(url)`. What is named in `__all__` is meant to be used and stays;
the packages beneath (`shell_router`, `launch`, `experiments`, `sglang_ext`) may change from version to version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graft.serving import Served, serve
    from shell_router.client import Answer, AsyncClient, Client, ClientError, StreamError
    from shell_router.config import ConfigError
    from shell_router.core.tree import AgentConfig as Agent
    from shell_router.core.tree import TreeConfig as Tree
    from shell_router.errors import GraftError
    from shell_router.options import RunOptions
    from shell_router.record import RunRecord
    from shell_router.replay import replay

    __version__: str

__all__ = [
    "Agent",
    "Answer",
    "AsyncClient",
    "Client",
    "ClientError",
    "ConfigError",
    "GraftError",
    "RunOptions",
    "RunRecord",
    "Served",
    "StreamError",
    "Tree",
    "__version__",
    "replay",
    "serve",
]


def __getattr__(name: str) -> object:
    # Each when it is first asked for: `graft --help` needs none of them, and they load HTTP clients and tokenizers.
    if name in ("Served", "serve"):
        from graft import serving

        return getattr(serving, name)
    if name in ("Answer", "AsyncClient", "Client", "ClientError", "StreamError"):
        from shell_router import client

        return getattr(client, name)
    if name in ("Agent", "Tree"):
        from shell_router.core import tree

        return tree.AgentConfig if name == "Agent" else tree.TreeConfig
    if name == "ConfigError":
        from shell_router.config import ConfigError

        return ConfigError
    if name == "GraftError":
        from shell_router.errors import GraftError

        return GraftError
    if name == "RunOptions":
        from shell_router.options import RunOptions

        return RunOptions
    if name == "RunRecord":
        from shell_router.record import RunRecord

        return RunRecord
    if name == "replay":
        from shell_router.replay import replay

        return replay
    if name == "__version__":
        from importlib.metadata import version

        return version("graft-moa")
    raise AttributeError(f"module 'graft' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
