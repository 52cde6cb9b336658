"""From a verified release to the payload that is fetched: what the pure choice needs is read here.

The choice itself is `payload_choice`, the limits are `budget`. Said aloud: what is fetched, what it
costs, and why something cheaper is not.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from images.errors import SourceMismatchError
from updater.booted_parts import read_parts
from updater.budget import Allowance, Limits, allowances, charged, tightest
from updater.lifecycle import State
from updater.payload_choice import Choice, Policy, Priced, choose, differences, sources_wanted
from updater.state import SPOILED_MAX, Spoiled

if TYPE_CHECKING:
    from images.release import PayloadFacts
    from updater.node import Node
    from updater.plan import Plan
    from updater.rooms import AnyRoomError
    from updater.state import Journal, NodeState
    from updater.trust.view import PayloadTarget, VerifiedRelease

MIB: Final = 1024 * 1024


def chosen(node: Node, memory: NodeState, release: VerifiedRelease) -> tuple[Choice, bool]:
    """Return which payload of a release to fetch, and whether the booted slot was read just now.

    What is armed already costs nothing more, so no limit keeps it.

    Raises:
        BudgetError: none is within the limits.
        NoUsablePayloadError: there are deltas alone, and none starts from this slot.
        PartitionsError, MachineError: the booted slot cannot be told.
        DownloadStoppedError: the engine was told to stop.
    """
    armed = memory.update if memory.state is State.ARMED else None
    settled = armed is not None and armed.version == release.version
    deltas = node.settings.download.deltas
    payloads = release.payloads
    wanted = sources_wanted(payloads) if deltas else {}
    reading = read_parts(node, wanted)
    choice = choose(
        [Priced(payload=payload, cost=_cost(node, payload)) for payload in payloads],
        held=reading.parts,
        policy=Policy(deltas=deltas, limits=() if settled else limits(node, release.version)),
        spoiled=memory.spoiled,
    )
    return choice, reading.fresh


def limits(node: Node, version: str) -> tuple[Allowance, ...]:
    """Return every limit of bytes in force for fetching `version` now."""
    settings = node.settings.download
    in_force = Limits(
        update=settings.max_mib_per_update * MIB or None,
        day=settings.max_mib_per_day * MIB or None,
        metered=settings.metered_max_mib * MIB if is_metered(node) else None,
    )
    return allowances(in_force, node.store.read_traffic(), version=version, now=node.clock())


def is_metered(node: Node) -> bool:
    """Tell whether the link is metered: by the settings, or as long as their file is there."""
    settings = node.settings.download
    return settings.metered or (
        bool(settings.metered_file) and Path(settings.metered_file).exists()
    )


def require_budget(node: Node, version: str, what: str, cost: int) -> None:
    """Refuse a payload that no release names when it costs more than may be fetched.

    Raises:
        BudgetError: it does.
    """
    limit = tightest(limits(node, version))
    if limit is not None and cost > limit.left:
        raise limit.refusal(what, cost)


def require_source(node: Node, facts: PayloadFacts) -> None:
    """Read the booted slot anew, before the first write: a delta starts from it.

    Raises:
        SourceMismatchError: it is not what the delta starts from.
        PartitionsError, MachineError, DownloadStoppedError: as `read_parts`.
    """
    source = facts.source
    if source is None:
        return
    wanted = {part.name: part.size for part in source.partitions}
    why = differences(facts, read_parts(node, wanted, anew=True).parts)
    if why:
        raise SourceMismatchError(f"{why}: nothing of the delta from {source.version} is written")


def charge(node: Node, journal: Journal, version: str) -> None:
    """Count what a journal says was fetched."""
    before = node.store.read_traffic()
    after = charged(before, version=version, downloaded=journal.downloaded, now=node.clock())
    if after != before:
        node.store.write_traffic(after)


def settle(node: Node, version: str) -> None:
    """Forget what a version cost: it is armed, and a later update to it is another one."""
    traffic = node.store.read_traffic()
    if traffic.version == version and traffic.version_bytes:
        node.store.write_traffic(
            msgspec.structs.replace(traffic, version="", version_bytes=0, counted=0)
        )


def spoil(node: Node, memory: NodeState, sha256: str, error: AnyRoomError) -> NodeState:
    """Note that a payload failed here: another one of its version is tried instead."""
    item = Spoiled(sha256=sha256, code=error.code, sentence=str(error))
    others = [one for one in memory.spoiled if one.sha256 != sha256]
    return node.keep(memory, spoiled=(*others, item)[-SPOILED_MAX:])


def rest_of(node: Node, plan: Plan) -> int:
    """Return the bytes that a plan's payload would still cost."""
    return _rest(node, plan.identity, plan.size)


def _cost(node: Node, payload: PayloadTarget) -> int:
    """Return the bytes that a payload would still cost.

    A full one is priced as if it were fetched whole; a way to fetch less of it prices it here.
    """
    return _rest(node, payload.sha256, payload.size)


def _rest(node: Node, identity: str, size: int) -> int:
    """Return what is left of a payload when what is flushed of it is not fetched again."""
    journal = node.store.read_journal()
    slot = node.boot().slot.other.value
    if journal is None or (journal.sha256, journal.slot) != (identity, slot):
        return size
    return max(0, size - journal.spared)
