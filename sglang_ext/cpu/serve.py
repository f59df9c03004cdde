"""Start a stock SGLang server on a machine without a GPU: `python -m sglang_ext.cpu.serve <sglang flags>`.

The flags are SGLang's own and must contain `--device cpu`. The module prepares the process and hands over to
`sglang.launch_server`. SGLang spawns its scheduler and detokenizer, and Python re-imports the main module in a
spawned child (as `__mp_main__`) before anything else: the preparation below happens there too.
"""

from __future__ import annotations

import os
import runpy
import sys

from sglang_ext.cpu import fallbacks


def _device_flag(argv: list[str]) -> str | None:
    """The value of `--device` in `argv`, in either spelling; the last one wins, as in argparse."""
    device = None
    for position, argument in enumerate(argv):
        if argument == "--device" and position + 1 < len(argv):
            device = argv[position + 1]
        elif argument.startswith("--device="):
            device = argument.partition("=")[2]
    return device


def _prepare() -> None:
    if _device_flag(sys.argv[1:]) != "cpu":
        raise SystemExit(
            "sglang_ext.cpu.serve needs `--device cpu`; on a GPU start SGLang itself: `python -m sglang.launch_server`"
        )
    os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
    # Stock code creates a CUDA event for this optimization.
    os.environ.setdefault("SGLANG_DISAGG_PREFILL_EARLY_SEND_CACHED_PREFIX", "0")
    fallbacks.install()


if __name__ in ("__main__", "__mp_main__"):
    _prepare()

if __name__ == "__main__":
    # `alter_sys` stays off: spawned children must find this module, not SGLang's, as their main module.
    runpy.run_module("sglang.launch_server", run_name="__main__")
