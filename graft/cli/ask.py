"""`graft ask`: one question to a running shell router, answered piece by piece."""

from __future__ import annotations

import argparse
import sys
from typing import get_args

from graft.cli.clusters import ready_url
from launch import arguments as kinds
from shell_router.client import KEY_VARIABLE, Client, ClientError
from shell_router.core.early_exit import ExitMode, ExitOverride
from shell_router.options import RunOptions
from shell_router.record import DraftMode


def main(argv: list[str]) -> int:
    """Raises `ConfigError` when there is nobody to ask, `ClientError` when there is no answer."""
    arguments = _parser().parse_args(argv)
    url: str = arguments.url or ready_url(arguments.cluster)
    options = RunOptions(
        mode=arguments.mode,
        early_exit=ExitOverride() if arguments.early_exit is None else ExitOverride(mode=arguments.early_exit),
        drafts=arguments.drafts,
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
    parser = kinds.Parser(
        prog="graft ask",
        description="Ask a running cluster one question and print the answer as it comes.",
        epilog=f"A shell router that wants an API key is sent that of the environment variable {KEY_VARIABLE}.",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", type=kinds.url, help="base URL of a running shell router, with or without /v1")
    where.add_argument("--cluster", metavar="NAME", help="a running cluster (default: the only one there is)")
    parser.add_argument(
        "--tree", type=kinds.words, metavar="NAME", help="which tree answers (default: the first one that is served)"
    )
    parser.add_argument(
        "--mode",
        choices=("blocking", "spliced"),
        default="spliced",
        help="whether a successor's prompt waits for whole answers, or takes them up as they come (default: spliced)",
    )
    parser.add_argument(
        "--drafts",
        choices=get_args(DraftMode),
        default="auto",
        help="whether workers that can may draft several tokens a step; no answer depends on it (default: auto)",
    )
    parser.add_argument(
        "--early-exit",
        choices=get_args(ExitMode),
        metavar="MODE",
        help=f"when the rest of a cluster is not waited for: {', '.join(get_args(ExitMode))} (default: the tree's)",
    )
    parser.add_argument("--deadline", type=kinds.seconds, metavar="SECONDS", help="longest time the answer may take")
    parser.add_argument("question", type=kinds.words, help="what is asked; quote it")
    return parser
