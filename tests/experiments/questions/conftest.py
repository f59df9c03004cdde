"""A hub with confidential questions, which no test may find anywhere."""

from __future__ import annotations

import sys

import pytest

from tests.experiments.questions.confidential import Hub


@pytest.fixture
def confidential_hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub()
    monkeypatch.setitem(sys.modules, "datasets", hub)
    return hub
