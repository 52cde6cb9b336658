"""What was current on a channel before: read from its documents, which all stay on disk.

A document that was published keeps its file, named by its hash. What is read here decides nothing
but what is worth the work of making a delta, so it is not asked who signed it.
"""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING

from images.errors import DocumentInvalidError
from images.release import CHANNEL_DOCUMENT_MAX_BYTES, parse_channel_document, tuf_channel_path
from server.errors import ChannelUnknownError, RepositoryDamagedError
from server.roles import RELEASES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from images.release import ChannelDocument
    from server.contents import Contents
    from server.desk import Desk

log = logging.getLogger(__name__)


def histories(
    desk: Desk, contents: Contents, product: str, board: str, *, channels: Sequence[str] = ()
) -> list[list[str]]:
    """Return for each channel the versions that were current on it, newest first, each once.

    What the channel has withdrawn since is left out: nodes are on their way off it.

    Args:
        desk: whose files.
        contents: what is published.
        product: of the documents.
        board: of the documents.
        channels: their names; none for all.

    Raises:
        ChannelUnknownError: there is no such channel.
        RepositoryDamagedError: the documents cannot be listed.
    """
    known = [name for name in contents.delegated if name != RELEASES]
    for name in channels:
        if name not in known:
            raise ChannelUnknownError(f"there is no channel {name!a}")
    found = []
    for name in channels or known:
        documents = sorted(
            _documents(desk, tuf_channel_path(name, product, board)),
            key=lambda document: document.serial,
            reverse=True,
        )
        withdrawn = documents[0].withdrawn if documents else ()
        versions = (document.current for document in documents)
        found.append([version for version in dict.fromkeys(versions) if version not in withdrawn])
    return found


def _documents(desk: Desk, path: str) -> Iterator[ChannelDocument]:
    """Yield every document that was ever published under a TUF path, in no order."""
    folder = desk.repository.target_path(path, "").parent
    name = path.rpartition("/")[2]
    try:
        files = sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise RepositoryDamagedError(f"{folder} cannot be read: {error.strerror}") from error
    for file in files:
        sha256, _, rest = file.name.partition(".")
        if rest != name:
            continue
        try:
            with file.open("rb") as stream:
                data = stream.read(CHANNEL_DOCUMENT_MAX_BYTES + 1)
            if hashlib.sha256(data).hexdigest() == sha256:
                yield parse_channel_document(data)
        except (OSError, DocumentInvalidError) as error:
            log.warning("channel document is passed over file=%s error=%s", file, error)
