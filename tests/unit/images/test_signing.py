"""Keys and signatures: one algorithm, two sizes, any trusted key, nothing malleable."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from images.errors import (
    FileWriteError,
    KeyExistsError,
    KeyUnreadableError,
    KeyUnsuitableError,
    MetadataSignatureError,
    PayloadSignatureError,
    PayloadUnsignedError,
)
from images.proto import payload_pb2 as pb
from images.signing import (
    EC_SIGNATURE_MAX,
    SIGNATURES_MAX,
    KeyType,
    PrivateKey,
    Signature,
    TrustedKeys,
    check_format,
    encode_signatures,
    keygen,
    load_private_key,
    load_public_keys,
    parse_signatures,
    private_pem,
    public_pem,
    sign_digest,
    sign_message,
    verify_digest,
)
from tests.sim.payloads import key, trusted

DIGEST = hashlib.sha256(b"what is signed").digest()
ERROR = PayloadSignatureError


def parsed(blob: bytes, major: int = 2) -> tuple[Signature, ...]:
    return parse_signatures(blob, major=major, error=ERROR)


def test_a_key_pair_is_made_the_private_half_for_its_owner_only(tmp_path: Path) -> None:
    private, public = keygen(tmp_path / "release")

    assert (private.name, public.name) == ("release.key.pem", "release.pub.pem")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert load_public_keys(public).keys[0].key_size == 2048
    signature = Signature(sign_digest(DIGEST, load_private_key(private)))
    verify_digest(DIGEST, [signature], load_public_keys(public), error=ERROR)


def test_a_key_of_4096_bits_is_made_on_demand(tmp_path: Path) -> None:
    private, _ = keygen(tmp_path / "big", bits=4096)

    assert len(sign_digest(DIGEST, load_private_key(private))) == 512


def test_a_name_with_dots_keeps_them(tmp_path: Path) -> None:
    assert keygen(tmp_path / "v1.2")[0].name == "v1.2.key.pem"


@pytest.mark.parametrize("suffix", [".key.pem", ".pub.pem"])
def test_a_key_is_never_replaced(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"release{suffix}").write_text("precious")

    with pytest.raises(KeyExistsError, match="exists already"):
        keygen(tmp_path / "release")

    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]


def test_a_dangling_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "release.key.pem").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(KeyExistsError):
        keygen(tmp_path / "release")

    assert not (tmp_path / "elsewhere").exists()


def test_no_half_of_a_pair_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / "release.pub.pem").symlink_to(tmp_path / "nowhere")

    with pytest.raises(KeyExistsError):
        keygen(tmp_path / "release")

    assert not (tmp_path / "release.key.pem").exists()


def test_a_missing_folder_is_a_write_error(tmp_path: Path) -> None:
    with pytest.raises(FileWriteError, match="No such file or directory"):
        keygen(tmp_path / "missing" / "release")


@pytest.mark.parametrize("bits", [1024, 3072, 8192])
def test_no_other_size_is_made(tmp_path: Path, bits: int) -> None:
    with pytest.raises(KeyUnsuitableError, match=f"{bits} bits"):
        keygen(tmp_path / "release", bits=bits)


def written(folder: Path, private: PrivateKey) -> Path:
    path = folder / "k.pub.pem"
    path.write_bytes(
        private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return path


@pytest.mark.parametrize(
    ("private", "message"),
    [
        (rsa.generate_private_key(public_exponent=65537, key_size=1024), "1024 bits"),
        (rsa.generate_private_key(public_exponent=65537, key_size=3072), "3072 bits"),
        (rsa.generate_private_key(public_exponent=3, key_size=2048), "exponent 3"),
        (ec.generate_private_key(ec.SECP384R1()), "secp384r1, not on P-256"),
        (ec.generate_private_key(ec.SECP256K1()), "secp256k1, not on P-256"),
    ],
    ids=["1024", "3072", "exponent", "P-384", "the other curve of 256 bits"],
)
def test_a_public_key_of_another_kind_is_unsuitable(
    tmp_path: Path, private: PrivateKey, message: str
) -> None:
    with pytest.raises(KeyUnsuitableError, match=message):
        load_public_keys(written(tmp_path, private))


def test_a_private_key_of_another_kind_is_unsuitable(tmp_path: Path) -> None:
    path = tmp_path / "k"
    path.write_bytes(
        ed25519.Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    with pytest.raises(KeyUnsuitableError, match="neither an RSA nor an EC key"):
        load_private_key(path)


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"-----BEGIN PUBLIC KEY-----\n", b"\0" * 70000]
)
def test_a_file_that_is_no_key_is_unreadable(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "k"
    path.write_bytes(content)

    for load in (load_public_keys, load_private_key):
        with pytest.raises(KeyUnreadableError):
            load(path)


def test_a_private_key_is_not_taken_for_a_public_one(tmp_path: Path) -> None:
    path = tmp_path / "k"
    path.write_bytes(private_pem(key()))

    with pytest.raises(KeyUnreadableError, match="no PEM public key"):
        load_public_keys(path)


def test_an_encrypted_private_key_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "k"
    path.write_bytes(
        key().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(KeyUnreadableError, match="no usable private key"):
        load_private_key(path)


def test_a_missing_key_file_and_a_folder_are_unreadable(tmp_path: Path) -> None:
    with pytest.raises(KeyUnreadableError, match="No such file"):
        load_public_keys(tmp_path / "missing")
    with pytest.raises(KeyUnreadableError, match="directory"):
        load_private_key(tmp_path)


def test_the_message_of_one_rsa_2048_signature_is_the_reference_s() -> None:
    blob = encode_signatures([sign_digest(DIGEST, key())])

    assert len(blob) == 267
    assert blob[:6].hex() == "0a8802128002"
    assert blob[-5:].hex() == "1d00010000"


def test_signatures_are_parsed_back_in_order() -> None:
    datas = [sign_digest(DIGEST, key(number)) for number in range(3)]

    assert [entry.data for entry in parsed(encode_signatures(datas))] == datas


def message(data: bytes, unpadded_signature_size: int | None = None) -> bytes:
    result = pb.Signatures()
    result.signatures.add(data=data, unpadded_signature_size=unpadded_signature_size)
    return result.SerializeToString()


def test_padding_is_cut_to_the_true_length() -> None:
    data = sign_digest(DIGEST, key())
    blob = message(data=data + bytes(10), unpadded_signature_size=len(data))

    verify_digest(DIGEST, parsed(blob), trusted(key()), error=ERROR)


def test_a_length_beyond_the_data_is_refused() -> None:
    with pytest.raises(PayloadSignatureError, match="claims 257 bytes and has 256"):
        parsed(message(data=bytes(256), unpadded_signature_size=257))


def test_an_entry_without_a_length_is_taken_whole() -> None:
    data = sign_digest(DIGEST, key())

    assert parsed(message(data=data)) == (Signature(data),)


@pytest.mark.parametrize("length", [0, 1, 255, 257, 512])
def test_a_signature_of_another_length_does_not_verify(length: int) -> None:
    data = sign_digest(DIGEST, key()).ljust(length, b"\0")[:length]

    with pytest.raises(MetadataSignatureError, match="none of 1 signatures"):
        verify_digest(DIGEST, [Signature(data)], trusted(key()), error=MetadataSignatureError)


def test_any_signature_by_any_trusted_key_is_enough() -> None:
    signatures = [Signature(sign_digest(DIGEST, key(number))) for number in (1, 2)]

    verify_digest(DIGEST, signatures, trusted(key(0), key(2)), error=ERROR)


def test_duplicates_of_a_wrong_signature_stay_wrong() -> None:
    signatures = [Signature(sign_digest(DIGEST, key(1)))] * 10

    with pytest.raises(PayloadSignatureError, match=r"none of 10 signatures .* 1 trusted"):
        verify_digest(DIGEST, signatures, trusted(key(0)), error=ERROR)


def test_a_signature_over_something_else_does_not_verify() -> None:
    with pytest.raises(PayloadSignatureError):
        verify_digest(
            bytes(32), [Signature(sign_digest(DIGEST, key()))], trusted(key()), error=ERROR
        )


def test_no_signature_is_a_failure_and_so_is_no_key() -> None:
    with pytest.raises(PayloadUnsignedError):
        verify_digest(DIGEST, [], trusted(key()), error=ERROR)
    with pytest.raises(PayloadSignatureError, match="one of 0 trusted keys"):
        verify_digest(DIGEST, [Signature(sign_digest(DIGEST, key()))], TrustedKeys(()), error=ERROR)


@pytest.mark.parametrize("blob", [b"\x0a", b"garbage", b"\xff" * 20, b"\x0a\x05\x12\x80"])
def test_a_blob_that_is_no_message_is_refused(blob: bytes) -> None:
    with pytest.raises(PayloadSignatureError):
        parsed(blob)


def test_nothing_may_hide_in_the_message() -> None:
    sound = encode_signatures([sign_digest(DIGEST, key())])

    for extra in (b"\x10\x00", b"\xfa\x3e\x01a", b"\x0a\x00"[:0] + b"\x52\x00"):
        with pytest.raises(PayloadSignatureError, match="more than signatures"):
            parsed(sound + extra)


def test_more_signatures_than_are_worth_trying_are_refused() -> None:
    with pytest.raises(PayloadSignatureError, match=f"there are {SIGNATURES_MAX + 1} signatures"):
        parsed(encode_signatures([b"a"] * (SIGNATURES_MAX + 1)))


def test_a_written_public_key_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "k"
    path.write_bytes(public_pem(key().public_key()))

    assert load_public_keys(path).keys[0].public_numbers() == key().public_key().public_numbers()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_key_without_permission_is_unreadable(tmp_path: Path) -> None:
    private, _ = keygen(tmp_path / "release")
    private.chmod(0)

    with pytest.raises(KeyUnreadableError, match="Permission denied"):
        load_private_key(private)


EC_KEY = ec.generate_private_key(ec.SECP256R1())


def test_an_elliptic_pair_is_made_on_demand(tmp_path: Path) -> None:
    private, public = keygen(tmp_path / "release", kind=KeyType.EC)

    signature = Signature(sign_digest(DIGEST, load_private_key(private)))
    verify_digest(DIGEST, [signature], load_public_keys(public), error=ERROR)
    assert stat.S_IMODE(private.stat().st_mode) == 0o600


def test_the_message_of_one_elliptic_signature_is_as_long_as_the_reference_s() -> None:
    lengths = {len(sign_digest(hashlib.sha256(bytes([n])).digest(), EC_KEY)) for n in range(64)}
    messages = {len(sign_message(bytes([n]) * 32, [EC_KEY], major=2)) for n in range(64)}

    assert len(lengths) > 1  # or padding would go untested
    assert max(lengths) <= EC_SIGNATURE_MAX
    assert messages == {81}


def test_an_elliptic_signature_is_filled_up_with_zeros_and_names_its_true_length() -> None:
    blob = sign_message(DIGEST, [EC_KEY], major=2)
    entry = pb.Signatures.FromString(blob).signatures[0]

    assert len(entry.data) == EC_SIGNATURE_MAX
    assert parsed(blob) == (Signature(entry.data[: entry.unpadded_signature_size]),)
    assert set(entry.data[entry.unpadded_signature_size :]) <= {0}
    verify_digest(DIGEST, parsed(blob), trusted(EC_KEY), error=ERROR)


def test_nothing_may_hide_in_the_padding() -> None:
    data = sign_digest(DIGEST, key())

    with pytest.raises(PayloadSignatureError, match="filled up with something else"):
        parsed(message(data=data + b"\0\1", unpadded_signature_size=len(data)))


def test_an_elliptic_signature_is_the_same_each_time() -> None:
    assert sign_digest(DIGEST, EC_KEY) == sign_digest(DIGEST, EC_KEY)


def test_an_elliptic_signature_over_something_else_does_not_verify() -> None:
    signature = Signature(sign_digest(bytes(32), EC_KEY))

    with pytest.raises(PayloadSignatureError, match="none of 1 signatures"):
        verify_digest(DIGEST, [signature], trusted(EC_KEY), error=ERROR)


@pytest.mark.parametrize("data", [b"", b"\x30", bytes(72), bytes(256)])
def test_what_is_no_elliptic_signature_does_not_verify(data: bytes) -> None:
    with pytest.raises(PayloadSignatureError):
        verify_digest(DIGEST, [Signature(data)], trusted(EC_KEY), error=ERROR)


def test_keys_of_both_types_sign_one_message_and_each_is_enough() -> None:
    signatures = parsed(sign_message(DIGEST, [key(), EC_KEY, key(1, 4096)], major=2))

    for private in (key(), EC_KEY, key(1, 4096)):
        verify_digest(DIGEST, signatures, trusted(private), error=ERROR)


def test_the_last_signature_of_format_1_has_version_2() -> None:
    blob = sign_message(DIGEST, [key(0), key(1), key(2)], major=1)
    entries = pb.Signatures.FromString(blob).signatures

    assert [entry.version for entry in entries] == [0, 1, 2]
    assert not any(entry.HasField("unpadded_signature_size") for entry in entries)
    verify_digest(DIGEST, parsed(blob, major=1), trusted(key(2)), error=ERROR)


def test_one_rsa_signature_of_format_1_has_264_bytes_and_two_have_528() -> None:
    one, two = (sign_message(DIGEST, [key()] * count, major=1) for count in (1, 2))

    assert one[:8] == bytes.fromhex("0a85020802128002")
    assert (len(one), len(two)) == (264, 528)


def test_format_1_takes_no_elliptic_key() -> None:
    check_format([key(), EC_KEY], major=2)
    check_format([key()], major=1)
    with pytest.raises(KeyUnsuitableError, match="format 1 is signed with RSA keys"):
        check_format([key(), EC_KEY], major=1)


def test_an_elliptic_key_is_trusted_for_format_2_alone() -> None:
    keys = trusted(EC_KEY, key())

    assert keys.of_format(2) == keys
    assert keys.of_format(1).keys == (key().public_key(),)
