"""From a verified release to the payload that is fetched: what the pure choice needs is read here.

The choice itself is `payload_choice`, the limits are `budget`. Said aloud: what is fetched, what it
costs, and why something cheaper is not.
"""

from __future__ import annotations

from datetime import UTC, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from images.errors import SourceMismatchError
from updater.booted_parts import read_parts
from updater.budget import (
    Allowance,
    Limits,
    allowances,
    charged,
    day_of,
    days_needed,
    of_failed,
    today,
)
from updater.lifecycle import State
from updater.payload_choice import Choice, Policy, Priced, choose, differences, sources_wanted
from updater.plan import OwnFacts
from updater.state import SPOILED_MAX, Spoiled

if TYPE_CHECKING:
    from updater.node import Node
    from updater.plan import Facts, Plan
    from updater.rooms import AnyRoomError
    from updater.state import NodeState, Traffic, Update
    from updater.trust.view import PayloadTarget, VerifiedRelease

MIB: Final = 1024 * 1024
# What has to come within one day beside metadata and block index: the blobs of an operation, the
# signatures. Payloads of ours have operations of 2 MiB.
STEP_BYTES: Final = 4 * MIB
INDEX_SHARE: Final = 512  # an image has 8 bytes of block index for each 4096 at most
SIGNATURES_BYTES: Final = 4096  # of metadata and payload: each has 267 bytes or 523


def chosen(node: Node, memory: NodeState, release: VerifiedRelease) -> Choice:
    """Return which payload of a release to fetch.

    What is armed already costs nothing more, so no limit keeps it.

    Raises:
        BudgetError: none is within the limits.
        NoUsablePayloadError: there are deltas alone, and none starts from this slot.
        PartitionsError, MachineError: the booted slot cannot be told.
        DownloadStoppedError: the engine was told to stop.
    """
    note_day(node)
    armed = memory.update if memory.state is State.ARMED else None
    settled = armed is not None and armed.version == release.version
    deltas = node.settings.download.deltas
    payloads = release.payloads
    recode_max = node.settings.download.recode_max_mib * MIB
    wanted = sources_wanted(payloads, recode_max=recode_max) if deltas else {}
    held = read_parts(node, wanted)
    full_size = max((one.size for one in payloads if one.facts.kind == "full"), default=0)
    failed = failed_bytes(node, memory, release.version)
    in_force = limits(node, release.version, full_size=full_size, failed=failed)
    return choose(
        [_priced(node, payload) for payload in payloads],
        held=held,
        policy=Policy(
            deltas=deltas,
            recode_max=recode_max,
            limits=() if settled else in_force,
        ),
        spoiled=memory.spoiled,
    )


def limits(
    node: Node, version: str, *, full_size: int = 0, failed: int = 0
) -> tuple[Allowance, ...]:
    """Return every limit of bytes in force for fetching `version` now.

    Args:
        node: the collaborators.
        version: what they count for.
        full_size: bytes of its full payload, 0 where there is none.
        failed: bytes that payloads of it cost in vain; then there is a limit for all together.
    """
    settings = node.settings.download
    in_force = Limits(
        update=settings.max_mib_per_update * MIB or None,
        day=settings.max_mib_per_day * MIB or None,
        metered=settings.metered_max_mib * MIB if is_metered(node) else None,
    )
    traffic = node.store.read_traffic()
    found = allowances(in_force, traffic, version=version, now=node.clock())
    if not (full_size and failed):
        return found
    return (*found, of_failed(failed, full_size=full_size))


def failed_bytes(node: Node, memory: NodeState, version: str) -> int:
    """Return the bytes that payloads of a version cost in vain on this day.

    Only on this day: a node must not be left without an update for ever.
    """
    day = today(node.store.read_traffic(), node.clock()).day
    rows = [item for item in memory.spoiled if (item.version, item.day) == (version, day)]
    return sum(item.cost for item in rows)


def note_day(node: Node) -> None:
    """Keep which day the clock shows: without it one that was set back could not be told."""
    before = node.store.read_traffic()
    _keep(node, before, today(before, node.clock()))


def note_link(node: Node) -> None:
    """Keep whether the bytes that come from now on come over a metered link."""
    before = node.store.read_traffic()
    _keep(node, before, msgspec.structs.replace(before, metered=is_metered(node)))


def day_ahead(node: Node, days: int) -> str:
    """Return the day, in UTC, that is so many days ahead; empty for none."""
    return (node.clock().astimezone(UTC).date() + timedelta(days=days)).isoformat() if days else ""


def is_metered(node: Node) -> bool:
    """Tell whether the link is metered: by the settings, or as long as their file is there."""
    settings = node.settings.download
    return settings.metered or (
        bool(settings.metered_file) and Path(settings.metered_file).exists()
    )


