"""What is to be said of a tree that can be built: where it cannot do what it is for, and where it may not be meant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from shell_router.core.marks import ANSWERS_MARK, QUESTION_MARK, foreign_marks
from shell_router.core.tree import Question, TemplateConfig, Tree, TreeConfig


@dataclass(frozen=True)
class Remark:
    """One thing to be said of a configuration."""

    text: str
    """It begins with the JSON path."""
    error: bool = False
    """Whether it cannot work; else it might not."""


def review_tree(config: TreeConfig, tree: Tree) -> Iterator[Remark]:
    """Remarks on `tree`, which was built of `config`."""
    yield from _questions(config, tree)
    yield from _templates(config)
    yield from _twins(config, tree)
    yield from _early_exit(config, tree)
    yield from _failures(tree)


def _questions(config: TreeConfig, tree: Tree) -> Iterator[Remark]:
    asked = {agent.id for agent in tree.agents if Question() in agent.parts}
    if not asked:
        yield Remark(
            f"$.templates: no agent has {QUESTION_MARK} in its `user`, so nobody reads the question", error=True
        )
        return
    for agent in tree.agents:
        if not agent.precursors and agent.id not in asked:
            template = next(each.template for each in config.agents if each.id == agent.id)
            yield Remark(
                f"$.templates.{template}.user: agent {agent.id!r} reads nobody's answer and has no {QUESTION_MARK}: "
                "its answer has nothing to do with the question"
            )


def _templates(config: TreeConfig) -> Iterator[Remark]:
    used = {agent.template for agent in config.agents}
    default = TemplateConfig(user="")
    for name, template in config.templates.items():
        if name not in used:
            yield Remark(f"$.templates.{name}: no agent uses it")
        if template.answer != default.answer and ANSWERS_MARK not in template.user:
            yield Remark(f"$.templates.{name}.answer: `user` has no {ANSWERS_MARK} that it would be for")
        for field in ("user", "system", "answer"):
            for mark in foreign_marks(getattr(template, field) or ""):
                yield Remark(f"$.templates.{name}.{field}: {mark} is no mark of Graft; it goes to the model as text")


def _twins(config: TreeConfig, tree: Tree) -> Iterator[Remark]:
    """Greedy agents that are asked the same: their answers are the same."""
    positions = {agent.id: position for position, agent in enumerate(config.agents)}
    first: dict[object, str] = {}
    for agent in tree.agents:
        if agent.sampling.temperature > 0:
            continue
        alike = replace(agent, id="", layer=0, cluster=0, stage=0)
        twin = first.setdefault(repr(alike), agent.id)
        if twin != agent.id:
            yield Remark(
                f"$.agents[{positions[agent.id]}]: agent {agent.id!r} gives the answer of {twin!r}: both are greedy "
                "(`temperature` 0), with the same model and prompt"
            )


def _early_exit(config: TreeConfig, tree: Tree) -> Iterator[Remark]:
    policy = tree.early_exit
    if policy.mode != "off" and all(len(members) < 2 for members in tree.clusters.values()):
        yield Remark("$.early_exit.mode: no cluster has two agents, so there is nothing to exit from")
    if policy.mode == "off" and policy.bypass is not None:
        yield Remark("$.early_exit.bypass: with mode `off` answers are not compared, so no root is left out")


def _failures(tree: Tree) -> Iterator[Remark]:
    policy = tree.failures
    whole, layer = policy.deadline_s, policy.layer_deadline_s
    if whole is not None and layer is not None and layer > whole:
        yield Remark(f"$.failures.layer_deadline_s: {layer:g} s for a layer, and the whole run has {whole:g} s")
    if policy.root_fallback and not tree.root.precursors:
        yield Remark(f"$.failures.root_fallback: root {tree.root.id!r} reads no answer that could stand in for its own")
