"""Say whether mathematical answers are right: the program of the scorers' process that loads math-verify.

A line in is `{"answer": ..., "text": ...}`: the right result in a box, and the part of an answer that holds its
result. A line out is `{"correct": ..., "extracted": ...}`. It is a process of its own because math-verify's time limits
are signals, and because some formulas cannot be stopped but by ending the process.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys

_MEMORY_BYTES = 4 << 30
_STEP_S = 5


def main() -> None:
    # Nothing but verdicts may go where the verdicts go.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    logging.disable(logging.CRITICAL)
    import math_verify

    def judge(answer: str, text: str) -> dict[str, object]:
        found = math_verify.parse(text, parsing_timeout=_STEP_S)
        if not found:
            return {"correct": False, "extracted": None}
        gold = math_verify.parse(answer, parsing_timeout=_STEP_S)
        correct = bool(gold) and math_verify.verify(gold, found, timeout_seconds=_STEP_S)
        return {"correct": bool(correct), "extracted": str(found[-1])}

    def send(message: dict[str, object]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    send({"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            verdict = judge(request["answer"], request["text"])
        except MemoryError:
            verdict = {"correct": False, "extracted": None}
        send(verdict)


if __name__ == "__main__":
    main()
