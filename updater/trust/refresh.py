"""One refresh: ask the repository, believe what is signed, remember it durably.

This is the thin shell around python-tuf: it joins fetcher, store and floors. What a release means
for this node is decided in `policy`. Loads tuf and requests, so import it only to refresh.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote, urljoin, urlsplit

import requests
from tuf.api import exceptions as tuf_errors
from tuf.api.metadata import Metadata, Root, TargetFile
from tuf.ngclient import Updater, UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface

from images.errors import DocumentInvalidError
from images.release import (
    CHANNEL_DOCUMENT_MAX_BYTES,
    ChannelDocument,
    parse_channel_document,
    parse_payload_facts,
    tuf_channel_path,
)
from updater.errors import StateError
from updater.trust import limits
from updater.trust.errors import (
    ChannelUnknownError,
    TrustError,
    TrustExpiredError,
    TrustFormatError,
    TrustMismatchError,
    TrustOversizeError,
    TrustRollbackError,
    TrustRootError,
    TrustSignatureError,
    TrustSlowError,
    TrustSourceError,
    TrustUnreachableError,
)
from updater.trust.evidence import Evidence, read_evidence, read_roots, root_digest
from updater.trust.fetcher import FolderFetcher, HttpFetcher
from updater.trust.floors import (
    FLOORS_NAME,
    Floors,
    check_clock,
    check_versions,
    load_floors,
    of_lineage,
    raised,
    raised_roots,
    save_floors,
)
from updater.trust.store import TrustStore
from updater.trust.view import PayloadTarget, TrustedView

log = logging.getLogger(__name__)

OpenFetcher = Callable[[], AbstractContextManager[FetcherInterface]]

_SENTENCE_CHARACTERS: Final = 300  # of a foreign text in one of our sentences
_TRANSLATIONS: Final[tuple[tuple[type[Exception], type[TrustError]], ...]] = (
    (tuf_errors.ExpiredMetadataError, TrustExpiredError),
    (tuf_errors.BadVersionNumberError, TrustRollbackError),
    (tuf_errors.UnsignedMetadataError, TrustSignatureError),
    (tuf_errors.LengthOrHashMismatchError, TrustMismatchError),
    (tuf_errors.RepositoryError, TrustFormatError),
    (tuf_errors.DownloadLengthMismatchError, TrustOversizeError),
    (tuf_errors.SlowRetrievalError, TrustSlowError),
    (tuf_errors.DownloadError, TrustUnreachableError),
)  # the first that fits: both families of python-tuf, narrow before broad


class TrustClient:
    """Keeps this node's trusted view of one repository.

    Args:
        folder: the node's `trust` folder; made when missing.
        bootstrap_root: `root.json` of the running, read-only image.
        metadata_url: where metadata lies: `https://`, `http://` or `file://`.
        session_factory: makes the HTTP session of one refresh (`fetcher.open_session`).
        clock: returns the time, with zone.
        clock_floor: when the running image was built: the clock can never be before it.
        targets_url: where targets lie; by default the folder `targets` beside that of metadata.
        horizon: a timestamp that ends later is refused. None only for a local source that a
            privileged caller named.
        open_fetcher: brings files in another way than the URL says; for tests and bundles.

    Raises:
        TrustSourceError: a URL is not usable.
        TrustRootError: the image's root is damaged.
    """

    def __init__(  # noqa: PLR0913  # all that it depends on is named
        self,
        *,
        folder: Path,
        bootstrap_root: bytes,
        metadata_url: str,
        session_factory: Callable[[], requests.Session],
        clock: Callable[[], datetime],
        clock_floor: datetime,
        targets_url: str | None = None,
        horizon: timedelta | None = limits.ONLINE_HORIZON,
        open_fetcher: OpenFetcher | None = None,
    ) -> None:
        self._store = TrustStore(folder)
        self._bootstrap = bootstrap_root
        self._bootstrap_version = _root_version(bootstrap_root)
        self._metadata_url = _checked_url(metadata_url)
        self._targets_url = _checked_url(targets_url or urljoin(self._metadata_url, "../targets/"))
        self._session_factory = session_factory
        self._clock = clock
        self._clock_floor = clock_floor
        self._horizon = horizon
        self._open_fetcher = open_fetcher or self._fetcher_of_url

    def refresh(self, channel: str, product: str, board: str) -> TrustedView:
        """Return what may be installed, as signed and fresh at this moment.

        1. The clock is not behind what has certainly passed.
        2. python-tuf refreshes a draft of the store and looks up the channel document and the
           payloads that it allows.
        3. Nothing of it has ended, and the timestamp does not end beyond the horizon.
        4. Nothing of it is older than the floors: roots, roles, serial.
        5. The floors are raised, then the draft becomes current; both durably.

        After a refusal only new roots are kept, so that a good repository is believed afterwards.

        Raises:
            TrustError: a refusal, or the repository cannot be reached.
            EngineBusyError: another process refreshes this folder.
            StateError: the folder cannot be read or written.
        """
        path = tuf_channel_path(channel, product, board)
        try:
            with self._store.locked():
                return self._refresh(path)
        except OSError as error:
            raise StateError(f"the trust folder {self._store.folder} fails: {error}") from error

    def _refresh(self, path: str) -> TrustedView:
        floors = of_lineage(
            load_floors(*self._store.floors_files),
            version=self._bootstrap_version,
            sha256=root_digest(self._bootstrap),
        )
        now = check_clock(floors, now=self._clock(), image_built=self._clock_floor)
        draft = self._store.begin()
        try:
            with self._open_fetcher() as fetcher, _translated(self._metadata_url):
                lookup = _Lookup(self._updater(draft, fetcher), draft)
                document = lookup.channel_document(path)
                payloads, defects = lookup.payloads(document)
            evidence = self._evidence(draft, [path, *payloads, *defects], now)
            seen = evidence.seen(path, document.serial)
            check_versions(floors, seen)
        except TrustError as error:
            log.warning("refresh is refused code=%s reason=%s", error.code, error)
            self._keep_roots(draft, floors)
            raise
        self._remember(draft, raised(floors, seen, now=now), floors)
        return TrustedView(
            channel=document,
            payloads=payloads,
            defects=defects,
            refreshed_at=now,
            timestamp_expires=evidence.timestamp.expires,
            root_version=evidence.root.version,
            root_expires=evidence.root.expires,
        )

    def _updater(self, draft: Path, fetcher: FetcherInterface) -> Updater:
        """Return python-tuf's client after its refresh of the top-level roles."""
        updater = Updater(
            metadata_dir=str(draft),
            metadata_base_url=self._metadata_url,
            target_base_url=self._targets_url,
            fetcher=fetcher,
            config=UpdaterConfig(
                max_root_rotations=limits.MAX_ROOT_ROTATIONS,
                max_delegations=limits.MAX_DELEGATIONS,
                root_max_length=limits.ROOT_MAX_BYTES,
                timestamp_max_length=limits.TIMESTAMP_MAX_BYTES,
                snapshot_max_length=limits.SNAPSHOT_MAX_BYTES,
                targets_max_length=limits.TARGETS_MAX_BYTES,
            ),
            bootstrap=self._bootstrap,
        )
        updater.refresh()
        return updater

    def _evidence(self, draft: Path, paths: list[str], now: datetime) -> Evidence:
        """Step 3."""
        evidence = read_evidence(draft, paths=paths, first_root=self._bootstrap_version)
        evidence.check_expiry(now)
        if self._horizon is not None:
            evidence.check_horizon(now, self._horizon)
        return evidence

    def _remember(self, draft: Path, floors: Floors, before: Floors) -> None:
        """Step 5: floors first, so that a power cut in between forgets nothing."""
        own_file, _ = self._store.floors_files
        if floors != before or not own_file.exists():
            save_floors(own_file, floors)
        if self._store.differs(draft):
            save_floors(draft / FLOORS_NAME, floors)
            self._store.commit(draft)
            log.info("trusted metadata is new root=%d", floors.root_version)
        else:
            self._store.discard(draft)

    def _keep_roots(self, draft: Path, floors: Floors) -> None:
        """After a refusal: a chain of roots that grew was signed well whatever came after it."""
        roots = read_roots(draft, first=self._bootstrap_version)
        if max(roots) <= floors.root_version:
            self._store.discard(draft)
            return
        self._store.keep_only_roots(draft)
        self._remember(draft, raised_roots(floors, roots), floors)

    def _fetcher_of_url(self) -> AbstractContextManager[FetcherInterface]:
        base = urlsplit(urljoin(self._metadata_url, "../"))
        if base.scheme == "file":
            return FolderFetcher(Path(unquote(base.path)))
        return HttpFetcher(self._session_factory())


