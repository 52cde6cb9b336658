"""What we write in format 1: the very bytes of Flatcar's generator, read by another parser."""

from __future__ import annotations

import bz2
import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from images import format_1
from images.apply import apply_file
from images.errors import (
    ImagesError,
    ImageSizeError,
    KeyUnsuitableError,
    OperationUnsupportedError,
    PartUnknownError,
    PayloadLimitsError,
)
from images.format_1 import build_format_1
from images.reader import verify_file
from images.signing import PrivateKey
from tests.sim import protobuf_reader as wire
from tests.sim.payloads import image, key, trusted
from tests.sim.samples import FULL, Sample

MIB = 1024 * 1024
BLOCK = 4096
HOLE = 2**64 - 1
MESSAGE_SIZE = 264  # bytes of a message of one RSA-2048 signature
FORMAT_1 = [sample for sample in FULL if sample.major == 1]
USR = image(300, seed=3)  # a chunk and 44 blocks
KERNEL = image(257, seed=4)[:-7] + b"x"  # of odd size, two chunks
POLICY = b"a small archive"


def built(folder: Path, *keys: PrivateKey, compression: str | None = None, **parts: bytes) -> bytes:
    """Build a payload of these parts, in this order; `_` in a name stands for a hyphen."""
    for name, data in parts.items():
        (folder / name).write_bytes(data)
    build_format_1(
        [(name.replace("_", "-"), folder / name) for name in parts],
        folder / "payload",
        compression=compression,
        keys=keys,
    )
    return (folder / "payload").read_bytes()


def manifest_of(payload: bytes) -> bytes:
    assert payload[:4] == b"CrAU"
    assert int.from_bytes(payload[4:12], "big") == 1
    return payload[20 : 20 + int.from_bytes(payload[12:20], "big")]


def operation(message: bytes) -> dict[int, int | bytes]:
    """Return the fields of an operation, which are all there at most once and in order."""
    found = list(wire.fields(message))
    assert [number for number, _ in found] == sorted({number for number, _ in found})
    return dict(found)


def extent(message: dict[int, int | bytes]) -> tuple[int, int]:
    assert isinstance(message[6], bytes)
    return wire.one_number(message[6], 1), wire.one_number(message[6], 2)


@pytest.mark.parametrize("sample", FORMAT_1, ids=lambda sample: sample.file)
def test_it_is_the_file_of_flatcar_s_generator_up_to_the_signature(
    samples: Path, sample: Sample, tmp_path: Path
) -> None:
    theirs = (samples / sample.file).read_bytes()
    outputs = {name: tmp_path / name for name in sample.images}
    apply_file(samples / sample.file, outputs)

    build_format_1(list(outputs.items()), tmp_path / "payload", keys=[key()])

    ours = (tmp_path / "payload").read_bytes()
    assert len(ours) == len(theirs)
    assert ours[:-256] == theirs[:-256]


def test_the_worked_numbers_are_those_of_the_reference(new_ext2: Path, tmp_path: Path) -> None:
    sizes = []
    for keys in ([], [key()], [key(), key(1)]):
        build_format_1([("usr", new_ext2)], tmp_path / "payload", keys=keys)
        payload = (tmp_path / "payload").read_bytes()
        sizes.append((len(payload), len(manifest_of(payload))))

    assert sizes == [(4_631_670, 900), (4_631_969, 935), (4_632_233, 935)]


def test_the_manifest_has_the_fields_of_format_1_alone(tmp_path: Path) -> None:
    manifest = manifest_of(built(tmp_path, key(), usr=USR, kernel=KERNEL, pcr_policy=POLICY))

    assert sorted(set(wire.numbers(manifest))) == [1, 2, 3, 4, 5, 9, 10]
    assert wire.one(manifest, 3) == BLOCK
    info = wire.one_bytes(manifest, 9)
    assert wire.one(info, 1) == len(USR)
    assert wire.one(info, 2) == hashlib.sha256(USR).digest()


def test_an_unsigned_payload_names_no_signatures(tmp_path: Path) -> None:
    assert sorted(set(wire.numbers(manifest_of(built(tmp_path, usr=USR))))) == [1, 3, 9]


