"""Signatures over payloads (payload.md 7), and the keys for them.

RSASSA-PKCS1-v1_5 with SHA-256 in both formats; in format 2 also ECDSA with SHA-256 on P-256.

The algorithm is named here, never by a file. What is hashed is `reader`'s and `build`'s matter.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from google.protobuf.message import DecodeError

from images.errors import (
    FileWriteError,
    KeyExistsError,
    KeyUnreadableError,
    KeyUnsuitableError,
    PayloadRefusedError,
    PayloadUnsignedError,
)
from images.proto import payload_pb2 as pb

KEY_BITS: Final = (2048, 4096)  # what AOSP's engine takes
KEY_EXPONENT: Final = 65537  # smaller ones have a history of forgeries
KEY_FILE_MAX_BYTES: Final = 64 * 1024  # a PEM key of 4096 bits has 3.2 KiB
EC_SIGNATURE_MAX: Final = 72  # bytes of the longest DER signature on P-256; most have 70 or 71
SIGNATURES_MAX: Final = 16  # entries that are tried; more is an attempt to waste time
PRIVATE_SUFFIX: Final = ".key.pem"
PUBLIC_SUFFIX: Final = ".pub.pem"
_PRIVATE_MODE: Final = 0o600
_PUBLIC_MODE: Final = 0o644


PrivateKey: TypeAlias = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
PublicKey: TypeAlias = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


class KeyType(enum.StrEnum):
    """What kind of key signs: RSA for every reader, EC (P-256) for readers of format 2."""

    RSA = "rsa"
    EC = "ec"


@dataclass(frozen=True, slots=True)
class TrustedKeys:
    """The keys of which one must have signed; with none in it nothing verifies."""

    keys: tuple[PublicKey, ...]

    def of_format(self, major: int) -> TrustedKeys:
        """Return the keys that may sign a payload of format `major`: RSA alone in format 1."""
        if major == 2:
            return self
        return TrustedKeys(tuple(key for key in self.keys if isinstance(key, rsa.RSAPublicKey)))


@dataclass(frozen=True, slots=True)
class Signature:
    """One entry of a signatures message: the bytes of the signature, without padding."""

    data: bytes


def load_public_keys(*paths: Path) -> TrustedKeys:
    """Return the public keys in PEM files.

    Raises:
        KeyUnreadableError: a file cannot be read or is no PEM public key.
        KeyUnsuitableError: a key is neither RSA of 2048 or 4096 bits with exponent 65537 nor
            on the curve P-256.
    """
    return TrustedKeys(tuple(_load_public(path) for path in paths))


def load_private_key(path: Path) -> PrivateKey:
    """Return the private key in an unencrypted PEM file.

    Raises:
        KeyUnreadableError: the file cannot be read, is encrypted or no PEM private key.
        KeyUnsuitableError: the key is neither RSA of 2048 or 4096 bits with exponent 65537 nor
            on the curve P-256.
    """
    data = _read_key(path)
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyUnreadableError(f"{path} holds no usable private key: {error}") from error
    if not isinstance(key, PrivateKey):
        raise KeyUnsuitableError(f"the key in {path} is neither an RSA nor an EC key")
    _check_public(key.public_key(), path)
    return key


def keygen(prefix: Path, *, kind: KeyType = KeyType.RSA, bits: int = 2048) -> tuple[Path, Path]:
    """Make a key pair and return the paths of its private and its public file.

    The private file is `PREFIX.key.pem`, readable by its owner only; the public one is
    `PREFIX.pub.pem`. Both are new or neither is. `bits` are those of an RSA key.

    Raises:
        KeyExistsError: one of the files exists.
        KeyUnsuitableError: `bits` is neither 2048 nor 4096.
        FileWriteError: a file cannot be written.
    """
    if kind is KeyType.RSA and bits not in KEY_BITS:
        raise KeyUnsuitableError(f"a key of {bits} bits was asked for")
    private_path = prefix.with_name(prefix.name + PRIVATE_SUFFIX)
    public_path = prefix.with_name(prefix.name + PUBLIC_SUFFIX)
    for path in (private_path, public_path):
        if path.exists():
            raise KeyExistsError(f"{path} exists already")
    key = _new_key(kind, bits)
    _write_new(private_path, private_pem(key), mode=_PRIVATE_MODE)
    try:
        _write_new(public_path, public_pem(key.public_key()), mode=_PUBLIC_MODE)
    except (FileWriteError, KeyExistsError):
        private_path.unlink()
        raise
    return private_path, public_path


def private_pem(key: PrivateKey) -> bytes:
    """Return the private key as unencrypted PKCS#8 PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def public_pem(key: PublicKey) -> bytes:
    """Return the public key as PEM."""
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def sign_digest(digest: bytes, key: PrivateKey) -> bytes:
    """Return the signature over a SHA-256 digest; the same for the same digest and key.

    RSA: as many bytes as the key. EC: DER, its number chosen by RFC 6979, so that no build depends
    on the quality of a random number and the same payload is the same file.
    """
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(digest, padding.PKCS1v15(), Prehashed(hashes.SHA256()))
    return key.sign(digest, ec.ECDSA(Prehashed(hashes.SHA256()), deterministic_signing=True))


