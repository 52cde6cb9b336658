"""Signing keys as files: Ed25519, PEM, one file a key, named after its role.

    FOLDER/root-1.pem  FOLDER/stable-2.pem  …

A key file is 0600 in a folder of 0700 and may be encrypted. Public halves are not kept here:
they stand in the signed metadata, which also says which of the keys found counts.
"""

from __future__ import annotations

import logging
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from securesystemslib.signer import CryptoSigner, SSlibKey

from server.durable import PRIVATE_FOLDER_MODE, PRIVATE_MODE, make_folder, replace_durably
from server.errors import KeyDuplicateError, KeyFileError, KeyOverwriteError, KeysMissingError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from securesystemslib.signer import Key

log = logging.getLogger(__name__)

KEY_FILE_MAX_BYTES: Final = 16 * 1024  # an encrypted Ed25519 key has under 1 KiB


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFolder:
    """A folder with private keys.

    Attributes:
        path: where it is; it may be on removable media.
        passphrase: opens encrypted keys and closes new ones; None for keys in the clear.
    """

    path: Path
    passphrase: bytes | None = None

    def generate(self, role: str, count: int) -> list[Key]:
        """Make `count` new keys of `role`, durably, and return their public halves.

        Raises:
            KeyOverwriteError: a key of this role is there already.
            DeskUnwritableError: the folder cannot be written.
        """
        make_folder(self.path, mode=PRIVATE_FOLDER_MODE)
        if found := self._files(role):
            raise KeyOverwriteError(f"a key of role {role} exists as {found[0]}")
        signers = [CryptoSigner.generate_ed25519() for _ in range(count)]
        for number, signer in enumerate(signers, start=1):
            pem = _to_pem(signer, self.passphrase)
            replace_durably(self.path / f"{role}-{number}.pem", pem, mode=PRIVATE_MODE)
        return [signer.public_key for signer in signers]

    def signers(self, role: str, keys: Iterable[Key], threshold: int) -> Sequence[CryptoSigner]:
        """Return signers of `role` for those of `keys` whose private halves are here.

        Args:
            role: whose key files are looked at.
            keys: the public halves that count, from signed metadata.
            threshold: how many are needed.

        Raises:
            KeysMissingError: fewer than `threshold` are here.
            KeyFileError: a key file of this role cannot be read.
        """
        wanted = {key.keyid: key for key in keys}
        found: dict[str, CryptoSigner] = {}
        for file in self._files(role):
            signer = _load(file, self.passphrase)
            if signer.public_key.keyid in wanted:
                found[signer.public_key.keyid] = signer
        if len(found) < threshold:
            raise KeysMissingError(
                f"role {role} needs {threshold} signatures, {self.path} has"
                f" {len(found)} of its {len(wanted)} keys"
            )
        return list(found.values())

    def _files(self, role: str) -> list[Path]:
        """Key files of exactly this role: `stable-1.pem` is not one of a role `stable-eu`."""
        name = re.compile(rf"{re.escape(role)}-[0-9]+\.pem", re.ASCII)
        return sorted(file for file in self.path.glob("*.pem") if name.fullmatch(file.name))


def check_distinct(keys: Sequence[Key]) -> Sequence[Key]:
    """Return `keys` if each is another one, under its own computed identity.

    The same public key under two identities would count twice towards a threshold; no client
    notices, so the signer must.

    Raises:
        KeyDuplicateError: two are the same, or an identity is not the computed one.
    """
    publics = {key.keyval["public"] for key in keys}
    if len(publics) != len(keys):
        raise KeyDuplicateError(f"{len(keys)} keys are given, only {len(publics)} differ")
    for key in keys:
        computed = SSlibKey.from_crypto(_public_of(key)).keyid
        if computed != key.keyid:
            raise KeyDuplicateError(f"key {key.keyid} should have the identity {computed}")
    return keys


def _public_of(key: Key) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.keyval["public"]))


def _to_pem(signer: CryptoSigner, passphrase: bytes | None) -> bytes:
    if passphrase is None:
        return signer.private_bytes
    private = serialization.load_pem_private_key(signer.private_bytes, password=None)
    return private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase),
    )


def _load(file: Path, passphrase: bytes | None) -> CryptoSigner:
    try:
        if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            log.warning("signing key is open to others file=%s", file)
        with file.open("rb") as stream:
            pem = stream.read(KEY_FILE_MAX_BYTES)
        private = _decrypt(pem, passphrase)
    except OSError as error:
        raise KeyFileError(f"signing key {file} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"signing key {file} cannot be loaded: {error}") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise KeyFileError(f"signing key {file} is no Ed25519 key")
    return CryptoSigner(private)


def _decrypt(pem: bytes, passphrase: bytes | None) -> object:
    """A folder may mix keys in the clear (online) and encrypted ones."""
    encrypted = b"ENCRYPTED" in pem
    return serialization.load_pem_private_key(pem, password=passphrase if encrypted else None)
