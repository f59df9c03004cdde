"""Trees tried on the models of a cluster before anything starts, in a process that loads their tokenizers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from launch import checkpoint, command
from launch.config import ClusterConfig
from launch.review import review_pools
from shell_router.core.review import Remark
from shell_router.needs import FIT, Fit

TIMEOUT_S = 300.0
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
"""Nothing is fetched to try it."""
_PLACES = (
    (re.compile(r"^\$\.trees\["), "$.shell_router.trees["),
    (re.compile(r"^\$\.scores\["), "$.shell_router.scores["),
    (re.compile(r"^(\$\.models\[\d+\])\.tokenizer"), r"\1.path"),
)
"""JSON paths of a router's configuration, and what they are in a cluster's."""


def try_trees(config: ClusterConfig) -> Iterator[Remark]:
    """Remarks on how the trees of `config`, which are sound, fit its models and KV pools."""
    paths = {path: str(checkpoint.here(path) or path) for _, path in config.paths()}
    unseen = [model.name for model in config.models if checkpoint.here(model.path) is None]
    # Ports are nothing to this question.
    routed = command.plan(config, paths, lambda: 1, Path()).router_config
    argv = [sys.executable, "-m", FIT, *(part for name in unseen for part in ("--unseen", name))]
    try:
        done = subprocess.run(
            argv,
            input=msgspec.json.encode(routed),
            capture_output=True,
            timeout=TIMEOUT_S,
            check=True,
            env={**os.environ, **_OFFLINE},
        )
        fit = msgspec.json.decode(done.stdout.splitlines()[-1], type=Fit)
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        yield Remark(
            f"$.shell_router.trees: the shell router could not read them: {said[-1] if said else error}", error=True
        )
        return
    except (subprocess.TimeoutExpired, IndexError, msgspec.DecodeError) as error:
        yield Remark(f"$.shell_router.trees: they were not tried on their models: {error}")
        return
    for remark in fit.remarks:
        text = remark.text
        for pattern, place in _PLACES:
            text = pattern.sub(place, text)
        yield Remark(text, error=remark.error)
    yield from review_pools(config, fit.needs)
