"""`graft`: its commands, exit codes, and messages that a person can act on."""

from __future__ import annotations

import argparse
import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import time
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, NoReturn, Self

import jsonschema
import msgspec
import pytest

from graft import cli
from graft.cli import ask, schema
from launch import state
from launch.arguments import Parser
from launch.state import Breakdown, ClusterState, Death, ProcessId, ProcessState
from shell_router.app import build_app
from shell_router.auth import Guard
from shell_router.client import Answer, Told, Usage
from shell_router.client.key import KEY_VARIABLE
from shell_router.core.early_exit import ExitOverride
from shell_router.options import RunOptions
from tests.shell_router.serving import serving
from tests.shell_router.test_openai_schema import CASES, Case

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_HOME", str(tmp_path / "home"))
    # The process belongs to pytest: leave its signals alone.
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)


def cluster_file(tmp_path: Path, **changes: object) -> Path:
    document = {
        "name": "c",
        "models": [{"name": "m", "path": "builtin:tiny-llama", "device": "cpu", "prefill": [{}], "decode": [{}]}],
        "shell_router": {"trees": []},
    }
    path = tmp_path / "c.json"
    path.write_text(json.dumps(document | changes))
    return path


def running(name: str = "c", launcher: ProcessId | None = None, url: str | None = "http://127.0.0.1:1") -> None:
    me = ProcessId.of(os.getpid())
    state.write(
        ClusterState(
            name=name,
            launcher=launcher or me,
            run_dir="/logs",
            url=url,
            processes=(
                ProcessState(name="m-prefill-0", id=me, url="http://127.0.0.1:2", log=""),
                ProcessState(name="m-decode-0", id=ProcessId(me.pid, 1.0), url="http://127.0.0.1:3", log=""),
            ),
        )
    )


def test_a_sound_cluster_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(cluster_file(tmp_path))]) == 0
    assert capsys.readouterr().out.endswith("c.json: cluster c can start here\n")


@pytest.mark.parametrize("command", ["check", "up"])
def test_a_wrong_configuration_is_the_users(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, str(tmp_path / "none.json")]) == 2
    assert "none.json: cannot be read: No such file" in capsys.readouterr().err
    assert cli.main([command, str(cluster_file(tmp_path, models=[]))]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("graft: ")
    assert captured.err.endswith("at `$.models`\n")
    assert captured.err.count("\n") == 1


def test_what_this_machine_lacks_is_said_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["up", str(cluster_file(tmp_path, shell_router={"trees": ["none.json"]}))]) == 2
    assert "cluster c cannot start here:\n  - $.shell_router.trees[0]: " in capsys.readouterr().err
    assert state.read_all() == ()


def test_a_cluster_is_started_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    running()
    assert cli.main(["up", str(cluster_file(tmp_path))]) == 2
    assert capsys.readouterr().err == "graft: cluster c is already up; stop it with `graft down c`\n"


@pytest.mark.parametrize("command", [["down"], ["ask", "why?"]])
def test_without_a_cluster(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command) == 2
    assert capsys.readouterr().err == "graft: say which cluster; none is up\n"