class _Lookup:
    """Looks up targets in a refreshed python-tuf client."""

    def __init__(self, updater: Updater, draft: Path) -> None:
        self._updater = updater
        self._folder = draft / "targets"

    def channel_document(self, path: str) -> ChannelDocument:
        """Return the document at `path`: from the last generation if it is still the signed one."""
        target = self._updater.get_targetinfo(path)
        if target is None:
            raise ChannelUnknownError(f"the repository has no {path}")
        if target.length > CHANNEL_DOCUMENT_MAX_BYTES:
            raise TrustOversizeError(
                f"{path} has {target.length} bytes, at most {CHANNEL_DOCUMENT_MAX_BYTES}"
                " are allowed"
            )
        try:
            return parse_channel_document(self._content(target))
        except DocumentInvalidError as error:
            raise TrustFormatError(f"{path} is refused: {_plain(error)}") from error

    def payloads(
        self, document: ChannelDocument
    ) -> tuple[dict[str, PayloadTarget], dict[str, str]]:
        """Return the signed payloads among those that `document` allows, and what is wrong."""
        found: dict[str, PayloadTarget] = {}
        defects: dict[str, str] = {}
        for path in dict.fromkeys(path for paths in document.allowed.values() for path in paths):
            target = self._updater.get_targetinfo(path)
            if target is None:
                continue
            try:
                found[path] = _payload(target)
            except DocumentInvalidError as error:
                defects[path] = _plain(error)
        return found, defects

    def _content(self, target: TargetFile) -> bytes:
        """Return the verified bytes of a small target, kept in the generation's own folder."""
        file = self._folder / quote(target.path, "")
        if self._updater.find_cached_target(target, str(file)) is None:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            for old in self._folder.iterdir():
                old.unlink()  # python-tuf would write into a file that the last generation shares
            self._updater.download_target(target, str(file))
        return file.read_bytes()


