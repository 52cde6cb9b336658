"""Deltas of images that hold packed streams, made by the real programs: the very bytes come out."""

from __future__ import annotations

import random
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from images import coders, delta_recode, recode
from images.apply import apply_file
from images.assemble import Built
from images.coders import coder_of
from images.delta import build_delta
from images.errors import CoderMissingError
from images.reader import verify_file
from images.release import PayloadFacts, encode_payload_facts, facts_of
from tests.sim.coders import need_coders

MIB = 1024 * 1024
BLOCK = 4096
TREE = {"usr/bin/tool": 700_000, "usr/lib/one.so": 300_000, "usr/share/doc/readme": 9_000}


def prose(size: int, *, word: str = "squared", seed: int = 0) -> bytes:
    """Return text that is the same but for a word."""
    chosen = random.Random(seed)
    lines = (
        f"{n} {word if n % 97 == 0 else 'times itself'} is {n * n + chosen.randrange(9)}\n"
        for n in range(size // 20)
    )
    return "".join(lines).encode()[:size]


def program(name: str, package: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed (package {package})")
    return path


@pytest.fixture(autouse=True)
def libraries() -> None:
    need_coders()


def squashfs(tree: Path, output: Path) -> None:
    subprocess.run(
        [program("mksquashfs", "squashfs-tools"), tree, output, "-noappend", "-quiet",
         "-no-progress", "-comp", "zstd", "-all-root", "-mkfs-time", "0", "-all-time", "0"],
        check=True, capture_output=True,
    )  # fmt: skip


def lz4_erofs(tree: Path, output: Path) -> None:
    subprocess.run(
        [program("mkfs.erofs", "erofs-utils"), "-zlz4hc", "-C65536", "-T0",
         "-U6b617363-756c-4e00-8000-000000000001", output, tree],
        check=True, capture_output=True,
    )  # fmt: skip


def kernel_and_initrd(tree: Path, output: Path) -> None:
    """Make an image of a kernel's lz4 blocks and an initrd of two parts."""
    word = "squared" if tree.name == "old" else "to the second power"
    data, packed = tree.parent / "data", tree.parent / "packed"
    pieces = []
    commands: list[tuple[int, list[str | Path]]] = [
        (9 * MIB, [program("lz4", "lz4"), "-l", "-9", "-q", "-f", data, packed]),
        (17 * MIB, [program("zstd", "zstd"), "-9", "-T2", "-q", "-f", data, "-o", packed]),
    ]
    for size, command in commands:
        data.write_bytes(prose(size, word=word))
        subprocess.run(command, check=True)
        pieces.append(b"\0" * 77 + packed.read_bytes())
        pieces.append(bytes(-len(pieces[-1]) % BLOCK))
    output.write_bytes(b"".join(pieces))


def erofs_of_packed_files(tree: Path, output: Path) -> None:
    """Make an image of packed files whose last bytes mkfs.erofs keeps apart."""
    word = "squared" if tree.name == "old" else "to the second power"
    gzip, zstd = program("gzip", "gzip"), program("zstd", "zstd")
    commands: dict[str, tuple[int, list[str]]] = {
        "usr/share/changelog": (600_000, [gzip, "-9n"]),
        "usr/share/page": (9_000, [gzip, "-9n"]),
        "boot/initrd": (17 * MIB, [zstd, "-9", "-T2", "-q", "--rm"]),
    }
    for path, (size, command) in commands.items():
        file = tree / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(prose(size, word=word, seed=size))
        subprocess.run([*command, file], check=True)
    subprocess.run(
        [program("mkfs.erofs", "erofs-utils"), "-T0",
         "-U6b617363-756c-4e00-8000-000000000001", output, tree],
        check=True, capture_output=True,
    )  # fmt: skip


def images(folder: Path, make: object) -> None:
    for name, word in (("old", "squared"), ("new", "to the second power")):
        for number, (path, size) in enumerate(TREE.items()):
            file = folder / name / path
            file.parent.mkdir(parents=True)
            file.write_bytes(prose(size, word=word, seed=number))
        noise = random.Random(3).randbytes(50_000)
        (folder / name / "usr/noise").write_bytes(noise)
        make(folder / name, folder / f"{name}.image")  # type: ignore[operator]  # of those above
        image = folder / f"{name}.image"
        image.write_bytes(image.read_bytes() + bytes(-image.stat().st_size % BLOCK))


def build(folder: Path, output: str = "delta", **options: object) -> Built:
    return build_delta(
        [("usr", folder / "new.image")], {"usr": folder / "old.image"}, folder / output,
        **options,  # type: ignore[arg-type]  # of the options of build_delta
    )  # fmt: skip


def kinds(built: Built) -> set[str]:
    return {operation.kind.name for operation in built.manifest.parts[0].operations}


@pytest.mark.parametrize("make", [squashfs, lz4_erofs, kernel_and_initrd, erofs_of_packed_files])
def test_what_is_packed_is_changed_where_it_is_unpacked(
    make: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images(tmp_path, make)
    built = build(tmp_path)
    apply_file(
        tmp_path / "delta", {"usr": tmp_path / "out"}, sources={"usr": tmp_path / "old.image"}
    )

    assert (tmp_path / "out").read_bytes() == (tmp_path / "new.image").read_bytes()
    verify_file(tmp_path / "delta", None)
    assert "SOURCE_RECODE" in kinds(built)
    assert built.manifest.coders
    if make in {kernel_and_initrd, erofs_of_packed_files}:  # the rest would take long
        assert built.size_bytes < (tmp_path / "new.image").stat().st_size / 4
        return
    assert build(tmp_path, "again", workers=1).sha256 == built.sha256
    monkeypatch.setattr(delta_recode, "_FUNCTIONS", {})  # as on a machine without the libraries
    plain = build(tmp_path, "plain")
    assert "SOURCE_RECODE" not in kinds(plain)
    assert not plain.manifest.coders
    assert built.size_bytes < plain.size_bytes / 2
    apply_file(
        tmp_path / "plain", {"usr": tmp_path / "out"}, sources={"usr": tmp_path / "old.image"}
    )
    assert (tmp_path / "out").read_bytes() == (tmp_path / "new.image").read_bytes()


def facts(delta: Path) -> PayloadFacts:
    return facts_of(
        delta,
        product="p",
        board="b",
        version="2.0",
        rollback_index=0,
        min_engine="0.1.0",
        created=datetime(2026, 1, 1, tzinfo=UTC),
        source_version="1.0",
    )


@pytest.mark.parametrize("make", [squashfs, lz4_erofs])
def test_its_facts_say_how_many_bytes_it_packs_again(
    make: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as the coders are really given when it is carried out."""
    images(tmp_path, make)
    build(tmp_path)
    given: list[int] = []
    real = coders.pack

    def pack(*arguments: object, taken: int, **more: object) -> object:
        given.append(taken)
        return real(*arguments, taken=taken, **more)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(recode, "pack", pack)
    apply_file(
        tmp_path / "delta", {"usr": tmp_path / "out"}, sources={"usr": tmp_path / "old.image"}
    )
    assert facts(tmp_path / "delta").recoded_bytes == sum(given) > 500_000


def test_facts_without_a_byte_packed_again_are_as_they_were(tmp_path: Path) -> None:
    """A node of before refuses a field that it does not know."""
    images(tmp_path, squashfs)
    build(tmp_path, compat=True)
    made = facts(tmp_path / "delta")
    assert made.recoded_bytes is None
    assert "recoded_bytes" not in encode_payload_facts(made)


def test_a_compat_delta_packs_nothing_again(tmp_path: Path) -> None:
    images(tmp_path, squashfs)

    assert "SOURCE_RECODE" not in kinds(build(tmp_path, compat=True))


def test_who_packs_otherwise_refuses_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images(tmp_path, squashfs)
    build(tmp_path)
    real = coder_of
    monkeypatch.setattr(coders, "coder_of", lambda *what: replace(real(*what), version="1.4.0"))

    with pytest.raises(CoderMissingError, match=r"zstd 1\..*, this system has 1\.4\.0"):
        apply_file(
            tmp_path / "delta", {"usr": tmp_path / "out"}, sources={"usr": tmp_path / "old.image"}
        )
    assert not (tmp_path / "out").exists()


def test_a_stream_that_does_not_pack_again_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images(tmp_path, squashfs)
    real = coders.pack
    calls = 0

    def sometimes(*what: object, **more: object) -> bytes:
        nonlocal calls
        calls += 1
        made = bytes(real(*what, **more))  # type: ignore[arg-type]  # handed on as it came
        return made if calls % 2 else b"!" + made[1:]

    monkeypatch.setattr(delta_recode, "pack", sometimes)
    build(tmp_path, workers=1)
    apply_file(
        tmp_path / "delta", {"usr": tmp_path / "out"}, sources={"usr": tmp_path / "old.image"}
    )
    assert (tmp_path / "out").read_bytes() == (tmp_path / "new.image").read_bytes()
