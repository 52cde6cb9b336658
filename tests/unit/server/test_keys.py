"""Signing keys as files."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from securesystemslib.signer import Key

from server.errors import KeyDuplicateError, KeyFileError, KeyOverwriteError, KeysMissingError
from server.keys import KeyFolder, check_distinct


@pytest.fixture
def folder(tmp_path: Path) -> KeyFolder:
    return KeyFolder(path=tmp_path / "keys")


def test_keys_are_for_their_owner_alone(folder: KeyFolder) -> None:
    folder.generate("root", 2)
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in folder.path.iterdir()} == {0o600}
    assert sorted(file.name for file in folder.path.iterdir()) == ["root-1.pem", "root-2.pem"]


def test_a_signer_is_found_for_each_key_that_counts(folder: KeyFolder) -> None:
    keys = folder.generate("stable", 3)
    signers = folder.signers("stable", keys[:2], threshold=2)
    assert {signer.public_key.keyid for signer in signers} == {key.keyid for key in keys[:2]}


def test_too_few_keys_are_named_with_their_numbers(folder: KeyFolder) -> None:
    keys = folder.generate("stable", 3)
    for number in (1, 3):
        (folder.path / f"stable-{number}.pem").unlink()
    with pytest.raises(KeysMissingError, match=r"needs 2 signatures, .* has 1 of its 3 keys"):
        folder.signers("stable", keys, threshold=2)


def test_keys_of_another_repository_do_not_count(folder: KeyFolder, tmp_path: Path) -> None:
    folder.generate("stable", 3)
    strangers = KeyFolder(path=tmp_path / "other").generate("stable", 3)
    with pytest.raises(KeysMissingError, match="has 0 of its 3 keys"):
        folder.signers("stable", strangers, threshold=2)


def test_a_missing_folder_has_no_keys(tmp_path: Path) -> None:
    with pytest.raises(KeysMissingError):
        KeyFolder(path=tmp_path / "nowhere").signers("root", [], threshold=1)


def test_a_key_is_never_overwritten(folder: KeyFolder) -> None:
    folder.generate("stable", 1)
    with pytest.raises(KeyOverwriteError, match=r"stable-1\.pem"):
        folder.generate("stable", 1)


def test_the_keys_of_a_longer_name_are_another_roles(folder: KeyFolder) -> None:
    folder.generate("stable-eu", 1)
    keys = folder.generate("stable", 1)
    assert len(folder.signers("stable", keys, threshold=1)) == 1


def test_an_encrypted_key_opens_with_its_passphrase_only(tmp_path: Path) -> None:
    closed = KeyFolder(path=tmp_path / "keys", passphrase=b"correct horse")
    keys = closed.generate("root", 1)
    assert b"ENCRYPTED" in (closed.path / "root-1.pem").read_bytes()
    assert closed.signers("root", keys, threshold=1)
    for passphrase in (b"wrong", None):
        with pytest.raises(KeyFileError, match=r"root-1\.pem"):
            KeyFolder(path=closed.path, passphrase=passphrase).signers("root", keys, threshold=1)


def test_a_key_in_the_clear_needs_no_passphrase_though_one_is_given(folder: KeyFolder) -> None:
    keys = folder.generate("snapshot", 1)
    with_words = KeyFolder(path=folder.path, passphrase=b"for the others")
    assert with_words.signers("snapshot", keys, threshold=1)


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n"])
def test_a_file_that_is_no_key_is_named(folder: KeyFolder, content: bytes) -> None:
    keys = folder.generate("root", 1)
    (folder.path / "root-1.pem").write_bytes(content)
    with pytest.raises(KeyFileError, match=r"root-1\.pem"):
        folder.signers("root", keys, threshold=1)


def test_a_key_of_another_kind_is_refused(folder: KeyFolder) -> None:
    keys = folder.generate("root", 1)
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (folder.path / "root-1.pem").write_bytes(pem)
    with pytest.raises(KeyFileError, match="no Ed25519 key"):
        folder.signers("root", keys, threshold=1)


def test_a_key_open_to_others_is_used_with_a_warning(
    folder: KeyFolder, caplog: pytest.LogCaptureFixture
) -> None:
    keys = folder.generate("root", 1)
    (folder.path / "root-1.pem").chmod(0o644)
    with caplog.at_level(logging.WARNING):
        assert folder.signers("root", keys, threshold=1)
    assert "open to others" in caplog.text


def test_one_key_under_two_identities_is_refused(folder: KeyFolder) -> None:
    (key,) = folder.generate("root", 1)
    twin = Key.from_dict("0" * 64, key.to_dict())
    with pytest.raises(KeyDuplicateError, match="only 1 differ"):
        check_distinct([key, twin])


def test_an_identity_that_is_not_the_computed_one_is_refused(folder: KeyFolder) -> None:
    (key,) = folder.generate("root", 1)
    with pytest.raises(KeyDuplicateError, match="should have the identity"):
        check_distinct([Key.from_dict("0" * 64, key.to_dict())])
