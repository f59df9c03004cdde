"""What the numbers should come to; told, and never a failure."""

from __future__ import annotations

from experiments.router_cost.checks import ExitCost
from experiments.router_cost.stream import StreamCost

TOKENS_PER_S_CORE = 20_000.0
ROUTER_SHARE = 0.01
CHECK_SHARE = 0.01


def goals(stream: StreamCost, checks: ExitCost, real: ExitCost | None) -> list[str]:
    """One line for each goal."""
    tokens = stream.streamed_tokens_per_s_core
    lines = [_line("streamed tokens/s and core", f"{tokens:,.0f}", "at least 20,000", tokens >= TOKENS_PER_S_CORE)]
    for where, cost in (("stand-in", checks), ("real workers", real)):
        if cost is not None and cost is real:
            share = max(cost.router_cpu_share, cost.router_cpu_share_with_checks)
            lines.append(
                _line(f"router's CPU on {where}", f"{share:.2%} of a run", "at most 1%", share <= ROUTER_SHARE)
            )
        name = f"longest chain of exit checks, {where}"
        if cost is None or cost.exit_check_ms is None:
            lines.append(f"goal: {name}: not measured")
        else:
            share = cost.exit_check_share
            lines.append(_line(name, f"{share:.2%} of a run", "at most 1%", share <= CHECK_SHARE))
    return lines


def _line(name: str, value: str, bound: str, met: bool) -> str:
    return f"goal: {name}: {value} ({bound}): {'met' if met else 'NOT met'}"
