"""The console script `graft`: all commands, and what their exit codes mean.

Exit codes: 0 done, 1 something failed while running, 2 the request or a configuration is wrong, 130 interrupted,
141 who read the output has left.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from launch.arguments import Parser
from shell_router.errors import GraftError

OK, FAILED, WRONG, INTERRUPTED, LEFT = 0, 1, 2, 130, 141
"""The last two are those of a shell for what SIGINT and SIGPIPE end."""


_NAMED_WRONG = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
_EXTRAS = {"experiments": "experiments", "matplotlib": "experiments", "scipy": "experiments"}
"""Which extra brings a package that the core does without."""


class NotInstalled(GraftError):
    """A command is there, and what it needs is not."""

    exit_code = WRONG


class Command(NamedTuple):
    """One command. `main` imports what it needs when it is called: `graft --help` needs nothing of it."""

    help: str
    main: Callable[[list[str]], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the command line names; answers the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with _terminated_like_interrupted():
            return _run(arguments)
    except GraftError as error:
        print(f"graft: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("graft: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Who read the output has left, as `| head` does; nothing of it is to be written at the end either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return LEFT
    except OSError as error:
        # Of a file that was named or a place to write to. Connections have words of their own.
        if error.filename is None and error.errno != errno.ENOSPC:
            raise
        print(f"graft: {error.filename or 'the output'}: {error.strerror}", file=sys.stderr)
        return WRONG if isinstance(error, _NAMED_WRONG) else FAILED


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["--version"]:
        from graft import __version__

        print(f"graft {__version__}")
        return OK
    return _dispatch("graft", "Serve trees of agents on stock SGLang, and measure it.", COMMANDS, arguments)


def _dispatch(prog: str, description: str, commands: Mapping[str, Command], arguments: list[str]) -> int:
    """Hand the arguments behind the command's name to the command, whose parser they are for."""
    parser = Parser(prog=prog, description=description)
    if prog == "graft":
        parser.add_argument("--version", action="store_true", help="print the version and end")
    listed = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, command in commands.items():
        listed.add_parser(name, help=command.help, add_help=False)
    chosen: str = parser.parse_args(arguments[:1]).command
    try:
        return commands[chosen].main(arguments[1:])
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        raise NotInstalled(f"{prog} {chosen} needs {error.name}: pip install 'graft-moa[{extra}]'") from error


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """A supervisor's SIGTERM and a closed terminal's SIGHUP stop what was started and keep what is finished, just as
    Ctrl-C does."""
    # `nohup` has SIGHUP ignored, and that stays.
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(_number: int, _frame: object) -> None:
    # While runs are made, asyncio answers SIGINT by cancelling what is in flight: nothing is torn in the middle.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # So a shell without job control starts what is in the background.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.raise_signal(signal.SIGINT)


def _up(arguments: list[str]) -> int:
    from graft.cli import clusters

    return clusters.up(arguments)


def _down(arguments: list[str]) -> int:
    from graft.cli import clusters

    return clusters.down(arguments)


def _status(arguments: list[str]) -> int:
    from graft.cli import clusters

    return clusters.status(arguments)


def _check(arguments: list[str]) -> int:
    from graft.cli import check

    return check.main(arguments)


def _ask(arguments: list[str]) -> int:
    from graft.cli import ask

    return ask.main(arguments)


def _ui(arguments: list[str]) -> int:
    from graft.cli import ui

    return ui.main(arguments)


def _plan(arguments: list[str]) -> int:
    from graft.cli import plan

    return plan.main(arguments)


def _cards(arguments: list[str]) -> int:
    from graft.cli import plan

    return plan.cards(arguments)


def _schema(arguments: list[str]) -> int:
    from graft.cli import schema

    return schema.main(arguments)


def _reference(arguments: list[str]) -> int:
    from graft.cli import reference

    return reference.main(arguments)


def _experiment(arguments: list[str]) -> int:
    from experiments.settings import command

    return command.main(arguments)


def _report(arguments: list[str]) -> int:
    from experiments.report import command

    return command.main(arguments)


def _replay(arguments: list[str]) -> int:
    from experiments.replay import command

    return command.main(arguments)


def _score(arguments: list[str]) -> int:
    from experiments.scores import command

    return command.main(arguments)


def _questions(arguments: list[str]) -> int:
    from experiments.questions import command

    return command.main(arguments)


def _gpu(arguments: list[str]) -> int:
    from experiments.gpu import command

    return command.main(arguments)


def _profile(arguments: list[str]) -> int:
    from experiments.profile import command

    return command.main(arguments)


def _bench(arguments: list[str]) -> int:
    return _dispatch("graft bench", "Measure one thing.", BENCHMARKS, arguments)


def _overlap(arguments: list[str]) -> int:
    from experiments.overlap import command

    return command.main(arguments)


def _drafts(arguments: list[str]) -> int:
    from experiments.drafts import command

    return command.main(arguments)


def _load(arguments: list[str]) -> int:
    from experiments.load import command

    return command.main(arguments)


def _router(arguments: list[str]) -> int:
    from experiments.router_cost import command

    return command.main(arguments)


def _routing(arguments: list[str]) -> int:
    from experiments.routing import command

    return command.main(arguments)


def _lm_eval(arguments: list[str]) -> int:
    from experiments.lm_eval import command

    return command.main(arguments)


COMMANDS: Mapping[str, Command] = {
    "up": Command("start a cluster and stay with it until it is stopped", _up),
    "down": Command("stop a cluster", _down),
    "status": Command("show clusters, their processes and URLs", _status),
    "ask": Command("ask a running cluster one question and print the answer as it comes", _ask),
    "ui": Command("open the page on which a running cluster's trees are watched", _ui),
    "check": Command("check a configuration, and this machine for it; start nothing", _check),
    "plan": Command("show which worker would run on which GPU; start nothing", _plan),
    "cards": Command("show the GPUs of this machine and their links", _cards),
    "schema": Command("write the JSON Schemas in cfgs/schema from the types", _schema),
    "reference": Command("write reference pages of commands, configuration files and HTTP API", _reference),
    "run": Command("compare settings (trees, and how they are run) on the same workers", _experiment),
    "report": Command("tables and pictures of experiments", _report),
    "replay": Command("let recorded runs decide again, without an engine", _replay),
    "score": Command("make a table of what the members of a pool have answered, for its scorer", _score),
    "questions": Command("see which benchmarks are there, and some of their questions", _questions),
    "bench": Command("measure one thing: overlap, drafts, load, router, routing, lm-eval", _bench),
    "profile": Command("measure what a cluster's models take, for `graft plan --optimise`", _profile),
    "gpu": Command("measure overlap and the four settings on one GPU, with random weights", _gpu),
}
BENCHMARKS: Mapping[str, Command] = {
    "overlap": Command("blocking, resend and incremental prefill against each other, on one pair of workers", _overlap),
    "drafts": Command("decoding with predictions of known worth against decoding without, by batch", _drafts),
    "load": Command("an open-loop load test of a running router or of a cluster started for it", _load),
    "router": Command("what the shell router itself costs", _router),
    "routing": Command("routing among fifteen models against fixed trees, simulated: no engine is asked", _routing),
    "lm-eval": Command("what lm-evaluation-harness makes of a tree's answers", _lm_eval),
}
