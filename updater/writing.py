"""From a plan to a written slot: which mirror or file, which journal, what is shown meanwhile."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from images.errors import ImagesError
from partitions.boot_files import has_length
from updater import given
from updater.download import Download
from updater.install import WrittenSlot, write_slot
from updater.local_payload import LocalPayload
from updater.pipeline import PayloadDigestError, Shell
from updater.progress import Progress
from updater.state import Journal

if TYPE_CHECKING:
    from updater.node import Node
    from updater.pipeline import PayloadBytes
    from updater.plan import Plan

log = logging.getLogger(__name__)


def write(node: Node, plan: Plan, urls: Sequence[str], *, version: str) -> WrittenSlot:
    """Write from the first mirror that has the right bytes; a wrong one is left out.

    Args:
        node: the collaborators.
        plan: what goes where; the slot is disarmed already.
        urls: where the payload is, best first; or one path.
        version: shown with the progress.

    Raises:
        ImagesError, PayloadDigestError: no mirror has the right bytes.
        DownloadStoppedError, DownloadError: as `write_slot`.
    """
    left = list(urls)
    while True:
        journal = _journal(node, plan)
        with _source(node, plan, left) as download:
            shell = _shell(node, plan, journal, download, version=version)
            try:
                return write_slot(plan, download, journal, shell)
            except (ImagesError, PayloadDigestError) as error:
                left.remove(download.mirror)
                log.warning("mirror has wrong bytes url=%s code=%s", download.mirror, error.code)
                if not left:
                    node.store.drop_journal()
                    raise
            finally:
                _note_downloaded(node, journal, download)


def _journal(node: Node, plan: Plan) -> Journal:
    """Return how far it is; a journal of other bytes is void before ours are written.

    So is that of a payload that proves itself with its last bytes only, and of a boot file that
    was lost or cut short, since a file is made with its full size: it begins anew.
    """
    journal = node.store.read_journal()
    if journal and (journal.sha256, journal.slot) == (plan.identity, plan.slot.value):
        if plan.resumable and _files_are_whole(plan):
            return journal
        journal = msgspec.structs.replace(journal, next_operation=0)
        node.store.write_journal(journal)
        return journal
    fresh = Journal(sha256=plan.identity, slot=plan.slot.value)
    node.store.write_journal(fresh)
    return fresh


def _files_are_whole(plan: Plan) -> bool:
    return all(has_length(plan.regions[part.name], part.size) for part in plan.facts.partitions)


def _source(node: Node, plan: Plan, urls: Sequence[str]) -> Download | LocalPayload:
    if urls[0].startswith("/"):
        return LocalPayload(Path(urls[0]), stop=node.stop)
    return Download(
        urls,
        size=plan.size,
        session=node.http(),
        patience=given.patience(node),
        monotonic=time.monotonic,
        stop=node.stop,
    )


def _shell(
    node: Node, plan: Plan, journal: Journal, download: PayloadBytes, *, version: str
) -> Shell:
    def show(done: int) -> None:
        fetched = journal.downloaded + download.received
        node.progress.show(Progress(version=version, done=done, size=plan.size, downloaded=fetched))

    return Shell(keep_journal=node.store.write_journal, progress=show, stop=node.stop)


def _note_downloaded(node: Node, journal: Journal, download: PayloadBytes) -> None:
    """Count what came over the network, also when nothing of it was flushed."""
    kept = node.store.read_journal()
    if kept is None:  # dropped: nothing that was flushed counts any more
        kept = msgspec.structs.replace(journal, next_operation=0)
    downloaded = journal.downloaded + download.received
    node.store.write_journal(msgspec.structs.replace(kept, downloaded=downloaded))
