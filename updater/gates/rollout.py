"""The gate of the release desk: is the rollout of what is armed still on?"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from updater.gates.contract import GateVerdict

ROLLOUT_STOPPED: Final = "rollout-stopped"  # as the release desk says it


@dataclass(frozen=True, slots=True)
class RolloutGate:
    """The server stopped the rollout of what is armed: do not boot it meanwhile.

    It can only delay: the next check opens it, and so does a person with `--now`.

    Attributes:
        check_code, check_sentence: how the last check ended.
    """

    check_code: str
    check_sentence: str

    def verdict(self, now: datetime) -> GateVerdict:  # noqa: ARG002  # one contract for all gates
        """Say whether the server still wants the release out."""
        if self.check_code != ROLLOUT_STOPPED:
            return GateVerdict(code="rollout", sentence="no rollout is stopped", is_open=True)
        return GateVerdict(code=ROLLOUT_STOPPED, sentence=self.check_sentence, is_open=False)
