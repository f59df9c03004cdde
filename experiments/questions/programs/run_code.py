"""Run one answer's code on a task's inputs: the program of the process that is given up to that code.

Reads the job (JSON) from stdin and writes JSON lines to the file descriptor that it is told: whether it is shut off
from the network, then one line for each input, then `{"done": true}`. It is no module of the package: it runs by
itself, in an empty directory, and what it says is not trusted. It holds inputs only, never the expected outputs.
"""

from __future__ import annotations

import copy
import ctypes
import hashlib
import importlib.util
import io
import json
import os
import resource
import signal
import sys
from typing import Any

_NEW_NAMESPACES = 0x10000000 | 0x40000000 | 0x20000000  # CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWPID
_SET_PARENT_DEATH_SIGNAL = 1
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_LONG_TEXT = 1 << 12
_LONG_LIST = 1 << 14
_REFUSED = (
    "socket.",
    "ctypes.",
    "fcntl.",
    "pty.spawn",
    "resource.",
    "shutil.",
    "signal.",
    "subprocess.",
    "webbrowser.",
    "os.chmod",
    "os.chown",
    "os.exec",
    "os.fork",
    "os.kill",
    "os.link",
    "os.posix_spawn",
    "os.rename",
    "os.setxattr",
    "os.spawn",
    "os.startfile",
    "os.symlink",
    "os.system",
    "os.truncate",
)
_CHANGING = ("os.mkdir", "os.remove", "os.rmdir")


def main() -> None:
    job = json.load(sys.stdin)
    directory = os.path.realpath(os.getcwd())
    out = os.fdopen(int(sys.argv[1]), "w", encoding="utf-8")

    def send(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    libc = ctypes.CDLL(None, use_errno=True)
    # A network and a process table of its own, where the system lets an ordinary user have them.
    alone = libc.unshare(_NEW_NAMESPACES) == 0
    if alone:
        _wait_for_child()
        # The first process of its table: all others of it end with it.
        libc.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        # Limits do not end the first process of a table, so the answer runs in the second.
        _wait_for_child()
    send({"alone": alone})
    if "numpy" in job["solution"] + job.get("check", "") and importlib.util.find_spec("numpy") is not None:
        # Before the doors are closed: importing it needs what is refused below.
        importlib.import_module("numpy")
    _limit(job)
    sys.stdin = io.StringIO()
    sys.addaudithook(lambda event, args: _audit(event, args, directory))
    _run(job, send)
    send({"done": True})
    # Threads and exit handlers of the answer get no say.
    os._exit(0)


def _wait_for_child() -> None:
    """Go on in a new process; this one waits for it and ends."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        os._exit(0)


def _limit(job: dict[str, Any]) -> None:
    cpu_s, memory = int(job["cpu_s"]), int(job["memory_bytes"])
    limits = {
        resource.RLIMIT_CPU: (cpu_s, cpu_s + 1),
        resource.RLIMIT_AS: (memory, memory),
        resource.RLIMIT_FSIZE: (job["file_bytes"], job["file_bytes"]),
        # Without effect for root, for whom the audit hook and the process table of its own stand in.
        resource.RLIMIT_NPROC: (0, 0),
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_NOFILE: (32, 32),
    }
    for kind, limit in limits.items():
        resource.setrlimit(kind, limit)
    # A file that grows too long is then an error of the answer's, not the end of the process.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def _audit(event: str, args: tuple[Any, ...], directory: str) -> None:
    """Refuse what no answer needs. A hook cannot be taken away again."""
    if event.startswith(_REFUSED):
        raise PermissionError(f"{event} is not allowed here")
    if event == "open":
        path, _, flags = args
        writes = isinstance(flags, int) and flags & _WRITING
    elif event in _CHANGING:
        path, writes = args[0], 1
    else:
        return
    if writes and not (isinstance(path, (str, bytes)) and _within(os.fsdecode(path), directory)):
        raise PermissionError("files can be written in the working directory only")


def _within(path: str, directory: str) -> bool:
    return os.path.realpath(path).startswith(directory + os.sep)


def _run(job: dict[str, Any], send: Any) -> None:
    space: dict[str, Any] = {"__name__": "solution"}
    try:
        # The task's own text first: its imports and helper functions are there for the answer.
        for number, source in enumerate((job["preamble"], job["solution"])):
            exec(_compiled(source, f"<part {number}>"), space)
        function = space[job["entry_point"]]
        if "check" in job:
            tests: dict[str, Any] = {"__name__": "tests"}
            exec(_compiled(job["check"], "<tests>"), tests)
            tests["check"](function)
            send({"output": True})
            return
    except BaseException as error:  # noqa: BLE001 - an answer may raise anything, SystemExit too
        send({"error": type(error).__name__})
        return
    for arguments in job["inputs"]:
        try:
            message = {"output": encode(function(*copy.deepcopy(arguments)))}
        except BaseException as error:  # noqa: BLE001 - as above
            message = {"error": type(error).__name__}
        send(message)


def _compiled(source: str, name: str) -> Any:
    # This program's own `annotations` future would make texts of all annotations, which `@dataclass` looks up.
    return compile(source, name, "exec", dont_inherit=True)


def encode(value: Any) -> Any:
    """A value as JSON that keeps Python's types apart; what has no form here is equal to nothing."""
    if isinstance(value, str) and len(value) > _LONG_TEXT:
        return {"sha256": hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()}
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return {"int": hex(value)}
    if isinstance(value, float):
        return {"float": float(value).hex()}
    if isinstance(value, complex):
        return {"complex": [value.real.hex(), value.imag.hex()]}
    if isinstance(value, (list, tuple)):
        if len(value) > _LONG_LIST and all(isinstance(each, (int, float)) for each in value):
            # The hash of numbers is the same in every process, and that of 1 the same as that of 1.0.
            return {"numbers": [isinstance(value, list), len(value), hash(tuple(value))]}
        return {"list" if isinstance(value, list) else "tuple": [encode(each) for each in value]}
    if isinstance(value, (set, frozenset)):
        return {"set": [encode(each) for each in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(each)] for key, each in value.items()]}
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        # A number of numpy's.
        return encode(value.item())
    return {"other": type(value).__name__}


if __name__ == "__main__":
    main()
