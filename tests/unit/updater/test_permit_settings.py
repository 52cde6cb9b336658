"""What the keeper may be told, and what it refuses before the first packet."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sim.certificates import make_tls_files
from updater.permit import open_permits
from updater.permit.cluster import FileClusterMemory
from updater.permit.contract import Node, Permit, PermitKeeper, WaitReason
from updater.permit.errors import (
    PermitInsecureError,
    PermitMaxError,
    PermitSettingsError,
    PermitUnavailableError,
)
from updater.permit.settings import EtcdSettings

NODE = Node(id="a", host="A")


def opened(tmp_path: Path, settings: EtcdSettings) -> PermitKeeper:
    return open_permits(settings, node=NODE, memory=FileClusterMemory(tmp_path / "mark.json"))


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://etcd.example:2379",
        "https://etcd.example:2379/",
        "https://[2001:db8::1]:2379",
        "http://127.0.0.1:2379",
        "http://127.9.9.9:2379",
        "http://[::1]:2379",
        "http://localhost:2379",
    ],
)
def test_https_and_plain_http_to_this_machine_are_accepted(endpoint: str) -> None:
    assert EtcdSettings(endpoints=(endpoint,)).endpoints == (endpoint,)


@pytest.mark.parametrize("host", ["10.0.0.1", "etcd.example", "[2001:db8::1]", "127.0.0.1.example"])
def test_plain_http_to_another_machine_needs_a_word(host: str) -> None:
    with pytest.raises(PermitInsecureError, match="plain HTTP"):
        EtcdSettings(endpoints=(f"http://{host}:2379",))

    EtcdSettings(endpoints=(f"http://{host}:2379",), insecure=True)


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "etcd:2379",
        "ftp://127.0.0.1:2379",
        "https://",
        "https://user:secret@etcd:2379",
        "https://etcd:2379/v3",
        "https://etcd:2379?x=1",
        "https://etcd:0",
        "https://etcd:99999",
        "https://[::1:2379",
    ],
)
def test_what_is_no_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(PermitSettingsError, match=r"permit\.endpoints"):
        EtcdSettings(endpoints=(endpoint,))


def test_no_endpoint_at_all_is_refused() -> None:
    with pytest.raises(PermitSettingsError, match="empty"):
        EtcdSettings(endpoints=())


@pytest.mark.parametrize("group", ["", "a/b", "../x", "a b", "-a", "a\n"])
def test_a_group_that_cannot_be_in_a_key_is_refused(group: str) -> None:
    with pytest.raises(PermitSettingsError, match=r"permit\.group"):
        EtcdSettings(endpoints=("https://etcd:2379",), group=group)


def test_a_first_max_out_of_range_is_refused() -> None:
    with pytest.raises(PermitMaxError, match="1001"):
        EtcdSettings(endpoints=("https://etcd:2379",), initial_max=1001)


def test_a_certificate_without_its_key_is_refused() -> None:
    with pytest.raises(PermitSettingsError, match=r"cert_file and permit\.key_file go together"):
        EtcdSettings(endpoints=("https://etcd:2379",), cert_file=Path("/x"))


def test_a_user_without_a_password_is_refused() -> None:
    with pytest.raises(PermitSettingsError, match=r"username and permit\.password_file"):
        EtcdSettings(endpoints=("https://etcd:2379",), username="node")


@pytest.mark.parametrize(
    ("name", "content"),
    [("ca_file", None), ("ca_file", b"no PEM"), ("cert_file", None), ("cert_file", b"no PEM")],
)
def test_a_file_that_cannot_be_used_is_named_when_the_keeper_is_opened(
    tmp_path: Path, name: str, content: bytes | None
) -> None:
    tls = make_tls_files(tmp_path)
    files = {"ca_file": tls.ca, "cert_file": tls.client_cert, "key_file": tls.client_key}
    files[name] = tmp_path / "bad.pem"
    if content is not None:
        files[name].write_bytes(content)
    settings = EtcdSettings(endpoints=("https://127.0.0.1:1",), **files)  # type: ignore[arg-type]

    with pytest.raises(PermitSettingsError, match=rf"permit\.{name}.*bad\.pem"):
        opened(tmp_path, settings)


def test_a_password_file_that_is_missing_is_named(tmp_path: Path) -> None:
    settings = EtcdSettings(
        endpoints=("https://127.0.0.1:1",), username="node", password_file=tmp_path / "no-such"
    )

    with pytest.raises(PermitSettingsError, match="no-such"):
        opened(tmp_path, settings)


def test_a_node_whose_id_cannot_be_a_holders_is_refused(tmp_path: Path) -> None:
    settings = EtcdSettings(endpoints=("https://127.0.0.1:1",))

    with pytest.raises(PermitSettingsError, match="no id of a node"):
        open_permits(
            settings,
            node=Node(id="a/b", host="A"),
            memory=FileClusterMemory(tmp_path / "mark.json"),
        )


def test_an_etcd_that_is_not_there_makes_acquire_a_wait_and_the_others_an_error(
    tmp_path: Path,
) -> None:
    keeper = opened(tmp_path, EtcdSettings(endpoints=("http://127.0.0.1:1", "http://[::1]:1")))

    waiting = keeper.acquire("update")

    assert not isinstance(waiting, Permit)
    assert waiting.reason is WaitReason.UNAVAILABLE
    assert waiting.code == "permit-unavailable"
    assert waiting.sentence.count("Connection refused") + waiting.sentence.count("assign") == 2
    for verb in (keeper.release, keeper.status, lambda: keeper.set_max(1)):
        with pytest.raises(PermitUnavailableError, match=r"127\.0\.0\.1:1"):
            verb()
    keeper.close()
