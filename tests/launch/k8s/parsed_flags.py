"""Run by itself: reads command lines (JSON) and prints what the parsers of SGLang and sglang-router make of them."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any


def main() -> None:
    from sglang_ext.cpu import fallbacks

    fallbacks.install()
    from sglang.srt.server_args import ServerArgs
    from sglang_router.launch_router import parse_router_args

    asked: dict[str, dict[str, list[str]]] = json.load(sys.stdin)
    server = argparse.ArgumentParser()
    ServerArgs.add_cli_args(server)
    found: dict[str, dict[str, dict[str, Any]]] = {
        "worker": {name: vars(server.parse_args(flags)) for name, flags in asked["worker"].items()},
        "router": {name: vars(parse_router_args(flags)) for name, flags in asked["router"].items()},
    }
    json.dump(found, sys.stdout, default=repr)


if __name__ == "__main__":
    main()
