"""`graft bench routing`: a fixed tree against two ways to route among fifteen models, simulated.

No engine and no cluster: who is asked is decided by the router's own plan, which is told what would happen in a
simulated world (`experiments.routing.world`), whose models are as often right as is published of them. In it a tree
without routing, routing by utility, RouteMoA's own (`"mode": "paper"`) and the best model by itself answer the same
questions; differences are paired, with 95 % intervals (BCa bootstrap over questions). `--reading` has what is assumed
of how much a model's answer follows those that it reads, in logits: several values, a table each.

Cost is in thousandths of the prices' currency for a question. Tables go to stdout, whose last line is one JSON
document; `--out FILE` gets it for people.

Exit codes: 0 done, 2 wrong command line, 130 interrupted.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import msgspec

from experiments.kernel.folder import write_document
from experiments.routing.study import SIMULATED, study, table
from launch import arguments as kinds

_READINGS = (0.0, 1.5, 3.0)


def main(argv: Sequence[str]) -> int:
    """Simulate as the command line says."""
    arguments = _parser().parse_args(argv)
    found = study(arguments.questions, arguments.seed, arguments.reading)
    print(SIMULATED)
    for world in found.worlds:
        print(f"\n{table(world)}")
    if arguments.out is not None:
        write_document(arguments.out, found)
    print("\n" + msgspec.json.encode(found).decode(), flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = kinds.Parser(
        prog="graft bench routing", description="Simulate routing among fifteen models; no engine is asked."
    )
    parser.add_argument("--questions", type=kinds.count, default=600, help="how many (default: 600)")
    parser.add_argument("--seed", type=kinds.index, default=0, help="of all draws (default: 0)")
    parser.add_argument(
        "--reading",
        type=kinds.several(float, "numbers"),
        default=list(_READINGS),
        metavar="LOGITS,...",
        help="how much others' answers help or mislead (default: 0,1.5,3)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the JSON document goes")
    return parser
