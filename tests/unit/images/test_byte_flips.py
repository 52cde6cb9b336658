"""One damaged byte anywhere in a payload, and it is refused, with the code of that place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from images.apply import apply_file
from images.build import build
from images.errors import ImagesError, PayloadSignatureError
from images.reader import Accept, PayloadFile, verify_file
from images.signing import TrustedKeys, load_public_keys, parse_signatures
from tests.sim.payloads import image, key, trusted
from tests.sim.samples import FULL, KEY, Sample

BLOB_OFFSETS = 30  # how many places in the blobs are damaged


@pytest.fixture(scope="module")
def payload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A payload of ours with a raw, a packed and a ZERO operation."""
    folder = tmp_path_factory.mktemp("payload")
    (folder / "image").write_bytes(image(256) + b"abcd" * 262_144 + bytes(1_048_576))
    build([("usr", folder / "image")], folder / "payload.crau", keys=[key()])
    return folder / "payload.crau"


def places(path: Path) -> Iterator[tuple[str, range]]:
    """Yield the places of a payload and the offsets in each that are damaged."""
    with PayloadFile.open(path) as file:
        metadata = file.metadata(None, accept=Accept.FULL)
        header, end = metadata.header, file.size_bytes - metadata.manifest.signatures_size
    yield "magic", range(4)
    yield "major", range(4, 12)
    yield "sizes", range(12, header.header_size)
    yield "manifest", range(header.header_size, header.metadata_size)
    yield "metadata signature", range(header.metadata_size, header.data_offset)
    blobs = end - header.data_offset
    yield "blobs", range(header.data_offset, end, max(1, blobs // BLOB_OFFSETS))
    yield "last byte of the blobs", range(end - 1, end)
    yield "payload signature", range(end, file.size_bytes)


def codes(data: bytes, offsets: range, path: Path, keys: TrustedKeys) -> set[str]:
    """Return the codes of the refusals, `accepted` where there was none."""
    found = set()
    for offset in offsets:
        damaged = bytearray(data)
        damaged[offset] ^= 1 << offset % 8  # another bit in each neighbour
        path.write_bytes(damaged)
        try:
            verify_file(path, keys)
            found.add(f"accepted at {offset}")
        except ImagesError as error:
            found.add(error.code)
    return found


SIZES = {"payload-limits", "payload-truncated", "metadata-signature", "payload-unsigned"}
FORMAT_2 = {
    "magic": {"payload-magic"},
    "major": {"payload-version", "manifest-invalid"},
    "sizes": SIZES,
    "manifest": {"metadata-signature"},
    "metadata signature": {"metadata-signature"},
    "blobs": {"blob-mismatch"},
    "last byte of the blobs": {"blob-mismatch"},
    "payload signature": {"payload-signature"},
}


def test_each_damaged_byte_of_a_payload_of_ours_is_refused(payload: Path, tmp_path: Path) -> None:
    data = payload.read_bytes()

    for place, offsets in places(payload):
        found = codes(data, offsets, tmp_path / "damaged", trusted(key()))
        assert found, place
        assert found <= FORMAT_2[place], place


@pytest.mark.parametrize("sample", [FULL[1], FULL[3]], ids=lambda sample: sample.file)
def test_each_damaged_byte_of_a_sample_is_refused(
    samples: Path, sample: Sample, tmp_path: Path
) -> None:
    path = samples / sample.file
    data = path.read_bytes()
    keys = load_public_keys(samples / KEY)

    for place, offsets in places(path):
        few = offsets[:: max(1, len(offsets) // 20)]
        found = codes(data, few, tmp_path / "damaged", keys)
        assert not any(code.startswith("accepted") for code in found), place
        if place == "payload signature":
            assert found == {"payload-signature"}
        if sample.major == 2:
            assert found <= FORMAT_2[place]


@pytest.mark.parametrize("sample", [FULL[1], FULL[3]], ids=lambda sample: sample.file)
def test_each_bit_of_the_signatures_of_a_sample_counts(samples: Path, sample: Sample) -> None:
    """The framing is as strict as the signature in it."""
    path = samples / sample.file
    with PayloadFile.open(path) as file:
        metadata = file.metadata(None, accept=Accept.FULL)
        blob = file.signatures(metadata)
    sound = parse_signatures(blob, major=sample.major, error=PayloadSignatureError)
    for offset in range(len(blob)):
        for bit in range(8):
            damaged = bytearray(blob)
            damaged[offset] ^= 1 << bit
            try:
                entries = parse_signatures(
                    bytes(damaged), major=sample.major, error=PayloadSignatureError
                )
            except PayloadSignatureError:
                continue
            assert entries != sound, f"bit {bit} of byte {offset} is not looked at"


@pytest.mark.parametrize("cut", [1, 2, 267, 268, 1000])
def test_a_truncated_payload_is_refused(payload: Path, cut: int, tmp_path: Path) -> None:
    path = tmp_path / "cut"
    path.write_bytes(payload.read_bytes()[:-cut])

    with pytest.raises(ImagesError) as caught:
        verify_file(path, trusted(key()))

    assert caught.value.code == "payload-truncated"


@pytest.mark.parametrize("more", [b"\0", b"\0" * 4096, b"CrAU"])
def test_an_extended_payload_is_refused(payload: Path, more: bytes, tmp_path: Path) -> None:
    path = tmp_path / "extended"
    path.write_bytes(payload.read_bytes() + more)

    with pytest.raises(ImagesError) as caught:
        verify_file(path, trusted(key()))

    assert caught.value.code == "payload-trailing"


def test_a_refused_payload_leaves_nothing_behind(payload: Path, tmp_path: Path) -> None:
    data = bytearray(payload.read_bytes())
    data[-300] ^= 1
    (tmp_path / "damaged").write_bytes(data)

    with pytest.raises(ImagesError):
        apply_file(tmp_path / "damaged", {"usr": tmp_path / "usr"}, keys=trusted(key()))

    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]