def sign_message(digest: bytes, keys: Sequence[PrivateKey], *, major: int) -> bytes:
    """Return the signatures message of format `major` over a digest, one entry a key."""
    return encode_signatures(
        [sign_digest(digest, key) for key in keys],
        sizes=[_signature_size(key) for key in keys],
        major=major,
    )


def message_size(keys: Sequence[PrivateKey], *, major: int) -> int:
    """Return the bytes that `sign_message` will have, whatever the digest."""
    return len(sign_message(bytes(32), keys, major=major))


def check_format(keys: Sequence[PrivateKey], *, major: int) -> None:
    """Check that readers of format `major` take these keys.

    Raises:
        KeyUnsuitableError: an EC key for format 1: Flatcar's engine takes RSA alone.
    """
    if major == 1 and not all(isinstance(key, rsa.RSAPrivateKey) for key in keys):
        raise KeyUnsuitableError("a payload of format 1 is signed with RSA keys, not with EC")


def encode_signatures(
    signatures: Sequence[bytes], *, sizes: Sequence[int] | None = None, major: int = 2
) -> bytes:
    """Return the signatures message of format `major`.

    Format 2 fills each signature up to its size in `sizes` with zeros, so that the length of the
    message is known before anything is signed. In format 1 the versions count up to 2.
    """
    message = pb.Signatures()
    for place, data in enumerate(signatures):
        if major == 1:
            message.signatures.add(version=place + 3 - len(signatures), data=data)
        else:
            padded = data if sizes is None else data.ljust(sizes[place], b"\0")
            message.signatures.add(data=padded, unpadded_signature_size=len(data))
    return message.SerializeToString(deterministic=True)


def parse_signatures(
    blob: bytes, *, major: int, error: type[PayloadRefusedError]
) -> tuple[Signature, ...]:
    """Return the entries of a signatures message of format `major`.

    Nothing signs this message, so it is taken only in the one way it is written: no byte of it
    can change unnoticed. In format 1 the entries' versions count up to 2 (payload.md 7).

    Raises:
        PayloadRefusedError: of class `error`: no such message, too many entries, versions out
            of order, or an entry that claims more bytes than it has.
    """
    try:
        message = pb.Signatures.FromString(blob)
    except (DecodeError, ValueError) as cause:
        raise error(f"the signatures cannot be parsed: {cause}") from cause
    entries = message.signatures
    if len(entries) > SIGNATURES_MAX:
        raise error(f"there are {len(entries)} signatures, at most {SIGNATURES_MAX} are tried")
    message.DiscardUnknownFields()
    if message.SerializeToString(deterministic=True) != blob:
        raise error("the signatures hold more than signatures")
    if major == 1:
        versions = [entry.version for entry in entries]
        if versions != [*range(3 - len(entries), 3)]:
            raise error(f"the signatures have versions {versions}, which do not count up to 2")
    return tuple(_entry(entry, error) for entry in entries)


