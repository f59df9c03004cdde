"""Routing inside one run: who of a pool is asked, whose answers are judged, and whether a run goes deeper.

Before anything starts, those of a pool are left out who are not worth asking (`routing`). Answers of a layer are judged
when all of it have ended (`judging`), and a run may stop before the next layer. What a budget bounds is held to the
end: another attempt, or a prompt that came to more than was reckoned with, fails if it would go beyond.

The plan tells it what happened and carries out what it says: here nothing is started, stopped or awaited.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from shell_router.core.agent_progress import AgentProgress, AgentState
from shell_router.core.events import Judge, Judged, Scored
from shell_router.core.judging import Judgement, Predicted, judged
from shell_router.core.paper import written_score
from shell_router.core.prompt_cache import AgentPromptCache
from shell_router.core.rounds import judged_in_rounds, with_posteriors
from shell_router.core.routing import (
    PRIOR_WEIGHT,
    Choice,
    RoutingTerms,
    Spending,
    choose,
    least,
    members,
    prompt_bound,
    stopped,
    with_evidence,
    worth,
)
from shell_router.core.tree import Tree


class RunRouting:
    """What a run has decided about its pool. Without `terms` there is no pool to choose from: all agents are asked."""

    def __init__(
        self,
        terms: RoutingTerms | None,
        tree: Tree,
        progress: Mapping[str, AgentProgress],
        answers: AgentPromptCache,
    ) -> None:
        """`progress` and `answers` are the plan's, read as they are at the time; of answers it is decided here who
        reads them."""
        self.given = terms
        self.terms = terms
        """With what a scorer has told."""
        self.scored: Scored | None = None
        self.choices: list[Choice] = []
        """Of each layer of the pool, when it has been made."""
        self.judgements: dict[int, Judgement] = {}
        """Of the answers of layers of the pool."""
        self._tree = tree
        self._progress = progress
        self._answers = answers
        self._repeated = Spending(0.0, 0, 0.0)
        """Most that further attempts took."""

    @property
    def wants_score(self) -> bool:
        """Whether a scorer is to tell what it knows before anyone is chosen."""
        return self.terms is not None and self.terms.scored and self.scored is None

    @property
    def asked(self) -> list[str]:
        """Those of the pool who were chosen."""
        return [agent for choice in self.choices for agent in choice.asked]

    @property
    def routed_out(self) -> frozenset[str]:
        """Those of the pool who were not."""
        return frozenset(agent for choice in self.choices for agent in _left(choice))

    @property
    def compared(self) -> frozenset[str]:
        """Agents whose answers judges may compare."""
        judges = self.terms is not None and self.terms.judge is not None
        return frozenset(members(self.terms)) if self.terms is not None and judges else frozenset()

    def take_score(self, event: Scored) -> None:
        """See qualities as the scorer does."""
        if self.terms is not None:
            self.scored = event
            self.terms = with_evidence(self.terms, event.evidence)

    def begin(self, at: float) -> list[str]:
        """Choose all layers, or the first where a run may stop before the others; whom not to ask."""
        if self.terms is None:
            return []
        one_by_one = self.terms.judge is not None and self.terms.judge.stop
        return [
            agent
            for number in range(1 if one_by_one else len(self.terms.layers))
            for agent in self._take(choose(self.terms, number, self.asked, at))
        ]

    def judge(self, at: float) -> tuple[list[Judge], list[str]]:
        """Judge the answers of layers whose members have all ended: what has to be compared for that, and whom of a
        next layer not to ask."""
        wanted: list[Judge] = []
        left: list[str] = []
        judges = self.terms is not None and self.terms.judge is not None
        for choice in [each for each in self.choices if each.asked] if judges else ():
            states = {agent: self._progress[agent].state for agent in choice.asked}
            if choice.layer in self.judgements or not all(state.ended for state in states.values()):
                continue
            done = tuple(agent for agent, state in states.items() if state is AgentState.DONE)
            self.judgements[choice.layer] = Judgement(layer=choice.layer, agents=done, asked=at)
            if len(done) > 1:
                wanted.append(Judge(choice.layer, done))
            else:
                left += self._take_judgement(Judged(at=at, layer=choice.layer, agents=done, likeness=()))
        return wanted, left

    def take_judged(self, event: Judged) -> list[str] | None:
        """Take up how alike answers are; whom of a next layer not to ask. None when nobody waits for it."""
        pending = self.judgements.get(event.layer)
        if pending is None or pending.answered is not None or pending.agents != event.agents:
            return None
        return self._take_judgement(event)

    def unjudged(self, agent: str) -> bool:
        """Whether it is not known yet if `agent` is asked, or what it is to read of a layer of the pool."""
        terms = self.terms
        if terms is None or terms.judge is None:
            return False
        if terms.judge.stop and agent in members(terms) and agent not in self.asked:
            return True
        if not terms.judge.floor:
            return False
        precursors = self._progress[agent].agent.precursors
        return any(
            any(each in precursors for each in choice.asked)
            and (choice.layer not in self.judgements or self.judgements[choice.layer].answered is None)
            for choice in self.choices
        )

    def affords_again(self, agent: str) -> bool:
        """Whether a budget allows that `agent` is asked once more; if so it is reckoned with."""
        terms = self.terms
        if terms is None or not terms.budget.counts:
            return True
        own, repeated = terms.agents[agent], self._repeated
        bound = least(terms, self.asked, len(self.choices), terms.budget)
        prompt = prompt_bound(terms, agent, self.asked)
        repeated = Spending(
            repeated.money + own.price.of(prompt, own.max_new_tokens),
            repeated.tokens + prompt + own.max_new_tokens,
            0.0,
        )
        whole = Spending(bound.money + repeated.money, bound.tokens + repeated.tokens, 0.0)
        if whole.beyond(terms.budget) is not None:
            return False
        self._repeated = repeated
        return True

    def unreckoned(self, agent: str) -> str | None:
        """Why the prompt of `agent`, which is whole, cannot be sent within the budget; None when it can."""
        terms = self.terms
        if terms is None or not terms.budget.counts:
            return None
        tokens, bound = len(self._progress[agent].prompt.ids), prompt_bound(terms, agent, self.asked)
        if tokens <= bound:
            return None
        return f"its prompt came to {tokens} tokens, and the run's budget was reckoned with {bound}"

    def _take(self, choice: Choice) -> list[str]:
        self.choices.append(choice)
        return _left(choice)

    def _take_judgement(self, event: Judged) -> list[str]:
        """Leave out what is not thought to be worth reading, and go on to the next layer or not."""
        assert self.terms is not None
        assert self.terms.judge is not None
        judgement = self._judgement_in_rounds(event) if self.terms.mode == "paper" else self._judgement(event)
        self.judgements[event.layer] = judgement
        for posterior in judgement.posteriors:
            if posterior.left_out:
                self._answers.drop(posterior.agent)
        following = event.layer + 1
        if self.terms.judge.stop and len(self.choices) == following < len(self.terms.layers):
            return self._go_deeper(following, event.at)
        return []

    def _judgement_in_rounds(self, event: Judged) -> Judgement:
        """As RouteMoA's own code has it, which the next layers are ranked by."""
        assert self.terms is not None
        written = {agent: written_score(self._answers.text(agent)) for agent in event.agents}
        selves = {
            agent: self._answers.confidence(agent) if score is None else score for agent, score in written.items()
        }
        earlier = [self.judgements[number] for number in range(event.layer)]
        pending = self.judgements[event.layer]
        found = judged_in_rounds(pending, event.at, event.likeness, event.error, self.terms, selves, earlier)
        self.terms = with_posteriors(self.terms, found)
        return found

    def _judgement(self, event: Judged) -> Judgement:
        assert self.terms is not None
        assert self.terms.judge is not None
        evidence = self.scored.evidence if self.scored is not None else {}
        predicted = {
            each.agent: Predicted(
                each.quality, PRIOR_WEIGHT + (evidence[each.agent].weight if each.agent in evidence else 0.0)
            )
            for each in self.terms.layers[event.layer].candidates
        }
        confidences = {agent: self._answers.confidence(agent) for agent in event.agents}
        return judged(
            self.judgements[event.layer],
            event.at,
            event.likeness,
            event.error,
            predicted,
            confidences,
            self.terms.judge,
        )

    def _go_deeper(self, number: int, at: float) -> list[str]:
        """Choose layer `number`, now that those before have been judged, or stop before it."""
        assert self.terms is not None
        left = self.terms.budget.less(self._repeated.money, self._repeated.tokens)
        terms, last = msgspec.structs.replace(self.terms, budget=left), self.judgements[number - 1]
        choice = choose(terms, number, self.asked, at)
        if last.best is not None:
            if last.threshold is None:
                last = msgspec.structs.replace(last, next=worth(terms, choice, self.asked, last.best))
                self.judgements[number - 1] = last
            if last.stops or not choice.asked:
                deeper = range(number, len(terms.layers))
                choices = [stopped(choose(terms, each, self.asked, at)) for each in deeper]
                return [agent for each in choices for agent in self._take(each)]
        self._leave_out_before(choice.asked[0])
        return self._take(choice)

    def _leave_out_before(self, next_asked: str) -> None:
        """Who reads both has the later layer's answers, which are made of the earlier one's."""
        for agent in self.choices[-1].asked:
            for reader in self._tree.successors[agent]:
                if next_asked in self._progress[reader].agent.precursors:
                    self._answers.leave_out(agent, reader)


def _left(choice: Choice) -> list[str]:
    return [each.agent for each in choice.considered if each.why != "asked"]