def test_every_operation_claims_256_blocks_also_for_a_short_chunk(tmp_path: Path) -> None:
    payload = built(tmp_path, usr=USR)
    found = [operation(message) for message in wire.messages(manifest_of(payload), 1)]

    assert [extent(message) for message in found] == [(0, 256), (256, 256)]
    assert [message[1] for message in found] == [0, 0]  # REPLACE: it does not shrink
    assert [(message[2], message[3]) for message in found] == [(0, MIB), (MIB, 44 * BLOCK)]
    assert [message[8] for message in found] == [
        hashlib.sha256(USR[:MIB]).digest(),
        hashlib.sha256(USR[MIB:]).digest(),
    ]
    assert {number for message in found for number in message} == {1, 2, 3, 6, 8}


def test_a_chunk_that_shrinks_is_packed_with_bzip2(tmp_path: Path) -> None:
    payload = built(tmp_path, usr=bytes(MIB))
    manifest = manifest_of(payload)
    found = operation(wire.messages(manifest, 1)[0])

    assert (found[1], found[3]) == (1, 45)  # the reference's figure for a chunk of zeros
    assert bz2.decompress(payload[20 + len(manifest) :]) == bytes(MIB)


def test_nothing_is_packed_on_demand(tmp_path: Path) -> None:
    payload = built(tmp_path, usr=bytes(MIB), compression="none")

    assert operation(wire.messages(manifest_of(payload), 1)[0])[1] == 0


@pytest.mark.parametrize(
    "names", [("usr", "kernel", "pcr_policy"), ("pcr_policy", "kernel", "usr")]
)
def test_blobs_stand_in_the_order_of_the_format_however_they_are_named(
    names: Sequence[str], tmp_path: Path
) -> None:
    data = {"usr": USR, "kernel": KERNEL, "pcr_policy": POLICY}
    payload = built(tmp_path, compression="none", **{name: data[name] for name in names})
    manifest = manifest_of(payload)

    assert payload[20 + len(manifest) :] == USR + KERNEL + POLICY


def test_procedures_have_their_type_operations_and_info(tmp_path: Path) -> None:
    manifest = manifest_of(built(tmp_path, usr=USR, kernel=KERNEL, pcr_policy=POLICY))
    kernel, policy = wire.messages(manifest, 10)

    assert wire.numbers(kernel) == [1, 2, 2, 4]
    assert (wire.one(kernel, 1), wire.one(policy, 1)) == (0, 1)
    for procedure, data in ((kernel, KERNEL), (policy, POLICY)):
        info = wire.one_bytes(procedure, 4)
        assert wire.one(info, 1) == len(data)
        assert wire.one(info, 2) == hashlib.sha256(data).digest()
    found = [operation(message) for message in wire.messages(kernel, 2)]
    assert [extent(message) for message in found] == [(0, 256), (256, 256)]
    assert [message[2] for message in found] == [len(USR), len(USR) + MIB]


