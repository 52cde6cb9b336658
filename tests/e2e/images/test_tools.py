"""Real programs as a second opinion: openssl on keys and signatures, zstd, xz, bzip2 on blobs."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from images.apply import apply_file
from images.build import build
from images.errors import FileWriteError, KeyUnsuitableError
from images.manifest import OperationKind
from images.proto import payload_pb2 as pb
from images.reader import Accept, PayloadFile, verify_file
from images.signing import KeyType, keygen, load_private_key, load_public_keys
from tests.sim import protobuf_reader as wire
from tests.sim.payloads import forge, image, replace

pytestmark = pytest.mark.e2e

Tool = Callable[[str], str]
TEXT = b"the quick brown fox jumps over the lazy dog. " * 30_000
MIB = 1024 * 1024


def call(*command: str, data: bytes | None = None) -> bytes:
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


def built(folder: Path, *, compression: str | None = None, compat: bool = False) -> Path:
    """Build a payload of packed and raw chunks, signed by `folder/k`."""
    (folder / "image").write_bytes(TEXT[:MIB] + image(256))
    if not (folder / "k.key.pem").exists():
        keygen(folder / "k")
    build(
        [("usr", folder / "image")],
        folder / "payload",
        compression=compression,
        compat=compat,
        keys=[load_private_key(folder / "k.key.pem")],
    )
    return folder / "payload"


def signed_messages(payload: Path) -> list[tuple[bytes, bytes]]:
    """Return each signatures message of a payload, and what it signs."""
    with PayloadFile.open(payload) as file:
        metadata = file.metadata(None, accept=Accept.FULL)
        signatures = file.signatures(metadata)
    data = payload.read_bytes()
    area = data[metadata.header.data_offset : len(data) - len(signatures)]
    messages = [(signatures, metadata.raw + area)]
    return messages + [(metadata.signature_blob, metadata.raw)] * (metadata.header.major == 2)


def openssl_verifies(
    tool: Tool, folder: Path, public: Path, signature: bytes, signed: bytes, *options: str
) -> bool:
    (folder / "signature").write_bytes(signature)
    (folder / "digest").write_bytes(hashlib.sha256(signed).digest())
    out = call(
        tool("openssl"), "pkeyutl", "-verify", "-pubin", "-inkey", str(public),
        "-in", str(folder / "digest"), "-sigfile", str(folder / "signature"),
        "-pkeyopt", "digest:sha256", *options,
    )  # fmt: skip
    return b"Verified Successfully" in out


RSA_OPTIONS = ("-pkeyopt", "rsa_padding_mode:pkcs1")


@pytest.mark.parametrize("bits", [2048, 4096])
def test_openssl_verifies_both_signatures(tool: Tool, tmp_path: Path, bits: int) -> None:
    keygen(tmp_path / "k", bits=bits)
    for blob, signed in signed_messages(built(tmp_path)):
        signature = wire.one_bytes(wire.one_bytes(blob, 1), 2)
        public = tmp_path / "k.pub.pem"
        assert openssl_verifies(tool, tmp_path, public, signature, signed, *RSA_OPTIONS)


def test_openssl_verifies_an_elliptic_and_an_rsa_signature_beside_each_other(
    tool: Tool, tmp_path: Path
) -> None:
    keygen(tmp_path / "rsa")
    keygen(tmp_path / "ec", kind=KeyType.EC)
    (tmp_path / "image").write_bytes(image(2))
    keys = [load_private_key(tmp_path / f"{name}.key.pem") for name in ("rsa", "ec")]
    build([("usr", tmp_path / "image")], tmp_path / "payload", keys=keys)

    for blob, signed in signed_messages(tmp_path / "payload"):
        for name, entry in zip(("rsa", "ec"), wire.messages(blob, 1), strict=True):
            signature = wire.one_bytes(entry, 2)[: wire.one_number(entry, 3)]
            public = tmp_path / f"{name}.pub.pem"
            options = RSA_OPTIONS if name == "rsa" else ()
            assert openssl_verifies(tool, tmp_path, public, signature, signed, *options)


@pytest.mark.parametrize("bits", [2048, 4096])
def test_keys_that_openssl_makes_sign_and_verify(tool: Tool, tmp_path: Path, bits: int) -> None:
    private, public = tmp_path / "k.key.pem", tmp_path / "k.pub.pem"
    call(tool("openssl"), "genpkey", "-quiet", "-algorithm", "RSA",
         "-pkeyopt", f"rsa_keygen_bits:{bits}", "-out", str(private))  # fmt: skip
    call(tool("openssl"), "pkey", "-in", str(private), "-pubout", "-out", str(public))

    assert (
        verify_file(built(tmp_path), load_public_keys(public)).manifest.signatures_size > bits // 8
    )


def elliptic(tool: Tool, folder: Path, curve: str) -> tuple[Path, Path]:
    private, public = folder / "k.key.pem", folder / "k.pub.pem"
    call(tool("openssl"), "genpkey", "-algorithm", "EC", "-pkeyopt", f"ec_paramgen_curve:{curve}",
         "-out", str(private))  # fmt: skip
    call(tool("openssl"), "pkey", "-in", str(private), "-pubout", "-out", str(public))
    return private, public


def test_elliptic_keys_that_openssl_makes_sign_and_verify(tool: Tool, tmp_path: Path) -> None:
    _, public = elliptic(tool, tmp_path, "P-256")

    assert verify_file(built(tmp_path), load_public_keys(public)).manifest.signatures_size == 81


def test_a_key_on_another_curve_is_unsuitable(tool: Tool, tmp_path: Path) -> None:
    private, _ = elliptic(tool, tmp_path, "P-384")

    with pytest.raises(KeyUnsuitableError, match="secp384r1"):
        load_private_key(private)


@pytest.mark.parametrize(
    ("name", "compression", "kind"),
    [
        ("zstd", "zstd", OperationKind.REPLACE_ZSTD),
        ("xz", "xz", OperationKind.REPLACE_XZ),
        ("bzip2", "bz2", OperationKind.REPLACE_BZ),
    ],
)
def test_the_tool_of_a_compression_unpacks_its_blobs(
    tool: Tool, tmp_path: Path, name: str, compression: str, kind: OperationKind
) -> None:
    payload = built(tmp_path, compression=compression)
    with PayloadFile.open(payload) as file:
        metadata = file.metadata(None, accept=Accept.FULL)
        operation = metadata.manifest.parts[0].operations[0]
        blob = file.blob(metadata, operation)

    assert operation.kind is kind
    assert call(tool(name), "-dc", data=blob) == TEXT[:MIB]


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("zstd", "REPLACE_ZSTD", ["-19"]),
        ("xz", "REPLACE_XZ", ["-6", "--check=crc32"]),
        ("xz", "REPLACE_XZ", ["-6", "--check=none"]),
        ("bzip2", "REPLACE_BZ", ["-9"]),
    ],
    ids=["zstd", "xz crc32", "xz without check", "bzip2"],
)
def test_blobs_that_the_tool_packs_are_unpacked(
    tool: Tool, tmp_path: Path, name: str, kind: str, options: list[str]
) -> None:
    content = TEXT[: 256 * 4096]
    packed = call(tool(name), *options, "-c", data=content)
    payload = forge(content)
    operation = replace(
        packed, start=0, offset=0, kind=getattr(pb.InstallOperation, kind), blocks=256
    )
    payload.manifest.partitions[0].operations[0].CopyFrom(operation)
    payload.blobs = packed
    (tmp_path / "payload").write_bytes(payload.bytes())

    apply_file(tmp_path / "payload", {"usr": tmp_path / "usr"})

    assert (tmp_path / "usr").read_bytes() == content


def test_protoc_reads_the_manifest_without_our_schema(tool: Tool, tmp_path: Path) -> None:
    payload = built(tmp_path, compat=True)
    with PayloadFile.open(payload) as file:
        metadata = file.metadata(None, accept=Accept.FULL)

    text = call(tool("protoc"), "--decode_raw", data=metadata.raw[24:]).decode()

    assert '1: "usr"' in text
    assert "12: 0" in text
    assert "1000:" not in text


@pytest.fixture
def full_disk(tool: Tool, tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB with half a MiB left."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=2m", "tmpfs"]
    mounted = subprocess.run(
        [tool("mount"), *options, str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("this user may not mount a file system")
    try:
        (folder / "filler").write_bytes(bytes(3 * MIB // 2))
        yield folder
    finally:
        call(tool("umount"), str(folder))


def test_a_full_disk_is_named_and_nothing_is_left_on_it(full_disk: Path, tmp_path: Path) -> None:
    payload = built(tmp_path)

    with pytest.raises(FileWriteError, match="No space left on device"):
        build([("usr", tmp_path / "image")], full_disk / "payload", compression="none")
    applied = subprocess.run(
        [sys.executable, "-m", "images.cli", "apply", payload, "--output", f"usr={full_disk}/usr"],
        capture_output=True,
        check=False,
    )

    assert applied.returncode == 1
    assert b"No space left on device" in applied.stderr
    assert applied.stderr.endswith(b"code: file-write\n")
    assert [path.name for path in full_disk.iterdir()] == ["filler"]


def test_a_closed_pipe_ends_the_command_quietly(tmp_path: Path) -> None:
    payload = built(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "images.cli", "inspect", str(payload)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout
    process.stdout.close()
    assert process.stderr
    with process:
        assert process.stderr.read() == b""


def test_a_full_standard_output_is_named(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    payload = built(tmp_path)
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(
            [sys.executable, "-m", "images.cli", "inspect", str(payload)],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )

    assert result.returncode == 1
    assert result.stderr.startswith(b"error: ")
    assert result.stderr.endswith(b"code: file-write\n")


def a_build_under_way(folder: Path) -> subprocess.Popen[bytes]:
    """Start a build that takes seconds and wait until its draft is there."""
    with (folder / "image").open("wb") as file:
        for seed in range(24):
            file.write(image(256, seed))
    parts = ["--partition", f"usr={folder}/image", "--output", str(folder / "payload")]
    process = subprocess.Popen(
        [sys.executable, "-m", "images.cli", "build", *parts, "--compression", "xz"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    while not list(folder.glob(".payload.*.draft")):
        assert process.poll() is None
        time.sleep(0.01)
    return process


def test_a_killed_build_leaves_no_payload(tmp_path: Path) -> None:
    with a_build_under_way(tmp_path) as process:
        process.kill()

    assert not (tmp_path / "payload").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_an_interrupted_build_says_so_and_leaves_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    with a_build_under_way(tmp_path) as process:
        process.send_signal(number)
        _, errors = process.communicate()

    assert process.returncode == 130
    assert errors.decode().split("\n")[-4:-1] == [
        "error: interrupted",
        "hint: Nothing was left behind; run it again.",
        "code: interrupted",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["image"]
