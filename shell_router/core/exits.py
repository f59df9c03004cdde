"""The checks of one cluster: when its answers are compared, and what has come of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shell_router.core.early_exit import ExitPolicy, Verdict, best, count_votes, judge
from shell_router.core.events import Assess, Assessed


@dataclass
class Check:
    """One comparison of a cluster's answers. Times in seconds since the run began."""

    cluster: int
    step: int
    """How many answers there were."""
    agents: tuple[str, ...]
    """Whose answers, in the order in which they ended."""
    asked: float
    answered: float | None = None
    likeness: tuple[float, ...] | None = None
    ballots: tuple[int | None, ...] | None = None
    verdict: Verdict | None = None
    error: str | None = None
    """Why there is no verdict."""
    cancelled: tuple[str, ...] = ()
    """Agents that it made needless."""


@dataclass
class ClusterExit:
    """A cluster of a run: its open stage and its checks, of which one is under way at a time."""

    cluster: int
    members: tuple[str, ...]
    policy: ExitPolicy
    seed: int
    final: bool
    """Whether the root may be left out when these agree."""
    stage: int = 0
    """Agents of later stages have not started."""
    checks: list[Check] = field(default_factory=list)

    @property
    def pending(self) -> Check | None:
        """The check under way."""
        return self.checks[-1] if self.checks and self.checks[-1].answered is None else None

    def check(self, done: Sequence[str], missing: int, at: float) -> Check | None:
        """The check to make now that the answers `done` are there and `missing` may come; None when there is none."""
        if self.policy.mode == "off" or len(self.members) < 2 or self.pending is not None:
            return None
        if not missing and not self.final:
            return None
        if len(done) < (1 if self.policy.mode == "paper" and missing else 2):
            return None
        if self.checks and len(self.checks[-1].agents) == len(done):
            return None
        check = Check(self.cluster, len(done), tuple(done), asked=at)
        self.checks.append(check)
        return check

    def question(self, check: Check) -> Assess | None:
        """What must be found out for `check`; nothing of a lone answer."""
        if len(check.agents) < 2:
            return None
        kind = self.policy.ballots if self.policy.mode == "vote" else None
        return Assess(check.cluster, check.step, check.agents, kind)

    def answer(self, event: Assessed, confidences: Mapping[str, float | None], missing: int) -> Check | None:
        """The check that `event` answers, with its verdict; `confidences` are C_i, `missing` answers may still come."""
        check = self.pending
        if check is None or check.step != event.step:
            return None
        check.answered = event.at
        check.likeness, check.ballots, check.error = event.likeness, event.ballots, event.error
        known = [confidences[agent] for agent in check.agents]
        if check.error is not None:
            return check
        if event.ballots is not None:
            check.verdict = count_votes(self.policy, event.ballots, missing, [each or 0.0 for each in known])
        elif unknown := [agent for agent in check.agents if confidences[agent] is None]:
            check.error = f"the engine gave no log-probabilities for {', '.join(unknown)}"
        else:
            check.verdict = judge(
                self.policy,
                [each for each in known if each is not None],
                event.likeness or (),
                seed=self.seed,
                cluster=self.cluster,
                step=check.step,
            )
        return check


def most_confident(confidences: Mapping[str, float | None], check: Check | None = None) -> str:
    """The answer that stands for all of `confidences`, among those of `check` that the majority names."""
    ballots = dict(zip(check.agents, check.ballots, strict=True)) if check is not None and check.ballots else None
    agents = check.agents if check is not None else tuple(confidences)
    return best({agent: confidences[agent] or 0.0 for agent in agents}, ballots)
