"""Counts what a download brings while it brings it, and says how much more may come.

With each transfer that begins the link is looked at again, so that what comes over a metered one is
known from what does not; and where it turns out what a payload costs, that is compared with the
limits before the rest is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from updater import planning
from updater.budget import mb, require_price, tightest
from updater.plan import OwnFacts

if TYPE_CHECKING:
    from updater.budget import Allowance
    from updater.node import Node
    from updater.plan import Plan


class Meter:
    """Counts for one download; its methods are called from the thread that downloads.

    Args:
        node: the collaborators.
        plan: what is downloaded.
        before: bytes that were fetched for the update before this download.
        counted_as: what they count for.
    """

    def __init__(self, node: Node, plan: Plan, before: int, counted_as: str) -> None:
        self._node = node
        self._plan = plan
        self._before = before
        self._counted_as = counted_as

    def transfer_begins(self, received: int) -> Allowance | None:
        """Return the limit that is nearest, None for none; `received` is counted in it."""
        self._count(received)
        planning.note_link(self._node)
        return tightest(planning.limits(self._node, self._counted_as))

    def priced(self, cost: int, received: int) -> None:
        """Take note of what is left to be fetched; called whenever that is known anew.

        Raises:
            BudgetError: it is more than is allowed.
        """
        facts = self._plan.facts
        if isinstance(facts, OwnFacts) or facts.source is not None:
            return  # it was known before the first byte
        self._count(received)
        planning.note_price(self._node, self._plan, cost + received)
        failed = planning.failed_bytes(self._node, self._node.store.read_state(), self._counted_as)
        limits = planning.limits(
            self._node,
            self._counted_as,
            full_size=self._plan.size,
            failed=failed and failed + received,
        )
        what = f"the full payload ({mb(self._plan.size)}), of which this node lacks {mb(cost)},"
        require_price(limits, what, cost)

    def _count(self, received: int) -> None:
        planning.charge(self._node, self._before + received, self._counted_as)
