"""The signed files in the database: what is missing or unsound among them."""

from __future__ import annotations

import copy

import pytest

from server.catalogue import payloads_of
from server.desk import Desk
from server.errors import RepositoryDamagedError
from server.queries import channels, releases
from server.reflection import reflect
from server.schema import CHANNEL_DOCUMENTS, FACTS, PAYLOADS, RELEASES
from tests.sim.desk import BOARD, PRODUCT, promote, publish


def forget(desk: Desk) -> None:
    with desk.store.writing() as connection:
        for table in (FACTS, PAYLOADS, RELEASES, CHANNEL_DOCUMENTS):
            connection.execute(table.delete())


def test_reflecting_again_changes_nothing(desk: Desk) -> None:
    publish(desk, "1.0.0")
    with desk.store.reading() as connection:
        before = releases(connection)
    reflect(desk)
    with desk.store.reading() as connection:
        assert releases(connection) == before


def test_all_of_it_comes_back_from_the_signed_files(desk: Desk) -> None:
    publish(desk, "1.0.0")
    promote(desk, "1.0.0")
    with desk.store.reading() as connection:
        before = (releases(connection), channels(connection))
    forget(desk)
    reflect(desk)
    with desk.store.reading() as connection:
        assert (releases(connection), channels(connection)) == before


def test_a_payload_that_lies_elsewhere_is_known_by_what_was_signed(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    added = publish(desk, "1.0.0")
    desk.payload_file(added.sha256).unlink()
    forget(desk)
    reflect(desk)
    with desk.store.reading() as connection:
        (payload,) = payloads_of(connection, PRODUCT, BOARD, "1.0.0")
    assert (payload.sha256, payload.size, payload.sha1, payload.format) == (
        added.sha256, added.size, "", 2,
    )  # fmt: skip
    assert "payload is signed but not here" in caplog.text


def test_a_target_without_sound_facts_is_damage(desk: Desk) -> None:
    publish(desk, "1.0.0")
    contents = desk.repository.read()
    role = copy.deepcopy(contents.delegated["releases"].signed)
    (target,) = role.targets.values()
    target.unrecognized_fields["custom"] = {"schema": "bascule.payload/2"}
    desk.repository.publish(contents, {"releases": role}, keys=desk.offline(), online=desk.online)
    with pytest.raises(RepositoryDamagedError, match="role releases"):
        reflect(desk)


def test_a_channel_document_with_other_bytes_is_damage(desk: Desk) -> None:
    publish(desk, "1.0.0")
    promote(desk, "1.0.0")
    (file,) = (desk.repository.targets_folder / f"channels/stable/{PRODUCT}").iterdir()
    file.write_bytes(file.read_bytes().replace(b"1.0.0", b"1.0.1"))
    forget(desk)
    with pytest.raises(RepositoryDamagedError, match=r"\.json"):
        reflect(desk)
    file.unlink()
    with pytest.raises(RepositoryDamagedError, match="cannot be read"):
        reflect(desk)
