"""From a plan to a written slot: which mirror or file, which journal, what is shown meanwhile."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from images.errors import CoderMissingError, ImagesError, SourceMismatchError
from partitions.boot_files import has_length
from partitions.errors import PartitionsError
from updater import given, planning
from updater.download import Download
from updater.errors import UpdaterError
from updater.install import WrittenSlot, make_again, write_slot
from updater.local_payload import LocalPayload
from updater.meter import Meter
from updater.pipeline import PayloadDigestError
from updater.politeness import polite
from updater.progress import Progress
from updater.proof import ReadBackError
from updater.reuse import DictionaryLostError, LocalMismatchError
from updater.shelf import shelf_of
from updater.shell import Shell
from updater.state import Journal

if TYPE_CHECKING:
    from updater.node import Node
    from updater.plan import Plan
    from updater.shell import PayloadBytes

# What keeps us from telling who is to blame: the disk is, then.
UNTOLD: Final = (UpdaterError, PartitionsError)

log = logging.getLogger(__name__)

MISMATCHES_MAX: Final = 8  # then nothing on this node is taken for a payload's output any more


def write(
    node: Node, plan: Plan, urls: Sequence[str], *, version: str, counted_as: str
) -> WrittenSlot:
    """Write from the first mirror that has the right bytes; a wrong one is left out.

    Args:
        node: the collaborators.
        plan: what goes where; the slot is disarmed already.
        urls: where the payload is, best first; or one path.
        version: shown with the progress.
        counted_as: what its bytes count for.

    Raises:
        SourceMismatchError: the booted slot is not what the delta starts from.
        ImagesError, PayloadDigestError: no mirror has the right bytes.
        DictionaryLostError, ReadBackError: the disk lost what was written; the next attempt
            begins anew.
        BudgetError: it came to more bytes than may be fetched.
        DownloadStoppedError, DownloadError: as `write_slot`.
    """
    left = list(urls)
    mismatches = 0
    while True:
        journal, kept = _journal(node, plan, counted_as)
        meter = Meter(node, plan, journal.downloaded, counted_as)
        with _polite(node), _source(node, plan, left, meter) as download:
            shell = _shell(node, plan, journal, download, meter, version=version)
            if isinstance(download, Download):  # of a file nothing is fetched
                shelf = shelf_of(node.store, plan.identity, begun=kept.sha256 == plan.identity)
                shell = dataclasses.replace(shell, shelf=shelf)
            try:
                return _write_and_judge(node, plan, download, journal, shell, left)
            except LocalMismatchError as error:
                mismatches += 1
                log.warning("local blocks are not what they seemed operation=%d", error.number)
                plan = dataclasses.replace(
                    plan,
                    avoided=plan.avoided | {error.number},
                    reuse=mismatches < MISMATCHES_MAX,
                )
            except (DictionaryLostError, ReadBackError, SourceMismatchError) as error:
                _void(node, plan)  # what it names as flushed is not what the disk holds
                log.warning("what was written is void code=%s why=%s", error.code, error)
                _require_source(node, plan)  # the next plan knows, too
                raise
            except CoderMissingError:
                _void(node, plan)
                raise
            except (ImagesError, PayloadDigestError) as error:
                _require_source(node, plan)
                left.remove(download.mirror)
                log.warning("mirror has wrong bytes url=%s code=%s", download.mirror, error.code)
                if not left:
                    _void(node, plan)
                    raise
            finally:
                _note_downloaded(node, journal, kept, download, counted_as)


def _require_source(node: Node, plan: Plan) -> None:
    """Tell a wrong payload from a booted slot that changed since a delta was planned.

    Raises:
        SourceMismatchError: it is not what the delta starts from.
    """
    try:
        planning.require_source(node, plan.facts)
    except SourceMismatchError:
        _void(node, plan)
        raise


def _write_and_judge(
    node: Node,
    plan: Plan,
    download: Download | LocalPayload,
    journal: Journal,
    shell: Shell,
    urls: Sequence[str],
) -> WrittenSlot:
    """Write; when the disk holds something else in the end, see whether that is what was made.

    Raises:
        ImagesError: it is: the payload is wrong, not the disk.
        ReadBackError: it is not.
    """
    try:
        return write_slot(plan, download, journal, shell)
    except ReadBackError as error:
        if error.number is None:
            raise
        meter = Meter(node, plan, journal.downloaded + download.received, journal.version)
        with _source(node, plan, urls, meter) as again:
            try:
                make_again(plan, again, error.number)
            except UNTOLD as why:
                log.warning("not made again operation=%d code=%s", error.number, why.code)
            finally:
                download.received += again.received
        raise


def _polite(node: Node) -> AbstractContextManager[None]:
    settings = node.settings.download
    return polite(nice=settings.nice, io=settings.io_priority)


def _journal(node: Node, plan: Plan, counted_as: str) -> tuple[Journal, Journal]:
    """Return how far it is, and the journal that is kept until the first byte is written.

    A journal of other bytes is void before ours are written, but not before ours are known to be
    there: what was flushed of another payload of the same version may be all that there is. What
    was fetched of it stays counted. Void, too, is that of a payload that proves itself with its
    last bytes only, and of a boot file that was lost or cut short, since a file is made with its
    full size: it begins anew.
    """
    journal = node.store.read_journal()
    same = journal is not None and journal.version == counted_as
    if journal is not None and same:  # what was counted while it came, and then not flushed
        counted = planning.counted(node, counted_as)
        journal = msgspec.structs.replace(journal, downloaded=max(journal.downloaded, counted))
    kept = journal
    if journal and (journal.sha256, journal.slot) == (plan.identity, plan.slot.value):
        if not (plan.resumable and _files_are_whole(plan)):
            journal = kept = msgspec.structs.replace(journal, next_operation=0, spared=0)
    else:
        fetched = journal.downloaded if journal is not None and same else 0
        kept = journal if same and journal is not None else None
        journal = Journal(
            sha256=plan.identity,
            slot=plan.slot.value,
            version=counted_as,
            downloaded=fetched,
            before=min(fetched, _failed(node, counted_as)),
        )
    kept = kept or journal
    node.store.write_journal(kept)
    planning.charge(node, journal.downloaded, counted_as)  # what a kill left uncounted
    return journal, kept


def _failed(node: Node, version: str) -> int:
    """Return the bytes that are known as the cost of payloads of a version that failed."""
    return sum(item.cost for item in node.store.read_state().spoiled if item.version == version)


def _void(node: Node, plan: Plan) -> None:
    """Forget what a journal of this payload names as flushed; that of another one stays."""
    journal = node.store.read_journal()
    if journal is not None and journal.sha256 == plan.identity:
        node.store.write_journal(msgspec.structs.replace(journal, next_operation=0, spared=0))
        node.store.drop_pieces()


def _files_are_whole(plan: Plan) -> bool:
    return all(has_length(plan.regions[part.name], part.size) for part in plan.facts.partitions)


def _source(node: Node, plan: Plan, urls: Sequence[str], meter: Meter) -> Download | LocalPayload:
    if urls[0].startswith("/"):
        return LocalPayload(Path(urls[0]), stop=node.stop)
    return Download(
        urls,
        size=plan.size,
        session=node.http(),
        patience=given.patience(node),
        monotonic=time.monotonic,
        stop=node.stop,
        rate=node.settings.download.max_kib_per_sec * 1024,
        allowance=meter.transfer_begins,
    )


def _shell(
    node: Node,
    plan: Plan,
    journal: Journal,
    download: PayloadBytes,
    meter: Meter,
    *,
    version: str,
) -> Shell:
    def show(done: int) -> None:
        fetched = journal.downloaded + download.received
        node.progress.show(Progress(version=version, done=done, size=plan.size, downloaded=fetched))

    return Shell(
        keep_journal=node.store.write_journal,
        progress=show,
        stop=node.stop,
        begin=lambda: node.store.write_journal(journal),
        priced=lambda cost: meter.priced(cost, download.received),
    )


def _note_downloaded(
    node: Node, journal: Journal, kept: Journal, download: PayloadBytes, counted_as: str
) -> None:
    """Count what came over the network, also when nothing of it was flushed."""
    downloaded = journal.downloaded + download.received
    last = node.store.read_journal() or kept
    node.store.write_journal(msgspec.structs.replace(last, downloaded=downloaded))
    planning.charge(node, downloaded, counted_as)