def test_no_ops_cover_the_procedures_and_the_signatures(tmp_path: Path) -> None:
    manifest = manifest_of(built(tmp_path, key(), usr=USR, kernel=KERNEL, pcr_policy=POLICY))
    found = [operation(message) for message in wire.messages(manifest, 2)]
    end = len(USR) + len(KERNEL) + len(POLICY)
    procedures = [
        operation(message)
        for procedure in wire.messages(manifest, 10)
        for message in wire.messages(procedure, 2)
    ]

    assert [{n: v for n, v in message.items() if n != 6} for message in found[:-1]] == [
        {n: v for n, v in message.items() if n != 6} for message in procedures
    ]
    assert {n: v for n, v in found[-1].items() if n != 6} == {1: 0, 2: end, 3: MESSAGE_SIZE}
    assert [extent(message) for message in found] == [
        (HOLE, 256),
        (HOLE, -(-(len(KERNEL) - MIB) // BLOCK)),
        (HOLE, 1),
        (HOLE, 1),
    ]


def test_the_signatures_message_is_where_the_manifest_says(tmp_path: Path) -> None:
    payload = built(tmp_path, key(0), key(1), usr=USR, kernel=KERNEL)
    manifest = manifest_of(payload)
    offset, size = wire.one_number(manifest, 4), wire.one_number(manifest, 5)
    message = payload[20 + len(manifest) + offset :]

    assert offset == len(USR) + len(KERNEL)
    assert size == len(message) == 2 * MESSAGE_SIZE
    assert [wire.one(entry, 1) for entry in wire.messages(message, 1)] == [1, 2]


def test_each_signature_is_over_all_before_the_message(tmp_path: Path) -> None:
    payload = built(tmp_path, key(0), key(1), usr=USR)

    for number in (0, 1):
        verify_file(tmp_path / "payload", trusted(key(number)))
    (tmp_path / "payload").write_bytes(payload[:-1] + bytes([payload[-1] ^ 1]))
    with pytest.raises(ImagesError):
        verify_file(tmp_path / "payload", trusted(key(1)))


def test_what_is_built_applies_to_the_very_images(tmp_path: Path) -> None:
    built(tmp_path, key(), usr=USR, kernel=KERNEL, pcr_policy=POLICY)
    outputs = {name: tmp_path / f"{name}.out" for name in ("usr", "kernel", "pcr-policy")}

    apply_file(tmp_path / "payload", outputs, keys=trusted(key()))

    assert [path.read_bytes() for path in outputs.values()] == [USR, KERNEL, POLICY]


def test_the_number_of_threads_changes_no_byte(tmp_path: Path) -> None:
    (tmp_path / "usr").write_bytes(USR + bytes(4 * MIB))
    for workers in (1, 4):
        output = tmp_path / f"with-{workers}"
        build_format_1([("usr", tmp_path / "usr")], output, keys=[key()], workers=workers)

    assert (tmp_path / "with-1").read_bytes() == (tmp_path / "with-4").read_bytes()


@pytest.mark.parametrize(
    ("parts", "error", "why"),
    [
        ({"kernel": b"x"}, PartUnknownError, "has a part usr"),
        ({"usr": USR, "root": USR}, PartUnknownError, "no part root, only usr, kernel, pcr-policy"),
        ({}, PartUnknownError, "1 to 64 parts"),
        ({"usr": b"x" * 4097}, ImageSizeError, "4097 bytes: not whole blocks of 4096"),
        ({"usr": b""}, ImageSizeError, "0 bytes"),
        ({"usr": USR, "kernel": b""}, ImageSizeError, "0 bytes"),
    ],
    ids=["no usr", "another part", "nothing", "an odd image", "no bytes", "a kernel of no bytes"],
)
def test_parts_that_format_1_has_not_are_refused(
    parts: dict[str, bytes], error: type[ImagesError], why: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=why):
        built(tmp_path, compression=None, **parts)
    assert not (tmp_path / "payload").exists()


@pytest.mark.parametrize("compression", ["xz", "zstd"])
def test_packings_that_its_readers_refuse_are_refused(compression: str, tmp_path: Path) -> None:
    with pytest.raises(OperationUnsupportedError, match=f"format 1 refuse {compression}"):
        built(tmp_path, usr=USR, compression=compression)


def test_an_elliptic_key_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(KeyUnsuitableError, match="format 1 is signed with RSA keys"):
        built(tmp_path, key(), ec.generate_private_key(ec.SECP256R1()), usr=USR)
    assert [path.name for path in tmp_path.iterdir()] == ["usr"]


@pytest.mark.parametrize(("spare", "fits"), [(0, True), (-1, False)])
def test_offsets_of_32_bits_bound_blobs_and_signatures_together(
    spare: int, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert format_1.DATA_MAX == 2**32 - 1  # the real bound takes 4 GiB that do not compress
    monkeypatch.setattr(format_1, "DATA_MAX", len(USR) + MESSAGE_SIZE + spare)

    if fits:
        built(tmp_path, key(), usr=USR)
        return
    with pytest.raises(PayloadLimitsError, match="bytes of data"):
        built(tmp_path, key(), usr=USR)
    assert [path.name for path in tmp_path.iterdir()] == ["usr"]
