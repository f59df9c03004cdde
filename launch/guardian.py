"""Runs one command so that it cannot outlive the launcher: `python guardian.py CORES COMMAND...`.

The launcher holds the other end of this process's standard input and never writes to it. The pipe ends when the
launcher does, however it died; then the whole process group is killed, and with it children that SGLang started and
a signal to their parent would not reach. There is a guardian for each process, so it imports little.

Should the guardian itself be killed, the kernel kills the command; what is left of the group is the launcher's to end.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading

_PR_SET_PDEATHSIG = 1


def main(cores: str, command: list[str]) -> int:
    if os.getpgrp() != os.getpid():
        os.setsid()
    # Signals to the group are for the command; a handler, unlike SIG_IGN, is not inherited by it.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    if cores:
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    # Linux alone has it, and SGLang wants Linux. It looks at the thread that started the command: this one stays.
    prctl = ctypes.CDLL(None).prctl
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, preexec_fn=lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    )
    # No thread before that: it runs Python between fork and exec.
    threading.Thread(target=_kill_group_at_end_of_input, daemon=True).start()
    code = child.wait()
    return 128 - code if code < 0 else code


def _kill_group_at_end_of_input() -> None:
    while os.read(0, 1024):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
