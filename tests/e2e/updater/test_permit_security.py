"""TLS, users, and the question whether this is still the etcd we know."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sim.certificates import make_tls_files
from tests.sim.etcd import etcd_programs, running_etcd
from tests.sim.permits import (
    ALL_GROUPS,
    DOCUMENT,
    SOON,
    Nodes,
    holders,
    permitted,
    refused,
)
from updater.permit.errors import (
    PermitClusterChangedError,
    PermitUnauthorizedError,
    PermitUnavailableError,
)

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not etcd_programs(), reason="no etcd on this machine"),
]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Nodes]:
    made = Nodes(tmp_path)
    yield made
    made.close()


@pytest.fixture(params=etcd_programs())
def program(request: pytest.FixtureRequest) -> Path:
    return etcd_programs()[request.param]


def password(folder: Path, text: str) -> Path:
    file = folder / "password"
    file.write_text(text + "\n")
    return file


def test_permits_over_tls_with_a_client_certificate(
    program: Path, fleet: Nodes, tmp_path: Path
) -> None:
    tls = make_tls_files(tmp_path / "tls")
    others = make_tls_files(tmp_path / "others")
    with running_etcd(tmp_path / "etcd", program=program, tls=tls) as etcd:
        a = fleet.node(
            "a", etcd.url, ca_file=tls.ca, cert_file=tls.client_cert, key_file=tls.client_key
        )
        permitted(a.acquire("update"))
        assert a.release() is True

        nameless = fleet.node("b", etcd.url, ca_file=tls.ca, timeouts=SOON)
        assert refused(nameless.acquire("update")).code == "permit-unavailable"
        deceived = fleet.node(
            "c", etcd.url, ca_file=others.ca, cert_file=tls.client_cert, key_file=tls.client_key
        )
        assert "certificate verify failed" in refused(deceived.acquire("update")).sentence
        plain = fleet.node("d", etcd.url.replace("https", "http"), timeouts=SOON)
        with pytest.raises(PermitUnavailableError):
            plain.status()
        fleet.close()


def test_permits_with_users_and_tokens_that_die(
    program: Path, fleet: Nodes, tmp_path: Path
) -> None:
    with running_etcd(tmp_path / "etcd", program=program) as etcd:
        etcd.enable_users({"node": "secret"}, prefix=ALL_GROUPS)
        good = password(tmp_path, "secret")
        a = fleet.node("a", etcd.url, username="node", password_file=good)
        permitted(a.acquire("update"))
        b = fleet.node("b", etcd.url, username="node", password_file=good)
        refused(b.acquire("update"))

        etcd.stop()  # tokens die with the process
        etcd.start()
        etcd.log_in()
        assert a.release() is True
        b.wait(2)  # its watch is refused for the dead token, or sees the release: no error
        permitted(b.acquire("update"))
        assert holders(etcd) == ["b"]

        nobody = fleet.node("c", etcd.url)
        with pytest.raises(PermitUnauthorizedError, match="user name is empty"):
            nobody.acquire("update")
        fleet.close()


def test_a_wrong_password_and_missing_rights_are_said(fleet: Nodes, tmp_path: Path) -> None:
    with running_etcd(tmp_path / "etcd") as etcd:
        etcd.enable_users({"node": "secret"}, prefix=ALL_GROUPS + "workers/")
        file = password(tmp_path, "wrong")
        a = fleet.node("a", etcd.url, username="node", password_file=file, group="workers")
        with pytest.raises(PermitUnauthorizedError, match="authentication failed"):
            a.acquire("update")

        file.write_text("secret\n")  # read at every login: a new password needs no restart
        permitted(a.acquire("update"))

        b = fleet.node("b", etcd.url, username="node", password_file=file, group="routers")
        with pytest.raises(PermitUnauthorizedError, match="permission denied"):
            b.acquire("update")
        assert etcd.get(DOCUMENT) is None
        fleet.close()


def test_tls_with_users_needs_a_certificate_without_a_common_name(
    fleet: Nodes, tmp_path: Path
) -> None:
    named = make_tls_files(tmp_path / "tls", client_name=None)
    with running_etcd(tmp_path / "etcd", tls=named) as etcd:
        etcd.enable_users({"node": "secret"}, prefix=ALL_GROUPS)
        a = fleet.node(
            "a",
            etcd.url,
            ca_file=named.ca,
            cert_file=named.client_cert,
            key_file=named.client_key,
            username="node",
            password_file=password(tmp_path, "secret"),
        )
        permitted(a.acquire("update"))
        # The server's own certificate, signed by the same authority, has a common name.
        b = fleet.node(
            "b",
            etcd.url,
            ca_file=named.ca,
            cert_file=named.server_cert,
            key_file=named.server_key,
            username="node",
            password_file=password(tmp_path, "secret"),
        )
        with pytest.raises(PermitUnauthorizedError, match="CommonName of client"):
            b.acquire("update")
        fleet.close()


def test_users_in_the_settings_of_an_etcd_without_users_do_no_harm(
    fleet: Nodes, tmp_path: Path
) -> None:
    with running_etcd(tmp_path / "etcd") as etcd:
        a = fleet.node("a", etcd.url, username="node", password_file=password(tmp_path, "x"))

        permitted(a.acquire("update"))
        fleet.close()


@pytest.mark.parametrize("token", ["another-cluster", "bascule-test"])
def test_an_etcd_whose_data_were_replaced_grants_nothing(
    fleet: Nodes, tmp_path: Path, token: str
) -> None:
    """With the same token the new cluster has the old id: only its revision tells."""
    with running_etcd(tmp_path / "etcd") as etcd:
        a, b = fleet.node("a", etcd.url), fleet.node("b", etcd.url)
        permitted(a.acquire("update"))
        refused(b.acquire("update"))

        etcd.stop()
        etcd.wipe()
        etcd.token = token
        etcd.start()

        for verb in (lambda: b.acquire("update"), a.release, b.status, lambda: b.set_max(9)):
            with pytest.raises(PermitClusterChangedError, match=r"[ab]\.json"):
                verb()
        assert etcd.names(ALL_GROUPS) == []

        (tmp_path / "b.json").unlink()
        permitted(b.acquire("update"))
        fleet.close()
