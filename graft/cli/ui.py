"""`graft ui`: the page of a running shell router, in this machine's browser."""

from __future__ import annotations

import argparse
import sys
import webbrowser

from graft.cli.clusters import ready_url
from launch import arguments as kinds


def main(argv: list[str]) -> int:
    """Raises `ConfigError` when no router is known."""
    arguments = _parser().parse_args(argv)
    url: str = arguments.url or ready_url(arguments.cluster)
    page = f"{url.rstrip('/').removesuffix('/v1')}/ui/"
    print(page, flush=True)
    if not arguments.print and not webbrowser.open(page):
        print("graft: there is no browser here that could be opened; open the address in one", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = kinds.Parser(
        prog="graft ui",
        description="Open the page of a running shell router: ask, and watch its tree work.",
        epilog="Where the router wants an API key, the page asks for it.",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", type=kinds.url, help="base URL of a running shell router, with or without /v1")
    where.add_argument("--cluster", metavar="NAME", help="a running cluster (default: the only one there is)")
    parser.add_argument("--print", action="store_true", help="print the address and open nothing")
    return parser
