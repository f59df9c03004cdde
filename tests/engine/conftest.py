"""What tests of the tiny cluster know of it."""

from __future__ import annotations

import pytest

from launch.cluster import ROUTER_CONFIG, Cluster
from shell_router.config import RouterConfig, load_json


@pytest.fixture
def router_config(tiny_cluster: Cluster) -> RouterConfig:
    """What the launcher told its own shell router, which knows its workers."""
    return load_json(tiny_cluster.run_dir / ROUTER_CONFIG, RouterConfig)
