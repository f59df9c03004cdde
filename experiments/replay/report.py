"""What a replay found, as a table for people and as one JSON document for programs."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from experiments.kernel.tables import align
from experiments.replay.redecide import Certainty, Decision
from experiments.replay.settings import describe
from experiments.replay.source import Recorded
from shell_router.core.early_exit import ExitOverride
from shell_router.record import Mode
from shell_router.replay.verify import Replay

_FEW = 5
_FOOTER = """\
exact: every decision is known. assumed: an earlier exit gave others less to read, and checks of their answers are taken
to come to the same. unknown: the run exited where this setting goes on, or it never compared what is asked.
Tokens are those that the runs generated and would not have been. Seconds are by how much the answers would have ended
earlier if all that follows took as long as it did: sums over the runs, with warm-ups and unknown runs left out."""


class RunReplay(msgspec.Struct, frozen=True, kw_only=True):
    """One run, replayed."""

    name: str
    run_id: str
    tree: str
    mode: Mode
    state: str
    events: int
    checks: int
    exits: int
    replayed: bool
    """Whether log and record agree bit for bit."""
    differences: tuple[str, ...] = ()
    lacks: str | None = None
    """Why it could not be replayed."""
    unchecked: tuple[str, ...] = ()
    """Agents whose appends are not replayed."""


class Total(msgspec.Struct, frozen=True, kw_only=True):
    """The runs of one certainty."""

    runs: int
    exits: int
    tokens_saved: int
    seconds_saved: float


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What one setting would have made of all runs."""

    early_exit: ExitOverride
    exact: Total
    assumed: Total
    unknown: int
    tokens_generated: int
    """Of all agents of the runs that are not unknown."""
    decisions: tuple[Decision, ...]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The last line of stdout."""

    ok: bool
    """Every run was replayed bit for bit."""
    runs: tuple[RunReplay, ...]
    settings: tuple[Setting, ...] = ()


def run_replay(run: Recorded, replay: Replay) -> RunReplay:
    record = run.record
    return RunReplay(
        name=run.name,
        run_id=record.id,
        tree=record.tree,
        mode=record.mode,
        state=record.state,
        events=len(run.log),
        checks=len(record.checks),
        exits=record.early_exits,
        replayed=replay.missing is None and not replay.differences,
        differences=tuple(replay.differences),
        lacks=replay.missing,
        unchecked=replay.unchecked,
    )


def setting(override: ExitOverride, runs: Sequence[Recorded], decisions: Sequence[Decision]) -> Setting:
    """Sum up; `decisions` are those of `runs`."""
    known = [run for run, each in zip(runs, decisions, strict=True) if each.certainty != "unknown"]
    return Setting(
        early_exit=override,
        exact=_total(decisions, "exact"),
        assumed=_total(decisions, "assumed"),
        unknown=sum(1 for each in decisions if each.certainty == "unknown"),
        tokens_generated=sum(run.record.usage.completion_tokens for run in known),
        decisions=tuple(decisions),
    )


def format_replays(replays: Sequence[RunReplay]) -> str:
    rows = [["run", "tree", "mode", "state", "events", "checks", "exits", "replayed"]]
    rows += [
        [
            each.name, each.tree, each.mode, each.state, str(each.events), str(each.checks), str(each.exits),
            "bit for bit" if each.replayed else "NO",
        ]
        for each in replays
    ]  # fmt: skip
    blocks = [align(rows, numbers=True)]
    for each in replays:
        if each.lacks is not None:
            blocks.append(f"{each.name} cannot be replayed: {each.lacks}")
        elif not each.replayed:
            shown = [f"  {difference}" for difference in each.differences[:_FEW]]
            more = len(each.differences) - len(shown)
            blocks.append("\n".join([f"{each.name} differs:", *shown, *([f"  and {more} more"] if more else [])]))
        if each.unchecked:
            blocks.append(
                f"{each.name}: {', '.join(each.unchecked)} read another tokenizer's answers; their prompts are "
                "replayed and their appends are not"
            )
    return "\n".join(blocks)


def format_settings(settings: Sequence[Setting]) -> str:
    rows = [["early exit", "exact", "assumed", "unknown", "exits", "tokens saved", "of", "seconds saved"]]
    rows += [
        [
            describe(each.early_exit),
            str(each.exact.runs),
            str(each.assumed.runs),
            str(each.unknown),
            _two(str(each.exact.exits), str(each.assumed.exits), each),
            _two(str(each.exact.tokens_saved), str(each.assumed.tokens_saved), each),
            str(each.tokens_generated),
            _two(f"{each.exact.seconds_saved:.2f}", f"{each.assumed.seconds_saved:.2f}", each),
        ]
        for each in settings
    ]
    reasons = sorted({f"  {each.reason}" for one in settings for each in one.decisions if each.reason is not None})
    blocks = [align(rows, numbers=True), _FOOTER]
    if reasons:
        more = len(reasons) - _FEW
        blocks.append("\n".join(["Why runs are not exact:", *reasons[:_FEW], *([f"  and {more} more"] * (more > 0))]))
    return "\n".join(blocks)


def _two(exact: str, assumed: str, each: Setting) -> str:
    """The number of the exact runs and, if there are any, that of the assumed ones."""
    return f"{exact} (+ {assumed} assumed)" if each.assumed.runs else exact


def _total(decisions: Sequence[Decision], certainty: Certainty) -> Total:
    among = [each for each in decisions if each.certainty == certainty]
    return Total(
        runs=len(among),
        exits=sum(each.exits for each in among),
        tokens_saved=sum(each.tokens_saved for each in among),
        seconds_saved=sum(each.seconds_saved for each in among),
    )
