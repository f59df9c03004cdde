"""`graft ask`: one question to a running shell router, answered piece by piece."""

from __future__ import annotations

import argparse
import math
import sys
from typing import get_args

from graft.cli.clusters import ready_url
from shell_router.client import KEY_VARIABLE, Client, ClientError
from shell_router.core.early_exit import ExitMode, ExitOverride
from shell_router.options import RunOptions


def main(argv: list[str]) -> int:
    """Raises `ConfigError` when there is nobody to ask, `ClientError` when there is no answer."""
    arguments = _parser().parse_args(argv)
    url: str = arguments.url or ready_url(arguments.cluster)
    options = RunOptions(
        mode=arguments.mode,
        early_exit=ExitOverride() if arguments.early_exit is None else ExitOverride(mode=arguments.early_exit),
        deadline_s=arguments.deadline,
    )
    with Client(url) as client:
        tree: str | None = arguments.tree
        if tree is None:
            served = client.trees()
            if not served:
                raise ClientError(f"{url} serves no tree")
            tree = served[0]
            print(f"graft: asking {tree} (--tree takes {', '.join(served)})", file=sys.stderr)
        with client.stream(arguments.question, tree=tree, options=options) as pieces:
            for piece in pieces:
                print(piece, end="", flush=True)
        print()
        if remarks := pieces.answer.told.remarks():
            print(f"graft: {'; '.join(remarks)}", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="graft ask",
        description="Ask a running cluster one question and print the answer as it comes.",
        epilog=f"A shell router that wants an API key is sent that of the environment variable {KEY_VARIABLE}.",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", help="of a shell router")
    where.add_argument("--cluster", metavar="NAME", help="a running cluster (default: the only one there is)")
    parser.add_argument("--tree", help="which tree answers (default: the first one that is served)")
    parser.add_argument("--mode", choices=("blocking", "spliced"), default="spliced")
    parser.add_argument(
        "--early-exit",
        choices=get_args(ExitMode),
        metavar="MODE",
        help=f"when the rest of a cluster is not waited for: {', '.join(get_args(ExitMode))} (default: the tree's)",
    )
    parser.add_argument("--deadline", type=_seconds, metavar="SECONDS", help="longest time the answer may take")
    parser.add_argument("question")
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return seconds
