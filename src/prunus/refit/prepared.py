"""What repair needs, made once for any number of plans: which of them is best, and the repair of that one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prunus.plan.plan import Plan
from prunus.refit.calibration import Calibration
from prunus.refit.trials import Trials
from prunus.runtime.precision import lower
from prunus.runtime.progress import progress_bar


@dataclass(frozen=True)
class Prepared:
    """What repair needs, made once.

    Attributes:
        data: examples and captured model.
        trials: what plans lose after repair.
    """

    data: Calibration
    trials: Trials

    def best(self, plans: Sequence[Plan], progress: bool) -> Plan:
        """The first of the plans that no other one beats after repair."""
        different = list({tuple(p.kept.items()): p for p in reversed(plans)}.values())[::-1]
        if len(different) == 1:
            return different[0]
        best, least = different[0], None
        with progress_bar("plans tried", len(different), progress) as bar:
            for plan in different:
                loss = self.trials.loss(plan)
                if least is None or lower(loss, than=least):
                    best, least = plan, loss
                bar.advance()
        return best