def verify_digest(
    digest: bytes,
    signatures: Sequence[Signature],
    keys: TrustedKeys,
    *,
    error: type[PayloadRefusedError],
) -> None:
    """Return when one of the trusted keys made one of the signatures over the digest.

    Raises:
        PayloadUnsignedError: there is no signature.
        PayloadRefusedError: of class `error`: none verifies.
    """
    if not signatures:
        raise PayloadUnsignedError("the payload carries no signature")
    for signature in signatures:
        if any(_verifies(digest, signature, key) for key in keys.keys):
            return
    raise error(
        f"none of {len(signatures)} signatures was made by one of {len(keys.keys)} trusted keys"
    )


def _verifies(digest: bytes, signature: Signature, key: PublicKey) -> bool:
    algorithm = Prehashed(hashes.SHA256())
    try:
        if isinstance(key, rsa.RSAPublicKey):
            if len(signature.data) * 8 != key.key_size:
                return False
            key.verify(signature.data, digest, padding.PKCS1v15(), algorithm)
        else:
            key.verify(signature.data, digest, ec.ECDSA(algorithm))
    except InvalidSignature:
        return False
    return True


def _new_key(kind: KeyType, bits: int) -> PrivateKey:
    if kind is KeyType.EC:
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(public_exponent=KEY_EXPONENT, key_size=bits)


def _signature_size(key: PrivateKey) -> int:
    return key.key_size // 8 if isinstance(key, rsa.RSAPrivateKey) else EC_SIGNATURE_MAX


def _entry(entry: pb.Signatures.Signature, error: type[PayloadRefusedError]) -> Signature:
    """Cut off the padding that format 2 allows."""
    if not entry.HasField("unpadded_signature_size"):
        return Signature(entry.data)
    size = entry.unpadded_signature_size
    if size > len(entry.data):
        raise error(f"a signature claims {size} bytes and has {len(entry.data)}")
    if any(entry.data[size:]):
        raise error(f"a signature of {size} bytes is filled up with something else than zeros")
    return Signature(entry.data[:size])


def _load_public(path: Path) -> PublicKey:
    data = _read_key(path)
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyUnreadableError(f"{path} holds no PEM public key") from error
    if not isinstance(key, PublicKey):
        raise KeyUnsuitableError(f"the key in {path} is neither an RSA nor an EC key")
    _check_public(key, path)
    return key


def _check_public(key: PublicKey, path: Path) -> None:
    if isinstance(key, ec.EllipticCurvePublicKey):
        if not isinstance(key.curve, ec.SECP256R1):
            raise KeyUnsuitableError(f"the EC key in {path} is on {key.curve.name}, not on P-256")
        return
    exponent = key.public_numbers().e
    if key.key_size not in KEY_BITS or exponent != KEY_EXPONENT:
        raise KeyUnsuitableError(
            f"the RSA key in {path} has {key.key_size} bits and exponent {exponent}"
        )


def _read_key(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(KEY_FILE_MAX_BYTES + 1)
    except OSError as error:
        raise KeyUnreadableError(f"key file {path} cannot be read: {error.strerror}") from error
    if len(data) > KEY_FILE_MAX_BYTES:
        raise KeyUnreadableError(f"key file {path} is larger than {KEY_FILE_MAX_BYTES} bytes")
    return data


def _write_new(path: Path, data: bytes, *, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    except FileExistsError as error:
        raise KeyExistsError(f"{path} exists already") from error
    except OSError as error:
        raise FileWriteError(f"{path} cannot be written: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise FileWriteError(f"{path} cannot be written: {error.strerror}") from error
