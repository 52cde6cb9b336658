"""From a plan to a written slot: which mirror or file, which journal, what is shown meanwhile."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from images.errors import ImagesError, SourceMismatchError
from partitions.boot_files import has_length
from updater import given
from updater.budget import tightest
from updater.download import Download
from updater.install import WrittenSlot, write_slot
from updater.local_payload import LocalPayload
from updater.pipeline import PayloadDigestError, Shell
from updater.planning import charge, limits
from updater.progress import Progress
from updater.reuse import DictionaryLostError, LocalMismatchError
from updater.state import Journal

if TYPE_CHECKING:
    from updater.node import Node
    from updater.pipeline import PayloadBytes
    from updater.plan import Plan

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
        DictionaryLostError: the disk lost what was written; the next attempt begins anew.
        BudgetError: it came to more bytes than may be fetched.
        DownloadStoppedError, DownloadError: as `write_slot`.
    """
    left = list(urls)
    mismatches = 0
    while True:
        journal = _journal(node, plan, counted_as)
        charge(node, journal, counted_as)  # what a kill left uncounted
        with _source(node, plan, left, counted_as) as download:
            shell = _shell(node, plan, journal, download, version=version)
            try:
                return write_slot(plan, download, journal, shell)
            except LocalMismatchError as error:
                mismatches += 1
                log.warning("local blocks are not what they seemed operation=%d", error.number)
                plan = dataclasses.replace(
                    plan,
                    avoided=plan.avoided | {error.number},
                    reuse=mismatches < MISMATCHES_MAX,
                )
            except DictionaryLostError:
                node.store.drop_journal()  # what it names as flushed is not what the disk holds
                raise
            except SourceMismatchError:
                node.store.drop_journal()
                raise  # no mirror's fault
            except (ImagesError, PayloadDigestError) as error:
                left.remove(download.mirror)
                log.warning("mirror has wrong bytes url=%s code=%s", download.mirror, error.code)
                if not left:
                    node.store.drop_journal()
                    raise
            finally:
                _note_downloaded(node, journal, download, counted_as)


def _journal(node: Node, plan: Plan, counted_as: str) -> Journal:
    """Return how far it is; a journal of other bytes is void before ours are written.

    What was fetched of another payload of the same version stays counted. Void, too, is that of a
    payload that proves itself with its last bytes only, and of a boot file that was lost or cut
    short, since a file is made with its full size: it begins anew.
    """
    journal = node.store.read_journal()
    if journal and (journal.sha256, journal.slot) == (plan.identity, plan.slot.value):
        if plan.resumable and _files_are_whole(plan):
            return journal
        journal = msgspec.structs.replace(journal, next_operation=0, spared=0)
        node.store.write_journal(journal)
        return journal
    same = journal is not None and journal.version == counted_as
    fresh = Journal(
        sha256=plan.identity,
        slot=plan.slot.value,
        version=counted_as,
        downloaded=journal.downloaded if journal is not None and same else 0,
    )
    node.store.write_journal(fresh)
    return fresh


def _files_are_whole(plan: Plan) -> bool:
    return all(has_length(plan.regions[part.name], part.size) for part in plan.facts.partitions)


def _source(
    node: Node, plan: Plan, urls: Sequence[str], counted_as: str
) -> Download | LocalPayload:
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
        allowance=lambda: tightest(limits(node, counted_as)),
    )


def _shell(
    node: Node, plan: Plan, journal: Journal, download: PayloadBytes, *, version: str
) -> Shell:
    def show(done: int) -> None:
        fetched = journal.downloaded + download.received
        node.progress.show(Progress(version=version, done=done, size=plan.size, downloaded=fetched))

    return Shell(keep_journal=node.store.write_journal, progress=show, stop=node.stop)


def _note_downloaded(node: Node, journal: Journal, download: PayloadBytes, counted_as: str) -> None:
    """Count what came over the network, also when nothing of it was flushed."""
    kept = node.store.read_journal()
    if kept is None:  # dropped: nothing that was flushed counts any more
        kept = msgspec.structs.replace(journal, next_operation=0, spared=0)
    downloaded = journal.downloaded + download.received
    kept = msgspec.structs.replace(kept, downloaded=downloaded)
    node.store.write_journal(kept)
    charge(node, kept, counted_as)
