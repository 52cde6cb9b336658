"""Payloads that other programs made: verified, refused with another key, applied byte for byte."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from images.apply import apply_file
from images.errors import (
    MetadataSignatureError,
    PayloadRefusedError,
    PayloadSignatureError,
    SourceMismatchError,
    SourceMissingError,
)
from images.reader import Accept, PayloadFile, verify_file
from images.release import facts_of
from images.signing import load_public_keys
from tests.sim.samples import DELTA, EXT2_SHA256, FULL, KEY, OTHER_KEY, Sample

each_full = pytest.mark.parametrize("sample", FULL, ids=lambda sample: sample.file)


@each_full
def test_a_full_payload_verifies_with_its_key(samples: Path, sample: Sample) -> None:
    metadata = verify_file(samples / sample.file, load_public_keys(samples / KEY))

    assert metadata.header.major == sample.major
    assert {part.name: (part.size, part.sha256.hex()) for part in metadata.manifest.parts} == {
        name: (image.size, image.sha256) for name, image in sample.images.items()
    }


@each_full
def test_a_full_payload_is_refused_with_another_key(samples: Path, sample: Sample) -> None:
    refusal = PayloadSignatureError if sample.major == 1 else MetadataSignatureError

    with pytest.raises(refusal, match="none of 1 signatures was made by one of 1 trusted keys"):
        verify_file(samples / sample.file, load_public_keys(samples / OTHER_KEY))


@each_full
def test_either_of_two_trusted_keys_is_enough(samples: Path, sample: Sample) -> None:
    keys = load_public_keys(samples / OTHER_KEY, samples / KEY)

    assert verify_file(samples / sample.file, keys).manifest.signatures_size > 0


@each_full
def test_a_full_payload_applies_to_the_very_image(
    samples: Path, sample: Sample, tmp_path: Path
) -> None:
    outputs = {name: tmp_path / name for name in sample.images}

    apply_file(samples / sample.file, outputs, keys=load_public_keys(samples / KEY))

    for name, image in sample.images.items():
        data = (tmp_path / name).read_bytes()
        assert len(data) == image.size
        assert hashlib.sha256(data).hexdigest() == image.sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(sample.images)


@each_full
def test_nothing_is_written_when_the_key_is_another(
    samples: Path, sample: Sample, tmp_path: Path
) -> None:
    existing = tmp_path / "existing"
    existing.write_bytes(b"what was there")
    outputs = dict.fromkeys(sample.images, tmp_path / "new") | {"usr": existing}

    with pytest.raises(PayloadRefusedError):
        apply_file(samples / sample.file, outputs, keys=load_public_keys(samples / OTHER_KEY))

    assert existing.read_bytes() == b"what was there"
    assert [path.name for path in tmp_path.iterdir()] == ["existing"]


def test_one_part_can_be_applied_alone(samples: Path, tmp_path: Path) -> None:
    sample = FULL[2]

    apply_file(samples / sample.file, {"kernel": tmp_path / "vmlinuz"})

    digest = hashlib.sha256((tmp_path / "vmlinuz").read_bytes()).hexdigest()
    assert digest == sample.images["kernel"].sha256


def test_a_delta_verifies(samples: Path) -> None:
    metadata = verify_file(samples / DELTA, load_public_keys(samples / KEY))

    assert metadata.manifest.is_delta
    assert metadata.manifest.parts[0].old_size == 16_777_216


def test_a_delta_applies_to_the_very_image(samples: Path, old_ext2: Path, tmp_path: Path) -> None:
    before = old_ext2.read_bytes()

    apply_file(
        samples / DELTA,
        {"usr": tmp_path / "usr"},
        sources={"usr": old_ext2},
        keys=load_public_keys(samples / KEY),
    )

    assert hashlib.sha256((tmp_path / "usr").read_bytes()).hexdigest() == EXT2_SHA256
    assert old_ext2.read_bytes() == before


def test_a_delta_may_replace_the_image_that_it_starts_from(
    samples: Path, old_ext2: Path, tmp_path: Path
) -> None:
    usr = tmp_path / "usr"
    usr.write_bytes(old_ext2.read_bytes())

    apply_file(samples / DELTA, {"usr": usr}, sources={"usr": usr})

    assert hashlib.sha256(usr.read_bytes()).hexdigest() == EXT2_SHA256


def test_a_delta_without_its_old_image_is_refused_before_anything_is_written(
    samples: Path, tmp_path: Path
) -> None:
    with pytest.raises(SourceMissingError, match="part usr is a delta"):
        apply_file(samples / DELTA, {"usr": tmp_path / "usr"})

    assert list(tmp_path.iterdir()) == []


def test_a_delta_on_another_image_is_refused_before_anything_is_written(
    samples: Path, new_ext2: Path, tmp_path: Path
) -> None:
    with pytest.raises(SourceMismatchError, match=f"sha256 {EXT2_SHA256}, the delta starts from"):
        apply_file(samples / DELTA, {"usr": tmp_path / "usr"}, sources={"usr": new_ext2})

    assert list(tmp_path.iterdir()) == []


def test_an_in_place_delta_wants_an_image_of_the_very_size(
    samples: Path, old_ext2: Path, tmp_path: Path
) -> None:
    larger = tmp_path / "old"
    larger.write_bytes(old_ext2.read_bytes() + bytes(4096))

    with pytest.raises(SourceMismatchError, match="has 16781312 bytes"):
        apply_file(samples / DELTA, {"usr": tmp_path / "usr"}, sources={"usr": larger})


def test_the_signed_hash_of_the_worked_example_covers_what_the_reference_says(
    samples: Path,
) -> None:
    with PayloadFile.open(samples / "full-signed.crau") as file:
        metadata = file.metadata(None, accept=Accept.FULL)
        signatures = file.signatures(metadata)

    assert metadata.header.metadata_size == 20 + 935
    assert metadata.manifest.signatures_offset == 4_630_750
    assert signatures[:8] == bytes.fromhex("0a85020802128002")
    assert file.size_bytes - len(signatures) == 4_631_705


def test_the_facts_of_a_payload_are_those_of_its_metadata(samples: Path) -> None:
    from datetime import UTC, datetime

    facts = facts_of(
        samples / "v2-full-signed.crau",
        product="p",
        board="b",
        version="1.0.0",
        rollback_index=1,
        min_engine="0.1.0",
        created=datetime(2026, 11, 20, tzinfo=UTC),
    )

    raw = (samples / "v2-full-signed.crau").read_bytes()
    assert facts.metadata_size == 24 + 918
    assert facts.metadata_sha256 == hashlib.sha256(raw[: 24 + 918]).hexdigest()
    assert facts.signatures_sha256 == hashlib.sha256(raw[-267:]).hexdigest()
