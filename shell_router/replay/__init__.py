"""A recorded run decides again: its record and event log, fed to a new plan, without tokenizer or engine.

`replay` says whether the plan comes to what the record says, bit for bit, times included.
"""

from __future__ import annotations

from shell_router.replay.rebuild import NoReplay, decision_plan, reads_again, replay_plan
from shell_router.replay.verify import Replay, replay

__all__ = ["NoReplay", "Replay", "decision_plan", "reads_again", "replay", "replay_plan"]