def _payload(target: TargetFile) -> PayloadTarget:
    """Return what was signed about a payload.

    Raises:
        DocumentInvalidError: facts or SHA-256 are missing or malformed.
    """
    digest = target.hashes.get("sha256", "")
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise DocumentInvalidError("the target has no SHA-256")
    if not isinstance(target.custom, dict):
        raise DocumentInvalidError("the target has no facts")
    return PayloadTarget(
        path=target.path,
        sha256=digest,
        size=target.length,
        facts=parse_payload_facts(target.custom),
    )


def _root_version(bootstrap: bytes) -> int:
    """Return the version of the image's root, once it is shown to be signed by itself."""
    try:
        metadata = Metadata[Root].from_bytes(bootstrap)
        metadata.signed.verify_delegate(Root.type, metadata.signed_bytes, metadata.signatures)
    except (tuf_errors.RepositoryError, ValueError) as error:
        raise TrustRootError(f"the image's root.json cannot be used: {_plain(error)}") from error
    return metadata.signed.version


def _checked_url(url: str) -> str:
    """Return `url` with a slash at its end.

    Raises:
        TrustSourceError: another scheme, no host, credentials, query, or unprintable characters.
    """
    parts = urlsplit(url)
    sound = (
        url.isascii()
        and url.isprintable()
        and " " not in url
        and parts.scheme in {"http", "https", "file"}
        and bool(parts.hostname) == (parts.scheme != "file")
        and "@" not in parts.netloc
        and not parts.query
        and not parts.fragment
    )
    if not sound:
        raise TrustSourceError(f"{_plain(url)} is not the URL of a metadata folder")
    return url if url.endswith("/") else f"{url}/"


@contextlib.contextmanager
def _translated(url: str) -> Iterator[None]:
    """Turn python-tuf's two families of errors into ours."""
    try:
        yield
    except (tuf_errors.RepositoryError, tuf_errors.DownloadError) as error:
        kind = next(ours for theirs, ours in _TRANSLATIONS if isinstance(error, theirs))
        raise kind(f"metadata of {url} is not accepted: {_plain(error)}") from error


def _plain(foreign: object) -> str:
    """Return a foreign text without control characters, cut to one line of bearable length."""
    text = str(foreign)[:_SENTENCE_CHARACTERS]
    return "".join(letter if letter.isprintable() else "?" for letter in text)
