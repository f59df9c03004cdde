"""Runs one command so that it cannot outlive the launcher: `python guardian.py CORES COMMAND...`.

The launcher holds the other end of this process's standard input and never writes to it. The pipe ends when the
launcher does, however it died; then the whole process group is killed, and with it children that SGLang started and
a signal to their parent would not reach. There is a guardian for each process, so it imports little.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading


def main(cores: str, command: list[str]) -> int:
    if os.getpgrp() != os.getpid():
        os.setsid()
    threading.Thread(target=_kill_group_at_end_of_input, daemon=True).start()
    # Signals to the group are for the command; a handler, unlike SIG_IGN, is not inherited by it.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    if cores:
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    code = subprocess.Popen(command, stdin=subprocess.DEVNULL).wait()
    return 128 - code if code < 0 else code


def _kill_group_at_end_of_input() -> None:
    while os.read(0, 1024):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
