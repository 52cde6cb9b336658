"""The recipe: packages, system, version. Each layer is made out of the one before.

    packages-KEY.tar   Debian's packages, by mmdebstrap              minutes, in the cache
    unpacked-KEY/      what is kept of them, and their kernel          seconds, in the cache
    system-KEY/        with bascule and its units                      half a minute, in the cache
    root.img …         image.toml and the variant; erofs, verity       seconds

A key is the hash of all that a layer is made from, so a stale one is never taken.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from images.draft import draft_of
from images.errors import FileUnreadableError
from images.reference import image, initrd, packages, system, tree, variants
from images.reference.kernel import Kernel, open_kernel
from images.reference.variants import VARIANTS
from images.reference.verity import BLOCK, Verity
from images.release import ImageFacts, encode_image_facts, parse_image_facts

FACTS: Final = "usr/lib/bascule/image.toml"
FILES: Final = ("root.img", "linux", "initrd")
AGENT: Final = Path(__file__).parent / "agent"
TINY: Final = Path(__file__).parent / "tiny"
TINY_NOISE: Final = 2 * 1024 * 1024  # bytes, so that another version is another root
TINY_APPLETS: Final = (
    "base64", "cat", "dd", "echo", "mount", "poweroff", "printf", "reboot", "sed", "sh", "sleep",
    "stty", "sync",
)  # fmt: skip
_CHUNK: Final = 1024 * 1024  # bytes copied at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to build.

    Attributes:
        facts: what the image says of itself; `built` is the time of all its files.
        variant: a name of `VARIANTS`.
        with_agent: the command channel for tests is in it.
        server: where its nodes ask, a URL without a slash at its end.
        root_json: the trusted TUF root, or None.
        source: a checkout of bascule.
        cache: the folder of the layers.
        wanted: the packages.
    """

    facts: ImageFacts
    variant: str
    with_agent: bool
    server: str
    root_json: Path | None
    source: Path
    cache: Path
    wanted: packages.Wanted


def build(order: Order, output: Path, *, say: Callable[[str], None]) -> dict[str, Any]:
    """Write `root.img`, `linux`, `initrd` and `facts.json` to the folder `output`.

    Args:
        order: what to build.
        output: made when it is not there.
        say: told what begins.

    Returns:
        What `facts.json` holds.

    Raises:
        ImagesError: with the class that names the cause.
    """
    before = os.umask(0o022)  # modes in the image are not to be the builder's
    try:
        return _build(order, output, say)
    finally:
        os.umask(before)


def _build(order: Order, output: Path, say: Callable[[str], None]) -> dict[str, Any]:
    variant = VARIANTS[order.variant]
    order.cache.mkdir(parents=True, exist_ok=True)
    output.mkdir(parents=True, exist_ok=True)
    say("packages")
    archive, versions = packages.fetch(order.wanted, order.cache)
    kept = hashlib.sha256(f"{archive.stem} {tree.DROPPED.read_text()}".encode()).hexdigest()[:16]
    base = _layer(order.cache / f"unpacked-{kept}", lambda folder: _unpack(archive, folder))
    kernel = open_kernel(base / "kernel")
    with tempfile.TemporaryDirectory(dir=order.cache, prefix="version-") as scratch:
        root = Path(scratch) / "root"
        if variant.tiny:
            _tiny(base / "files", root, order)
        else:
            say("system")
            key = system.key(order.source, archive.stem)
            shared = _layer(
                order.cache / f"system-{key}",
                lambda folder: system.build(base / "files", kernel, order.source, folder),
            )
            tree.copy(shared, root)
            _settle(root, order)
        variant.change(root)
        say("root")
        name = f"{order.facts.product} {order.facts.board} {order.facts.version} {order.variant}"
        built = order.facts.built
        verity = image.make(root, Path(scratch) / "root.img", name=name, built=built)
        say("initrd")
        _boot_files(base / "files", kernel, verity, order, Path(scratch))
        files = {name: _publish(Path(scratch) / name, output / name) for name in FILES}
    facts = _facts(order, kernel, verity, versions, files)
    with draft_of(output / "facts.json") as draft:
        draft.append(json.dumps(facts, indent=1, sort_keys=True).encode() + b"\n")
    return facts


def read_facts(
    *, product: str, board: str, version: str, rollback_index: int, built: datetime
) -> ImageFacts:
    """Return what an image says of itself, checked.

    Raises:
        DocumentInvalidError: a name or the version is none.
    """
    return parse_image_facts(
        {
            "product": product,
            "board": board,
            "version": version,
            "rollback_index": rollback_index,
            "built": built.astimezone(UTC).replace(microsecond=0),
        }
    )


