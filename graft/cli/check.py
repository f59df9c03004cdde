"""`graft check`: what is wrong with a configuration, and with this machine for it. Nothing is started."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from launch import arguments as kinds
from launch import preflight, shipped
from launch.config import ClusterConfig, load_cluster
from launch.review import review_trees
from shell_router.config import ConfigError, RouterConfig, load_json, load_tree
from shell_router.core.review import Remark, review_tree
from shell_router.core.tree import TreeConfig, TreeError, build_tree

_SHIPPED: tuple[shipped.Folder, ...] = ("cluster", "experiments", "trees")
"""Where a bare name is looked for, in this order."""


def main(argv: list[str]) -> int:
    """Raises `ConfigError`, `PreflightError`."""
    parser = kinds.Parser(
        prog="graft check",
        description="Check a configuration, and this machine for it; start nothing. Errors end it with code 2; "
        "warnings are of what might not work, or might not be meant.",
    )
    parser.add_argument(
        "cfg",
        help="JSON of a cluster, a tree, an experiment or a shell router; or the name of one that ships: cpu_smollm2",
    )
    parser.add_argument(
        "--host", metavar="NAME", help="which of the cluster's `hosts` this machine is; only its part is meant"
    )
    options = parser.parse_args(argv)
    path = _find(options.cfg)
    document = load_json(path, dict[str, Any])
    if "agents" in document:
        done = _tree(path)
    elif "settings" in document:
        done = _experiment(path, options.host)
    elif "trees" in document:
        done = _router(path)
    else:
        config = load_cluster(path)
        _warn(preflight.check(config, options.host))
        done = f"cluster {config.part_name(options.host)} can start here"
    print(f"{path}: {done}")
    return 0


def _find(text: str) -> Path:
    for kind in _SHIPPED:
        if text in shipped.names(kind) and not Path(text).is_file():
            return shipped.find(kind, text)
    return shipped.cluster(text)


def _tree(path: Path) -> str:
    written = load_json(path, TreeConfig)
    try:
        tree = build_tree(written)
    except TreeError as error:
        raise ConfigError(f"{path}: {error}") from error
    _tell(path, review_tree(written, tree))
    layers = len({agent.layer for agent in tree.agents})
    return (
        f"tree {tree.name} is sound: {len(tree.agents)} agents in {layers} layers, of model "
        f"{', '.join(sorted(tree.models))}. Name it in `shell_router.trees` of a cluster, and check that"
    )


def _router(path: Path) -> str:
    from shell_router.fit import fit
    from shell_router.prepare import load_trees

    config = load_json(path, RouterConfig)
    load_trees(config)
    _tell(path, fit(config).remarks)
    return f"a shell router can serve its {len(config.trees)} trees"


def _experiment(path: Path, host: str | None) -> str:
    from experiments.questions import open_questions, select
    from experiments.settings.config import cluster_path, load_experiment
    from experiments.settings.review import review_settings

    config = load_experiment(path)
    cluster_file = cluster_path(path, config)
    cluster = load_cluster(cluster_file)
    _tell(cluster_file, _broken_trees(cluster))
    trees = [load_tree(Path(tree)) for tree in cluster.shell_router.trees]
    remarks = review_settings(
        config,
        trees,
        compares=cluster.shell_router.embedding is not None,
        drafting={worker.model.name for worker in cluster.workers() if worker.drafts},
    )
    _tell(path, remarks)
    with open_questions(config.questions) as source:
        asked = config.questions
        select(source.questions, asked.source, start=asked.start, count=asked.count, at="$.questions")
    _warn(preflight.check(cluster, host))
    return f"experiment {config.name} can be made here"


def _broken_trees(cluster: ClusterConfig) -> Iterable[Remark]:
    return (remark for remark in review_trees(cluster) if remark.error)


def _tell(path: Path, remarks: Iterable[Remark]) -> None:
    """Warnings on stderr; raise `ConfigError` with all errors."""
    told: Sequence[Remark] = tuple(remarks)
    _warn(remark.text for remark in told if not remark.error)
    if errors := [remark.text for remark in told if remark.error]:
        raise ConfigError(f"{path}: " + "\n".join([errors[0], *(f"  - {error}" for error in errors[1:])]))


def _warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        print(f"graft: warning: {warning}", file=sys.stderr)
