"""Attacks on the way of metadata, with the real fetcher against a real HTTP server."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    SlowRetrievalError,
)

from tests.sim import repository_server as behave
from tests.sim.repository import BOARD, PRODUCT, TrustingNode, new_node
from tests.sim.repository_server import RepositoryServer
from updater.errors import EngineBusyError
from updater.trust.errors import (
    TrustError,
    TrustExpiredError,
    TrustFormatError,
    TrustOversizeError,
    TrustSlowError,
    TrustSourceError,
    TrustUnreachableError,
)
from updater.trust.fetcher import FolderFetcher, HttpFetcher, open_session
from updater.trust.refresh import TrustClient
from updater.trust.view import TrustedView

TIMESTAMP = "metadata/timestamp.json"


@pytest.fixture
def node(tmp_path: Path) -> TrustingNode:
    return new_node(tmp_path)


@pytest.fixture
def server(node: TrustingNode) -> Iterator[RepositoryServer]:
    with RepositoryServer(node.repository) as server:
        yield server


def refresh(
    node: TrustingNode, server: RepositoryServer, *, deadline_s: float = 60, idle_s: float = 10
) -> TrustedView:
    """Refresh over HTTP."""
    client = TrustClient(
        folder=node.folder,
        bootstrap_root=node.bootstrap,
        metadata_url=server.url,
        session_factory=open_session,
        clock=node.clock,
        clock_floor=node.clock(),
        open_fetcher=lambda: HttpFetcher(open_session(), deadline_s=deadline_s, idle_s=idle_s),
    )
    return client.refresh("stable", PRODUCT, BOARD)


def test_an_honest_server_is_believed_over_one_connection(
    node: TrustingNode, server: RepositoryServer
) -> None:
    assert node.client(url=server.url).refresh("stable", PRODUCT, BOARD).channel.serial == 1
    assert server.headers["Accept-Encoding"] == "identity"
    assert server.headers["User-Agent"] == "python-requests/" + requests.__version__
    assert (len(server.asked), len(server.connections)) == (7, 1)


def test_an_honest_chunked_answer_is_read(node: TrustingNode, server: RepositoryServer) -> None:
    server.behaviours[TIMESTAMP] = behave.chunked
    assert refresh(node, server).channel.current == "2.0.0"


@pytest.mark.parametrize("behaviour", [behave.endless, behave.huge])
@pytest.mark.parametrize("path", [TIMESTAMP, "metadata/2.root.json", "metadata/2.snapshot.json"])
def test_endless_data_is_cut_off(
    node: TrustingNode, server: RepositoryServer, behaviour: behave.Behaviour, path: str
) -> None:
    server.behaviours[path] = behaviour
    with pytest.raises(TrustOversizeError):
        refresh(node, server)


@pytest.mark.parametrize("behaviour", ["trickle_body", "trickle_headers", "say_nothing", "stall"])
@pytest.mark.parametrize("path", [TIMESTAMP, "metadata/1.targets.json"])
def test_slow_retrieval_is_cut_off_wherever_it_is_slow(
    node: TrustingNode, server: RepositoryServer, behaviour: str, path: str
) -> None:
    server.behaviours[path] = getattr(server, behaviour)
    with pytest.raises(TrustSlowError):
        refresh(node, server, deadline_s=0.6, idle_s=0.3)
    assert server.patient_clients == 0


def test_a_server_that_does_not_finish_the_tls_handshake_is_cut_off() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/timestamp.json"
        fetcher = HttpFetcher(open_session(), deadline_s=0.3)
        with fetcher, pytest.raises(SlowRetrievalError):
            fetcher.download_bytes(url, 100)


def test_a_redirect_to_an_inner_host_is_not_followed(
    node: TrustingNode, server: RepositoryServer
) -> None:
    inner = f"{server.url}inner"
    server.behaviours[TIMESTAMP] = behave.redirect(inner)
    with pytest.raises(TrustUnreachableError, match="redirects are not followed"):
        refresh(node, server)
    assert "metadata/inner" not in server.asked


def test_a_gzip_answer_nobody_asked_for_is_refused(
    node: TrustingNode, server: RepositoryServer
) -> None:
    server.behaviours[TIMESTAMP] = behave.gzipped
    with pytest.raises(TrustUnreachableError, match="content coding 'gzip', asked for identity"):
        refresh(node, server)


def test_a_truncated_body_is_an_error(node: TrustingNode, server: RepositoryServer) -> None:
    server.behaviours[TIMESTAMP] = behave.truncated
    with pytest.raises(TrustUnreachableError):
        refresh(node, server)


def test_a_login_page_instead_of_metadata_is_refused(
    node: TrustingNode, server: RepositoryServer
) -> None:
    server.behaviours[TIMESTAMP] = behave.page
    with pytest.raises(TrustFormatError):
        refresh(node, server)


@pytest.mark.parametrize("code", [401, 403, 404, 500, 503])
def test_an_http_error_is_named(node: TrustingNode, server: RepositoryServer, code: int) -> None:
    server.behaviours[TIMESTAMP] = behave.status(code)
    with pytest.raises(TrustUnreachableError, match=f"HTTP {code}, expected 200"):
        refresh(node, server)


def test_a_server_that_is_away_is_unreachable(node: TrustingNode) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(TrustUnreachableError) as caught:
        node.client(url=f"http://127.0.0.1:{port}/metadata/").refresh("stable", PRODUCT, BOARD)
    assert (caught.value.code, caught.value.exit_status) == ("trust-unreachable", 6)


def test_after_each_misbehaviour_an_honest_answer_is_believed(
    node: TrustingNode, server: RepositoryServer
) -> None:
    for behaviour in (behave.page, behave.truncated, behave.endless, behave.gzipped):
        server.behaviours[TIMESTAMP] = behaviour
        with pytest.raises(TrustError):
            refresh(node, server)
    server.behaviours.clear()
    assert refresh(node, server).channel.current == "2.0.0"


def test_a_stale_mirror_costs_time_only(node: TrustingNode, server: RepositoryServer) -> None:
    node.clock.forward(days=4)
    with pytest.raises(TrustExpiredError):
        refresh(node, server)
    node.repository.publish()
    assert refresh(node, server).channel.current == "2.0.0"


def test_proxies_of_the_environment_are_not_used(
    node: TrustingNode, server: RepositoryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9/")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nonexistent")
    assert refresh(node, server).channel.current == "2.0.0"


def test_a_proxy_from_the_settings_is_used(server: RepositoryServer) -> None:
    proxy = server.url.removesuffix("metadata/")
    url = "http://repository.invalid/metadata/timestamp.json"
    fetcher = HttpFetcher(open_session(proxies={"http": proxy}))
    with fetcher, pytest.raises(DownloadHTTPError):
        fetcher.download_bytes(url, 100)
    assert server.asked == [url]


def test_a_second_process_is_told_that_the_folder_is_busy(node: TrustingNode) -> None:
    def refresh_again(*_: object) -> None:
        node.refresh()

    client = node.client()
    client._open_fetcher = refresh_again  # type: ignore[assignment]  # runs while the lock is held
    with pytest.raises(EngineBusyError):
        client.refresh("stable", PRODUCT, BOARD)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/metadata/",
        "https:///metadata/",
        "https://user:secret@host/metadata/",
        "https://host/metadata/?query",
        "https://host/metadata/#part",
        "https://host/meta\r\ndata/",
        "https://host/meta data/",
        "file://host/metadata/",
        "/metadata/",
        "",
    ],
)
def test_a_url_that_cannot_be_one_is_refused(node: TrustingNode, url: str) -> None:
    with pytest.raises(TrustSourceError):
        TrustClient(
            folder=node.folder,
            bootstrap_root=node.bootstrap,
            metadata_url=url,
            session_factory=open_session,
            clock=node.clock,
            clock_floor=node.clock(),
        )


class TestFolderFetcher:
    """Files of a folder that a stranger may have made."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "secret").write_bytes(b"secret")
        folder = tmp_path / "bundle"
        (folder / "metadata").mkdir(parents=True)
        (folder / "metadata" / "timestamp.json").write_bytes(b"honest")
        return folder

    def fetch(self, folder: Path, name: str, limit: int = 100) -> bytes:
        with FolderFetcher(folder) as fetcher:
            return fetcher.download_bytes(f"{folder.as_uri()}/{name}", limit)

    def test_reads_a_file_up_to_the_limit(self, folder: Path) -> None:
        assert self.fetch(folder, "metadata/timestamp.json", 6) == b"honest"
        with pytest.raises(DownloadLengthMismatchError):
            self.fetch(folder, "metadata/timestamp.json", 5)

    def test_a_missing_file_is_like_a_404(self, folder: Path) -> None:
        for name in ("metadata/2.root.json", "nowhere/2.root.json"):
            with pytest.raises(DownloadHTTPError) as caught:
                self.fetch(folder, name)
            assert caught.value.status_code == 404

    @pytest.mark.parametrize("name", ["../secret", "metadata/../../secret", "%2e%2e/secret", ""])
    def test_no_path_leads_out_of_it(self, folder: Path, name: str) -> None:
        with pytest.raises(DownloadError):
            self.fetch(folder, name)

    def test_links_are_not_followed(self, folder: Path) -> None:
        (folder / "metadata" / "link.json").symlink_to(folder.parent / "secret")
        (folder / "linked").symlink_to(folder.parent)
        for name in ("metadata/link.json", "linked/secret"):
            with pytest.raises(DownloadError):
                self.fetch(folder, name)

    def test_a_fifo_does_not_hold_us(self, folder: Path) -> None:
        os.mkfifo(folder / "metadata" / "2.root.json")
        with pytest.raises(DownloadError):
            self.fetch(folder, "metadata/2.root.json")

    def test_a_folder_is_no_file(self, folder: Path) -> None:
        with pytest.raises(DownloadError):
            self.fetch(folder, "metadata")

    def test_another_place_is_refused(self, folder: Path) -> None:
        with FolderFetcher(folder) as fetcher, pytest.raises(DownloadError, match="outside"):
            fetcher.download_bytes((folder.parent / "secret").as_uri(), 100)


def test_nothing_stays_open_after_a_refresh(node: TrustingNode, server: RepositoryServer) -> None:
    refresh(node, server)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        refresh(node, server)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1  # the server's own connection
