"""What of an experiment's JSON cannot work, or might not be meant, as its cluster is configured."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from experiments.settings.config import ExperimentConfig, SettingConfig
from shell_router.core.review import Remark
from shell_router.core.tree import Tree, TreeError, refuse_bypass


def review_settings(
    config: ExperimentConfig, trees: Sequence[Tree], *, compares: bool, drafting: Collection[str]
) -> Iterator[Remark]:
    """Remarks on the settings of `config`; `trees` are those that the cluster serves. `compares` says whether it has an
    embedding model, `drafting` names the models with workers that draft."""
    served = {tree.name: tree for tree in trees}
    first: dict[str, str] = {}
    for s, setting in enumerate(config.settings):
        place = f"$.settings[{s}]"
        tree = served.get(setting.tree)
        if tree is None:
            there = ", ".join(sorted(served)) or "none"
            yield Remark(f"{place}.tree: {setting.tree!r} is not served; there are {there}", error=True)
        else:
            yield from _options(f"{place}.graft", setting, tree, compares=compares)
            same = config.without_drafts(setting)
            if same is not None and tree.models.isdisjoint(drafting):
                yield Remark(
                    f"{place}.graft.drafts: no worker of model {', '.join(sorted(tree.models))} drafts (`drafts` of "
                    f"the cluster's models), so it is as {same.name!r}"
                )
        alike = first.setdefault(repr((setting.tree, setting.graft)), setting.name)
        if alike != setting.name:
            yield Remark(f"{place}: setting {setting.name!r} asks for what {alike!r} does")
        deadline = setting.graft.deadline_s
        if deadline is not None and deadline > config.run_timeout_s:
            yield Remark(
                f"{place}.graft.deadline_s: {deadline:g} s, and no run is waited for longer than "
                f"{config.run_timeout_s:g} s (`$.run_timeout_s`)"
            )
    if config.replay_answers and all(len(config.of_tree(tree)) < 2 for tree in config.trees):
        yield Remark("$.replay_answers: no tree has two settings, so no answer is replayed")


def _options(place: str, setting: SettingConfig, tree: Tree, *, compares: bool) -> Iterator[Remark]:
    policy = setting.graft.early_exit.over(tree.early_exit)
    try:
        refuse_bypass(tree, policy)
    except TreeError as error:
        yield Remark(f"{place}.early_exit.bypass: tree {tree.name!r}: {error}", error=True)
    if policy.compares and not compares:
        yield Remark(
            f"{place}.early_exit.mode: {policy.mode!r} compares answers, and the cluster has no embedding model "
            "(`$.shell_router.embedding`)",
            error=True,
        )
    elif policy.mode != "off" and all(len(members) < 2 for members in tree.clusters.values()):
        yield Remark(f"{place}.early_exit.mode: tree {tree.name!r} has no cluster of two agents to exit from")
    for agent, order in setting.graft.slot_orders.items():
        known = tree.agent(agent).precursors if agent in tree.successors else ()
        if not set(order) <= set(known) or not order:
            yield Remark(
                f"{place}.slot_orders.{agent}: tree {tree.name!r} has no agent {agent!r} that reads "
                f"{', '.join(order) or 'nobody'}",
                error=True,
            )