def test_with_several_clusters_a_name_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    running("c")
    running("d")
    assert cli.main(["down"]) == 2
    assert cli.main(["down", "e"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "graft: say which cluster; there are c, d",
        "graft: no cluster e; there are c, d",
    ]


def test_down_forgets_a_cluster_that_is_gone(capsys: pytest.CaptureFixture[str]) -> None:
    gone = ProcessId(os.getpid(), 1.0)
    state.write(ClusterState(name="c", launcher=gone, run_dir="/logs"))
    assert cli.main(["down"]) == 0
    assert capsys.readouterr().out == "cluster c is down\n"
    assert state.read_all() == ()


def test_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status"]) == 0
    assert capsys.readouterr().out == "no cluster is up\n"
    running()
    assert cli.main(["status"]) == 0
    pid = f"{os.getpid():>7}"
    assert capsys.readouterr().out.splitlines() == [
        "cluster c: ready at http://127.0.0.1:1; logs in /logs",
        f"  launcher     {pid}  alive",
        f"  m-prefill-0  {pid}  alive     http://127.0.0.1:2",
        f"  m-decode-0   {pid}  dead      http://127.0.0.1:3",
    ]
    running(url=None)
    assert cli.main(["status", "c"]) == 0
    assert capsys.readouterr().out.startswith("cluster c: starting; ")
    running(launcher=ProcessId(os.getpid(), 1.0))
    assert cli.main(["status", "c"]) == 1
    assert capsys.readouterr().out.startswith("cluster c: its launcher died; ")


def test_status_tells_what_died_and_what_became_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    begin, third, fourth = (time.strftime("%F %T", time.localtime(60.0 * n)) for n in (0, 3, 4))
    me = ProcessId.of(os.getpid())
    gone = ProcessId(me.pid, 1.0)
    deaths = [
        Death(at=60.0 * n, why=f"died with exit code {n}", last_lines=lines) for n, lines in ((3, "a\nb"), (4, ""))
    ]
    up = ClusterState(
        name="c",
        launcher=me,
        run_dir="/logs",
        url="http://127.0.0.1:1",
        processes=(
            ProcessState(name="p", id=me, url="http://127.0.0.1:2", log="/logs/p.log", restarts=1, death=deaths[0]),
            ProcessState(name="d", id=me, url="", log="/logs/d.log", ready=False, restarts=2, death=deaths[1]),
            ProcessState(name="r", id=gone, url="", log="/logs/r.log", ready=False, death=deaths[1]),
        ),
    )
    history = [
        f"  p died with exit code 3 at {third}, restarted once; the end of /logs/p.log then:",
        "      a",
        "      b",
        f"  d died with exit code 4 at {fourth}, restarted 2 times; the end of /logs/d.log then:",
        "      (nothing)",
        f"  r died with exit code 4 at {fourth}; the end of /logs/r.log then:",
        "      (nothing)",
    ]
    state.write(up)
    assert cli.main(["status"]) == 0
    pid = f"{me.pid:>7}"
    assert capsys.readouterr().out.splitlines() == [
        "cluster c: at http://127.0.0.1:1, but without d, r; logs in /logs",
        f"  launcher  {pid}  alive",
        f"  p         {pid}  alive     http://127.0.0.1:2",
        f"  d         {pid}  starting",
        f"  r         {pid}  dead",
        *history,
    ]
    broken = Breakdown(at=0.0, why="r died 6 times within 30 minutes; the last time it died with exit code 4")
    state.write(msgspec.structs.replace(up, launcher=gone, breakdown=broken))
    assert cli.main(["status"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"cluster c: it broke down at {begin}: {broken.why}; logs in /logs"
    assert said[-7:] == history
    assert cli.main(["ask", "why?"]) == 2
    said_of = f"graft: cluster c is not running: it broke down at {begin}: {broken.why}; see `graft status c`"
    assert capsys.readouterr().err.splitlines() == [said_of]
    assert cli.main(["down"]) == 0
    assert state.names() == ()


def test_the_one_that_runs_is_meant_where_another_broke_down(client: type[FakeClient]) -> None:
    running("other")
    running("gone", launcher=ProcessId(os.getpid(), 1.0))
    assert cli.main(["ask", "--tree", "t", "why?"]) == 0
    assert [url for url, *_ in client.asked] == ["http://127.0.0.1:1"]


def test_ask_wants_a_cluster_that_is_ready(capsys: pytest.CaptureFixture[str]) -> None:
    running(url=None)
    assert cli.main(["ask", "why?"]) == 2
    running(launcher=ProcessId(os.getpid(), 1.0))
    assert cli.main(["ask", "why?"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "graft: cluster c is still starting",
        "graft: cluster c is not running: its launcher died; see `graft status c`",
    ]


def test_ask_of_a_router_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ask", "--url", "http://127.0.0.1:9", "--tree", "t", "why?"]) == 1
    assert "the connection failed" in capsys.readouterr().err


@pytest.mark.parametrize("opens", [True, False])
def test_the_page_is_named_and_opened(
    opens: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []

    def browse(url: str) -> bool:
        opened.append(url)
        return opens

    monkeypatch.setattr(webbrowser, "open", browse)
    running()
    assert cli.main(["ui"]) == 0
    assert cli.main(["ui", "--url", "http://127.0.0.1:7/v1"]) == 0
    assert opened == ["http://127.0.0.1:1/ui/", "http://127.0.0.1:7/ui/"]
    captured = capsys.readouterr()
    assert captured.out.splitlines() == opened
    assert ("there is no browser here" in captured.err) is not opens
    assert cli.main(["ui", "--print"]) == 0
    assert len(opened) == 2
    assert cli.main(["ui", "--cluster", "other"]) == 2


class FakeClient:
    """Stands for `shell_router.client.Client`: an answer in two pieces, and what is told of it."""

    asked: ClassVar[list[tuple[str, str, str, RunOptions]]] = []
    told: ClassVar[Told] = Told(answered_by="root")

    def __init__(self, url: str) -> None:
        self.url = url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[str]:
        return iter(("for", "ty-two"))

    def trees(self) -> tuple[str, ...]:
        return "t", "u"

    def stream(self, question: str, *, tree: str, options: RunOptions) -> FakeClient:
        self.asked.append((self.url, tree, question, options))
        return self

    @property
    def answer(self) -> Answer:
        usage = Usage(prompt_tokens=1, completion_tokens=1)
        return Answer(run_id="r", text="", opened_s=0.0, ttft_s=None, latency_s=0.0, usage=usage, told=self.told)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> type[FakeClient]:
    monkeypatch.setattr(ask, "Client", FakeClient)
    monkeypatch.setattr(FakeClient, "asked", [])
    return FakeClient


def test_ask_prints_the_answer(client: type[FakeClient], capsys: pytest.CaptureFixture[str]) -> None:
    running()
    assert cli.main(["ask", "why?"]) == 0
    assert cli.main(["ask", "--cluster", "c", "--tree", "u", "--mode", "blocking", "--drafts", "off", "why?"]) == 0
    assert cli.main(["ask", "--early-exit", "vote", "--deadline", "1.5", "why?"]) == 0
    url = "http://127.0.0.1:1"
    assert client.asked == [
        (url, "t", "why?", RunOptions(mode="spliced")),
        (url, "u", "why?", RunOptions(mode="blocking", drafts="off")),
        (url, "t", "why?", RunOptions(mode="spliced", early_exit=ExitOverride(mode="vote"), deadline_s=1.5)),
    ]
    captured = capsys.readouterr()
    assert captured.out == "forty-two\n" * 3
    assert captured.err == "graft: asking t (--tree takes t, u)\n" * 2, "nothing is remarkable about these runs"


@pytest.mark.parametrize(
    ("told", "line"),
    [
        (Told(answered_by="root"), None),
        (Told(answered_by="p1", stand_in=True), "p1 answered in place of the root"),
        (
            Told(degraded=True, missing={"a": ("p1", "p2"), "r": ("a",)}),
            "degraded: no answer of p1, p2 for a; of a for r",
        ),
        (Told(degraded=True), "degraded"),
        (Told(early_exits=1, tokens_saved=9), "exited early once, which saved up to 9 tokens"),
        (
            Told(answered_by="p1", stand_in=True, degraded=True, early_exits=2, tokens_saved=9),
            "p1 answered in place of the root; degraded; exited early 2 times, which saved up to 9 tokens",
        ),
    ],
)
def test_ask_remarks_on_a_run_that_was_not_as_usual(
    told: Told,
    line: str | None,
    client: type[FakeClient],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(client, "told", told)
    assert cli.main(["ask", "--url", "http://127.0.0.1:1", "--tree", "t", "why?"]) == 0
    assert capsys.readouterr() == ("forty-two\n", "" if line is None else f"graft: {line}\n")


@pytest.mark.parametrize(
    "option", [("--deadline", "0"), ("--deadline", "soon"), ("--deadline", "inf"), ("--early-exit", "x")]
)
def test_ask_refuses_options_that_make_no_sense(option: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["ask", *option, "why?"])
    assert f"argument {option[0]}: " in capsys.readouterr().err


def test_a_key_that_no_header_can_hold_is_refused_and_not_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for key in ("secret\nX-Other: 1", "secret\udcff"):
        monkeypatch.setitem(os.environ, KEY_VARIABLE, key)
        assert cli.main(["ask", "--url", "http://127.0.0.1:1", "--tree", "t", "why?"]) == 2
        captured = capsys.readouterr()
        assert captured.err == "graft: the environment variable GRAFT_API_KEY holds characters that no key has\n"


@pytest.mark.parametrize("command", [["ask", "--help"], ["run", "--help"]])
def test_help_tells_where_the_key_comes_from(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(command)
    assert "GRAFT_API_KEY" in capsys.readouterr().out


async def test_ask_of_a_router_that_wants_a_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real one, with a run that exits early."""
    key = "graft-key-ünïcode"
    app = build_app(CASES["exited"].service(), body_bytes=10_000, guard=Guard(key))
    async with serving(app) as client:
        for given, code, told in (
            (None, 1, "wants an API key"),
            ("x", 1, "the API key is wrong"),
            (key, 0, "exited early once"),
        ):
            monkeypatch.delenv(KEY_VARIABLE, raising=False)
            if given is not None:
                monkeypatch.setenv(KEY_VARIABLE, given)
            # With `--tree`, and without: then the trees are asked for first.
            for tree in (["--tree", "t"], []):
                assert await asyncio.to_thread(cli.main, ["ask", "--url", client.url, *tree, "why?"]) == code
                captured = capsys.readouterr()
                assert told in captured.err
                assert bool(captured.out) == (code == 0)


async def test_options_reach_the_router(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    service = Case(held="p3").service()
    async with serving(build_app(service, body_bytes=10_000)) as client:
        command = ["ask", "--url", client.url, "--tree", "t", "why?"]
        assert await asyncio.to_thread(cli.main, [*command, "--early-exit", "off", "--deadline", "0.05"]) == 1
        assert "the run's deadline of 0.05 s has passed" in capsys.readouterr().err
        assert service.runs()[0].record().early_exit.mode == "off"
        assert await asyncio.to_thread(cli.main, [*command, "--early-exit", "paper", "--deadline", "9"]) == 0
        assert service.runs()[0].record().early_exit.mode == "paper"
        assert service.runs()[0].record().failures.deadline_s == 9


def test_run_is_handed_over_unparsed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def run_main(argv: list[str]) -> int:
        seen.append(argv)
        return 7

    monkeypatch.setattr("experiments.settings.command.main", run_main)
    assert cli.main(["run", "cfg.json", "--whatever", "--help"]) == 7
    assert seen == [["cfg.json", "--whatever", "--help"]]


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["fly"])
    assert "invalid choice: 'fly'" in capsys.readouterr().err


def test_shipped_schemas_are_in_step_with_the_types() -> None:
    assert schema.outdated() == (), "run `graft schema`"


def test_schemas_out_of_step_are_named(tmp_path: Path) -> None:
    schema.write(tmp_path)
    assert schema.outdated(tmp_path) == ()
    (tmp_path / "tree.schema.json").write_text("{}")
    (tmp_path / "cluster.schema.json").unlink()
    assert set(schema.outdated(tmp_path)) == {"tree.schema.json", "cluster.schema.json"}


@pytest.mark.parametrize(("kind", "folder"), [("cluster", "cluster"), ("tree", "trees"), ("experiment", "experiments")])
def test_shipped_files_fit_their_schema(kind: str, folder: str) -> None:
    validator = jsonschema.Draft202012Validator(json.loads(schema.documents()[f"{kind}.schema.json"]))
    files = sorted((ROOT / "cfgs" / folder).glob("*.json"))
    assert files
    for file in files:
        validator.validate(json.loads(file.read_text()))


@pytest.mark.parametrize("command", ["check", "up"])
def test_a_part_must_be_named_and_be_one(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spread = {
        "hosts": {"left": {"address": "127.0.0.2"}},
        "models": [
            {
                "name": "m",
                "path": "builtin:tiny-llama",
                "device": "cpu",
                "dtype": "float32",
                "regular": [{"host": "left", "port": 1}],
                "router": {"host": "left", "port": 2},
            }
        ],
        "shell_router": {"host": "left", "port": 3, "trees": []},
    }
    path = str(cluster_file(tmp_path, **spread))
    assert cli.main([command, path]) == 2
    assert cli.main([command, path, "--host", "right"]) == 2
    assert cli.main([command, str(cluster_file(tmp_path)), "--host", "left"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "graft: cluster c is on the hosts left: say with --host which of them this is",
        "graft: cluster c has no host 'right'; its table `hosts` has left",
        "graft: cluster c has no table `hosts`, so there is no host 'left' in it",
    ]


def test_a_part_is_named_by_its_cluster_where_it_is_the_only_one(capsys: pytest.CaptureFixture[str]) -> None:
    running("c@left")
    assert cli.main(["status", "c"]) == 0
    assert capsys.readouterr().out.startswith("cluster c@left: ready at http://127.0.0.1:1; ")
    running("c@right")
    assert cli.main(["status", "c"]) == 2
    assert "no cluster c; there are c@left, c@right" in capsys.readouterr().err
    assert cli.main(["status", "c@right"]) == 0


ALL_COMMANDS = [(name,) for name in cli.COMMANDS] + [("bench", name) for name in cli.BENCHMARKS]


def parsers(names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> list[argparse.ArgumentParser]:
    """The parser of a command and those of its own commands, which parse nothing."""
    found: list[argparse.ArgumentParser] = []

    def parse(self: argparse.ArgumentParser, arguments: object = None) -> NoReturn:
        found.append(self)
        raise SystemExit

    run = cli.main if not names else (cli.BENCHMARKS if len(names) > 1 else cli.COMMANDS)[names[-1]].main
    with monkeypatch.context() as patched:
        patched.setattr(argparse.ArgumentParser, "parse_args", parse)
        with pytest.raises(SystemExit):
            run([])
    if names == ("questions",):
        for action in found[0]._actions:
            if isinstance(action, argparse._SubParsersAction):
                found += action.choices.values()
    return found


@pytest.mark.parametrize("names", [(), *ALL_COMMANDS], ids=" ".join)
def test_every_option_of_every_command_is_described(names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    for parser in parsers(names, monkeypatch):
        assert parser.description, parser.prog
        assert isinstance(parser, Parser), parser.prog
        for action in parser._actions:
            if not isinstance(action, argparse._SubParsersAction):
                assert action.help, f"{parser.prog} {action.option_strings or action.dest}"
            else:
                listed = {choice.dest: choice.help for choice in action._choices_actions}
                assert listed.keys() == action.choices.keys()
                assert all(listed.values())


@pytest.mark.parametrize("names", ALL_COMMANDS)
def test_every_command_has_help(names: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main([*names, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: graft {' '.join(names)} ")


@pytest.mark.parametrize("arguments", [[], ["bench"], ["bench", "fly"]])
def test_a_command_that_is_not_named_is_a_usage_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert "COMMAND" in capsys.readouterr().err


def test_help_and_version_load_nothing_heavy() -> None:
    heavy = {"aiohttp", "asyncio", "msgspec", "numpy", "scipy", "matplotlib", "torch", "tqdm", "transformers"}
    for arguments in (["--help"], ["--version"]):
        code = f"import sys\nfrom graft.cli import main\ntry: main({arguments})\nexcept SystemExit: pass\n"
        code += f"print(sorted({heavy} & sys.modules.keys()))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
        assert done.stdout.splitlines()[-1] == "[]"
        assert "graft" in done.stdout


def test_termination_unwinds_like_an_interrupt_and_signals_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]

    def terminated(_: list[str]) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
        raise AssertionError("it went on")

    monkeypatch.setitem(cli.COMMANDS, "status", cli.Command("", terminated))
    assert cli.main(["status"]) == 130
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before


def test_what_is_not_installed_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "experiments.report", None)
    assert cli.main(["report", "x"]) == 2
    assert "needs experiments.report: pip install 'graft-moa[experiments]'" in capsys.readouterr().err


def test_a_shipped_cluster_goes_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "cpu_tiny"]) == 0
    assert cli.main(["check", "cpu_huge"]) == 2
    captured = capsys.readouterr()
    assert "cluster cpu_tiny can start here" in captured.out
    assert "neither a file nor a configuration that ships with Graft: cpu_hetero, " in captured.err


def test_a_reader_that_leaves_is_no_traceback() -> None:
    code = "import sys\nfrom graft import cli\n"
    code += "cli.COMMANDS['status'] = cli.Command('', lambda _: print('x' * 10**6) or 0)\n"
    code += "raise SystemExit(cli.main(['status']))"
    done = subprocess.run(
        ["bash", "-c", '"$0" -c "$1" | head -c 1', sys.executable, code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("x", "")


@pytest.mark.parametrize("question", ["", "  ", "\n"])
def test_a_question_that_asks_nothing_is_refused(question: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["ask", question])
    assert capsys.readouterr().err == (
        "graft ask: error: argument question: it is empty (`graft ask --help` tells more)\n"
    )


URLS = ("", "ftp://x", "http://", "127.0.0.1:9", "http://127.0.0.1:99999", "http://[::1", "http://a b", "http://h:0")


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize(
    "command",
    [
        ["ask", "why?"],
        ["run", "demo"],
        ["replay", "--run", "x"],
        ["bench", "load", "--rate", "1"],
        ["bench", "lm-eval", "--tree", "t"],
    ],
    ids=" ".join,
)
def test_what_is_no_url_is_refused_before_anything_is_done(
    command: list[str], url: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        cli.main([*command, "--url", url])
    told = capsys.readouterr().err
    assert f"argument --url: {url!r} is no base URL such as http://127.0.0.1:8000" in told
    assert told.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("written", "meant"),
    [("http://h:1", "http://h:1"), ("http://h:1/", "http://h:1"), ("http://h:1/v1", "http://h:1"),
     ("http://h:1/v1/", "http://h:1"), ("https://h/graft/v1", "https://h/graft"), ("http://[::1]:1", "http://[::1]:1")],
)  # fmt: skip
def test_a_url_goes_with_and_without_v1(
    written: str, meant: str, client: type[FakeClient], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["ask", "--url", written, "--tree", "t", "why?"]) == 0
    assert client.asked[0][0] == meant


@pytest.mark.parametrize(
    "command",
    [
        ["run", "demo", "--url", "http://127.0.0.1:9", "--runs-dir", "FILE"],
        ["bench", "load", "--rate", "1", "--url", "http://127.0.0.1:9", "--runs-dir", "FILE"],
        ["plan", "cpu_tiny", "--scripts", "FILE"],
        ["plan", "cpu_tiny", "--cards", "FOLDER"],
        ["gpu", "--size", "tiny", "--device", "cpu", "--out", "FILE/x"],
        ["check", "FOLDER"],
        ["check", "FILE"],
        ["run", "demo", "--resume", "FILE"],
        ["replay", "FOLDER"],
        ["replay", "FILE"],
        ["report", "FILE"],
        ["report", "FOLDER"],
    ],
    ids=" ".join,
)
def test_a_file_for_a_folder_and_a_folder_for_a_file(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("?")
    (tmp_path / "folder").mkdir()
    places = {"FILE": str(tmp_path / "file"), "FOLDER": str(tmp_path / "folder")}
    given = [argument.replace("FILE", places["FILE"]).replace("FOLDER", places["FOLDER"]) for argument in command]
    assert cli.main(given) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("graft: ")
    assert captured.err.count("\n") == 1
    assert str(tmp_path) in captured.err


def test_a_full_disk_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(_: list[str]) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(cli.COMMANDS, "status", cli.Command("", full))
    assert cli.main(["status"]) == 1
    assert capsys.readouterr().err == "graft: the output: No space left on device\n"


async def test_an_answer_that_nobody_reads_on_ends_quietly() -> None:
    async with serving(build_app(CASES["exited"].service(), body_bytes=10_000)) as client:
        line = '"$0" -m graft ask --url "$1/v1" --tree t "why?" | (exec 0<&-; exit 0); echo "${PIPESTATUS[0]}"'
        process = await asyncio.create_subprocess_exec(
            *("bash", "-c", line, sys.executable, client.url),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
        )
        out, err = await process.communicate()
    assert (out, err) == (b"141\n", b"")