def server_settings(server: str) -> str:
    """Return the settings that name a release desk, by its URL without a slash at its end."""
    return (
        f'[server]\nomaha_url = "{server}/v1/update/"\n\n'
        f'[trust]\nmetadata_url = "{server}/repository/metadata/"\n'
    )


def _layer(folder: Path, make: Callable[[Path], None]) -> Path:
    """Return a folder of the cache, made first when it is not there: whole or not at all."""
    if not folder.exists():
        draft = folder.with_name(f"{folder.name}.{os.getpid()}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        try:
            make(draft)
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder


def _unpack(archive: Path, folder: Path) -> None:
    folder.mkdir()
    tree.unpack(archive, folder / "files")
    tree.unpack(archive, folder / "kernel", below="kernel/unpacked")


def _settle(root: Path, order: Order) -> None:
    """Put in what differs between versions."""
    tree.place(root, FACTS, encode_image_facts(order.facts))
    settings = server_settings(order.server)
    tree.place(root, "usr/lib/bascule/bascule.toml.d/10-server.toml", settings.encode())
    if order.root_json is not None:
        tree.place(root, "usr/lib/bascule/root.json", _read(order.root_json))
    name = f"{order.facts.product} {order.facts.version}"
    release = (
        f'ID=bascule-reference\nID_LIKE=debian\nNAME="{order.facts.product}"\nPRETTY_NAME="{name}"\n'
        f"VERSION_ID={order.facts.version}\nDEFAULT_HOSTNAME=node\n"
    )
    tree.place(root, "usr/lib/os-release", release.encode())
    if order.with_agent:
        program, unit = AGENT / "bascule-test-agent", AGENT / "bascule-test-agent.service"
        tree.place(root, f"usr/lib/bascule/{program.name}", program.read_bytes(), executable=True)
        tree.place(root, f"usr/lib/systemd/system/{unit.name}", unit.read_bytes())
        tree.link(
            root,
            f"etc/systemd/system/basic.target.wants/{unit.name}",
            f"/usr/lib/systemd/system/{unit.name}",
        )


def _tiny(base: Path, root: Path, order: Order) -> None:
    """Make the root that only says it is up."""
    for name in ("bin", "dev", "etc", "proc", "run", "sbin", "sys", "tmp", "usr", "var"):
        (root / name).mkdir(parents=True)
    tree.place(root, "bin/busybox", (base / "usr/bin/busybox").read_bytes(), executable=True)
    for applet in TINY_APPLETS:
        tree.link(root, f"bin/{applet}", "busybox")
    tree.place(root, "sbin/init", (TINY / "init").read_bytes(), executable=True)
    tree.place(root, "etc/machine-id", b"")
    tree.place(root, FACTS, encode_image_facts(order.facts))
    tree.place(root, "usr/lib/bascule/noise", variants.noise(TINY_NOISE, order.facts.version))
    if order.with_agent:
        program = AGENT / "bascule-test-agent"
        tree.place(root, f"usr/lib/bascule/{program.name}", program.read_bytes(), executable=True)


def _boot_files(base: Path, kernel: Kernel, verity: Verity, order: Order, folder: Path) -> None:
    variant = VARIANTS[order.variant]
    changed = variant.kernel(kernel.image.read_bytes(), order.facts.version)
    # A part of a payload is whole blocks; zeros after its end do a kernel no harm.
    (folder / "linux").write_bytes(changed + bytes(-len(changed) % BLOCK))
    packed = initrd.build(base, kernel, verity, hooks=variant.hooks, cache=order.cache)
    (folder / "initrd").write_bytes(packed)


def _publish(file: Path, output: Path) -> dict[str, Any]:
    """Copy a file to where it was asked for, whole or not at all, and describe it."""
    digest, size = hashlib.sha256(), 0
    with file.open("rb") as source, draft_of(output) as draft:
        while chunk := source.read(_CHUNK):
            draft.append(chunk)
            digest.update(chunk)
            size += len(chunk)
    return {"size": size, "sha256": digest.hexdigest()}


def _facts(
    order: Order,
    kernel: Kernel,
    verity: Verity,
    versions: Mapping[str, str],
    files: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "product": order.facts.product,
        "board": order.facts.board,
        "version": order.facts.version,
        "rollback_index": order.facts.rollback_index,
        "built": order.facts.built.isoformat(),
        "variant": order.variant,
        "with_agent": order.with_agent,
        "kernel": kernel.version,
        "files": dict(files),
        "verity": {
            "data_blocks": verity.data_blocks,
            "salt": verity.salt,
            "root_hash": verity.root_hash,
        },
        "packages": dict(sorted(versions.items())),
    }


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileUnreadableError(f"{path} cannot be read: {error.strerror}") from error