def require_budget(node: Node, plan: Plan, counted_as: str, what: str) -> int:
    """Return over how many more days a payload that no release names has to be spread.

    Raises:
        BudgetError: it costs more than may be fetched.
    """
    cost = _rest(node, plan.identity, plan.size)
    step = _step(plan.facts) if plan.resumable else cost
    return days_needed(limits(node, counted_as), what, cost, step=step)


def require_source(node: Node, facts: Facts) -> None:
    """Read the booted slot anew, where a release's delta that starts from it failed.

    Raises:
        SourceMismatchError: it is not what the delta starts from.
        PartitionsError, MachineError, DownloadStoppedError: as `read_parts`.
    """
    source = None if isinstance(facts, OwnFacts) else facts.source
    if source is None or isinstance(facts, OwnFacts):
        return
    wanted = {part.name: part.size for part in source.partitions}
    why = differences(facts, read_parts(node, wanted, anew=True))
    if why:
        raise SourceMismatchError(f"{why}: the delta from {source.version} is not installed")


def charge(node: Node, downloaded: int, counted_as: str) -> None:
    """Count all that was fetched for an update so far, as its journal has it."""
    before = node.store.read_traffic()
    after = charged(before, version=counted_as, downloaded=downloaded, now=node.clock())
    _keep(node, before, after)


def counted(node: Node, counted_as: str) -> int:
    """Return how many bytes of an update's journal are counted already."""
    traffic = node.store.read_traffic()
    return traffic.counted if traffic.version == counted_as else 0


def settle(node: Node, counted_as: str) -> None:
    """Forget what a version cost: it is armed, and a later update to it is another one."""
    traffic = node.store.read_traffic()
    if traffic.version == counted_as and traffic.version_bytes:
        node.store.write_traffic(
            msgspec.structs.replace(
                traffic, version="", version_bytes=0, metered_bytes=0, counted=0
            )
        )


def note_price(node: Node, plan: Plan, cost: int) -> None:
    """Keep what a payload turned out to cost here: its next plan need not guess."""
    traffic = node.store.read_traffic()
    after = msgspec.structs.replace(
        traffic, priced=plan.sha256, price=cost, priced_in=_occasion(node)
    )
    _keep(node, traffic, after)


def spoil(node: Node, memory: NodeState, update: Update, error: AnyRoomError) -> NodeState:
    """Note that a payload failed here: another one of its version is tried instead."""
    item = Spoiled(
        sha256=update.sha256,
        code=error.code,
        sentence=str(error),
        version=update.version,
        cost=_spent_on(node, update),
        day=today(node.store.read_traffic(), node.clock()).day,
    )
    others = [one for one in memory.spoiled if one.sha256 != update.sha256]
    return node.keep(memory, spoiled=(*others, item)[-SPOILED_MAX:])


def _spent_on(node: Node, update: Update) -> int:
    """Return the bytes that an update cost in vain since another payload of it failed.

    What was fetched of one that it took the place of is among them. All of it, when it is not
    known.
    """
    journal = node.store.read_journal()
    if journal is None:
        return update.size
    return journal.downloaded - journal.before if journal.sha256 == update.sha256 else 0


def _keep(node: Node, before: Traffic, after: Traffic) -> None:
    if after != before:
        node.store.write_traffic(after)


def _priced(node: Node, payload: PayloadTarget) -> Priced:
    """Return what a payload would still cost.

    A full one costs less where this node has blocks of it. How much less is known only when its
    metadata and its block index were read. That holds for the day and the boot in which it was
    done: the slots may change, and a mirror that serves ranges may be there tomorrow.
    """
    rest = _rest(node, payload.sha256, payload.size)
    step = _step(payload.facts)
    if payload.facts.kind == "delta":
        return Priced(payload=payload, cost=rest, step=step)
    traffic = node.store.read_traffic()
    if (traffic.priced, traffic.priced_in) == (payload.sha256, _occasion(node)):
        return Priced(payload=payload, cost=min(rest, traffic.price), step=step)
    return Priced(payload=payload, cost=rest, step=step, known_after=_overhead(payload.facts))


def _occasion(node: Node) -> str:
    return f"{node.boot().boot_id} {day_of(node.clock())}"


def _step(facts: Facts) -> int:
    """Return how many bytes must come in one go, at most, to get on with a payload."""
    return _overhead(facts) + STEP_BYTES


def _overhead(facts: Facts) -> int:
    """Return the bytes at most of what is read before the first operation."""
    if isinstance(facts, OwnFacts):  # its metadata was read already, and is read again
        return SIGNATURES_BYTES
    index = sum(part.size for part in facts.partitions) // INDEX_SHARE
    return facts.metadata_size + SIGNATURES_BYTES + (0 if facts.kind == "delta" else index)


def _rest(node: Node, identity: str, size: int) -> int:
    """Return what is left of a payload when what is flushed of it is not fetched again."""
    journal = node.store.read_journal()
    slot = node.boot().slot.other.value
    if journal is None or (journal.sha256, journal.slot) != (identity, slot):
        return size
    return max(0, size - journal.spared)
