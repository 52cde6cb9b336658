"""A `World` whose loader's partition is a FAT and whose slots carry verity: what is cut apart.

Each loader is one line here: what it needs before slot A is confirmed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

import pytest
from typing_extensions import override

import images.inputs
import updater.updating
from images.build import build as build_payload
from partitions.boot import KEEPERS, Places, open_boot_control, power_on
from partitions.boot.systemd_boot import template_of
from partitions.disk_image import create_disk
from partitions.efi_firmware import BOOT_ORDER, description_of
from partitions.efi_firmware import packed as numbers
from partitions.efi_variables import EfiVariables
from partitions.grub_block import EMPTY_BLOCK
from partitions.layout import read_layout
from partitions.slots import PartRef, Slot, SlotLayout, resolve
from partitions.uboot_env import packed
from tests.sim.block import Area
from tests.sim.efi import boot_option
from tests.sim.fat import SECTOR, Fat
from tests.sim.gpt_tools import program
from tests.sim.payload_server import PayloadServer
from tests.sim.recorder import BOOT, DISK, STATE, VARIABLES
from tests.sim.repository_server import RepositoryServer
from tests.sim.world import World, payload_key
from updater.assembly import slot_layout
from updater.machine_model import PowerSupply

ESP_BYTES: Final = 2304 * 1024  # the smallest FAT16 with clusters of one sector
OPERATION_BYTES: Final = 64 * 1024  # of a payload, so that a small image has several
CHECKPOINT_BYTES: Final = 32 * 1024  # an operation is twice that: a flush follows each
BLOCK: Final = 4096
KEPT_FOLDERS: Final = ("boot", "efivars", "state", "run")

LAYOUT: Final = f"""\
seed = "crash"
alignment = "4KiB"
partition = [
  {{ label = "ESP", role = "esp", size = "{ESP_BYTES}B" }},
  {{ label = "USR-A", role = "slot-a", part = "usr", size = "%d B" }},
  {{ label = "USR-B", role = "slot-b", part = "usr", size = "%d B" }},
  {{ label = "STATE", role = "state", size = "64KiB" }},
]
"""


def _nothing(_folder: Path) -> None:
    return


def _grubenv(folder: Path) -> None:
    path = folder / "boot/grub/grubenv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(EMPTY_BLOCK)


def _uboot(folder: Path) -> None:
    """Lay out what a script manages by itself: one copy, of one sector."""
    env = folder / "boot/uboot.env"
    env.parent.mkdir(parents=True, exist_ok=True)
    (folder / "fw_env.config").write_text(f"{env} 0x0 0x200\n")
    env.write_bytes(packed((), 512, flag=None))


def _uboot_redundant(folder: Path) -> None:
    """Lay out U-Boot's own environment in two files, as `CONFIG_ENV_IS_IN_FAT` has it."""
    (folder / "boot").mkdir(parents=True, exist_ok=True)
    lines = []
    for name in ("uboot.env", "uboot-redund.env"):
        (folder / "boot" / name).write_bytes(packed((b"board=ours",), 4096, flag=0))
        lines.append(f"{folder}/boot/{name} 0x0 0x1000\n")
    (folder / "fw_env.config").write_text("".join(lines))


def _systemd_boot(folder: Path) -> None:
    for slot in Slot:
        template = folder / "boot" / template_of(slot)
        template.parent.mkdir(parents=True, exist_ok=True)
        at = f"/bascule/{slot.value}"
        template.write_text(f"linux {at}/kernel\ninitrd {at}/initrd\noptions quiet\n")


def _efi(folder: Path) -> None:
    (folder / "efivars").mkdir(exist_ok=True)
    variables = EfiVariables(folder / "efivars")
    variables.write("Boot0003", boot_option("UEFI Shell"))
    for number, slot in enumerate(Slot):
        variables.write(f"Boot000{number}", boot_option(description_of(slot)))
    variables.write(BOOT_ORDER, numbers([0, 3]))


@dataclass(frozen=True, slots=True)
class Loader:
    """A boot loader as a machine has it.

    Attributes:
        control: the name of its keeper.
        seed: makes what it finds before its first slot is confirmed, below a machine's folder.
    """

    control: str
    seed: Callable[[Path], None]


LOADERS: Final[Mapping[str, Loader]] = MappingProxyType(
    {
        "gptprio": Loader("gptprio", _nothing),
        "grubenv": Loader("grubenv", _grubenv),
        "uboot": Loader("uboot", _uboot),
        "uboot-redundant": Loader("uboot", _uboot_redundant),
        "systemd-boot": Loader("systemd-boot", _systemd_boot),
        "efi": Loader("efi", _efi),
    }
)


def places_in(folder: Path, layout: SlotLayout) -> Places:
    """Return where everything of a machine is, when `folder` holds all of it."""
    return Places(
        disk=folder / "disk.img",
        layout=layout,
        grubenv=folder / "boot/grub/grubenv",
        boot_folder=folder / "boot",
        uboot_config=folder / "fw_env.config",
        efivars=folder / "efivars",
    )


@dataclass
class CrashWorld(World):
    """One node with a loader's partition.

    Attributes:
        kind: the key of its loader in LOADERS.
        roots: the root hash of each version's image, by version.
    """

    kind: str = "gptprio"
    image_size: int = 256 * 1024
    health: list[str] = field(
        default_factory=lambda: ["sh", "-c", "test $BASCULE_VERSION != 3.0.0"]
    )
    files: dict[str, int] = field(
        default_factory=lambda: {"kernel": 24 * 1024, "initrd": 16 * 1024}
    )
    roots: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.boot_control = LOADERS[self.kind].control

    @override
    def _make(self) -> None:
        # What a program of an integrator writes is not ours to cut.
        ours = set(KEEPERS) - {"custom"}
        assert {one.control for one in LOADERS.values()} == ours, "each has its line here"
        self.server = self.stack.enter_context(RepositoryServer(self.repository))
        self.payloads = self.stack.enter_context(PayloadServer())
        self.stack.enter_context(_small_steps())
        image = self.image("1.0.0", rollback_index=1)
        layout = self.folder / "disk.toml"
        room = image.stat().st_size + 2 * BLOCK
        layout.write_text((LAYOUT % (room, room)).replace(" B", "B"))
        create_disk(read_layout(layout), self.disk, images={"usr": image})
        for name in ("boot", "efivars", "state"):
            (self.folder / name).mkdir()
        for part in self.files:
            place = self.boot_file(Slot.A, part)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(self.file_image("1.0.0", part))
        LOADERS[self.kind].seed(self.folder)
        self.write_settings()
        open_boot_control(self.boot_control, self.places).confirm(Slot.A)
        self.release("1.0.0", rollback_index=1)

    @property
    @override
    def grubenv(self) -> Path:
        return self.folder / "boot/grub/grubenv"

    @property
    def layout(self) -> SlotLayout:
        return slot_layout(self.settings())

    @property
    def places(self) -> Places:
        return places_in(self.folder, self.layout)

    @override
    def power(self) -> PowerSupply:
        return PowerSupply(
            firmware=lambda: power_on(self.boot_control, self.places),
            run_folder=self.folder / "run",
            daemon=[],
        )

    @property
    def watched(self) -> dict[str, Path]:
        """What a recorder watches."""
        folder = self.folder
        return {
            DISK: self.disk,
            BOOT: folder / "boot",
            STATE: folder / "state",
            VARIABLES: folder / "efivars",
        }

    @override
    def write_settings(self, extra: str = "", **changes: str) -> None:
        super().write_settings(extra, **changes)
        text = self.config.read_text()
        for key, path in (("grubenv", self.grubenv), ("uboot_config", self.places.uboot_config)):
            text = re.sub(f"^{key} = .*$", f'{key} = "{path}"', text, flags=re.MULTILINE)
        self.config.write_text(text)

    @override
    def image(self, version: str, *, rollback_index: int, board: str = "") -> Path:
        """Make the image and put its verity tree behind it."""
        options = {"board": board} if board else {}
        image = super().image(version, rollback_index=rollback_index, **options)
        size = image.stat().st_size
        said = subprocess.run(
            [
                *(program("veritysetup"), "format", str(image), str(image)),
                f"--data-blocks={size // BLOCK}",
                f"--hash-offset={size}",
            ],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        (root,) = re.findall(r"^Root hash:\s*([0-9a-f]{64})$", said, flags=re.MULTILINE)
        self.roots[version] = root
        return image

    @override
    def payload(self, version: str, *, rollback_index: int) -> Path:
        if version not in self.images:
            self.image(version, rollback_index=rollback_index)
        output = self.folder / f"{version}.crau"
        build_payload(self.parts(version), output, keys=[payload_key()], compression="none")
        return output

    def parts(self, version: str) -> list[tuple[str, Path]]:
        """Return the image of each part of a slot."""
        parts = [("usr", self.images[version])]
        for part in self.files:
            self.file_image(version, part)
            parts.append((part, self.folder / f"{version}.{part}"))
        return parts

    def boot_files(self, version: str, slot: Slot) -> dict[str, bytes]:
        """Return the boot files that a slot with that version has, by their names on the ESP."""
        root = self.folder / "boot"
        return {
            str(self.boot_file(slot, part).relative_to(root)): self.file_image(version, part)
            for part in self.files
        }

    @override
    def slot_bytes(self, slot: Slot, size: int | None = None) -> bytes:
        whole = self.images["1.0.0"].stat().st_size
        return super().slot_bytes(slot, whole if size is None else size)

    def areas(self) -> list[Area]:
        """Return what of the disk is judged on its own."""
        regions = {
            f"slot {slot.value}": parts["usr"]
            for slot, parts in resolve(self.disk, self.layout).items()
        }
        found = [
            Area(name=name, first=region.offset // SECTOR, count=region.size // SECTOR)
            for name, region in regions.items()
        ]
        esp = self.esp_at // SECTOR
        found.append(Area(name="esp", first=esp, count=ESP_BYTES // SECTOR))
        taken = {at for area in found for at in range(area.first, area.first + area.count)}
        last = self.disk.stat().st_size // SECTOR
        state = max(taken) + 1  # the state partition's own sectors are not written here
        found += [
            Area(name="gpt", first=0, count=esp),
            Area(name="gpt", first=state, count=last - state),
        ]
        return found

    @property
    def esp_at(self) -> int:
        """Return where the loader's partition begins."""
        regions = resolve(self.disk, {Slot.A: {"esp": PartRef(label="ESP")}})
        return regions[Slot.A]["esp"].offset

    def fresh_fat(self) -> bytes:
        """Return a FAT that holds what the loader's partition holds."""
        path = self.folder / "esp.img"
        with path.open("wb") as file:
            file.truncate(ESP_BYTES)
        command = [program("mkfs.vfat"), "-F", "16", "-s", "1", "--invariant", str(path)]
        subprocess.run(command, check=True, capture_output=True)
        fat = Fat(path.read_bytes())
        boot = self.folder / "boot"
        for one in sorted(boot.rglob("*")):
            name = str(one.relative_to(boot))
            if one.is_dir():
                fat.mkdir(name)
            else:
                fat.create(name)
                fat.write(name, 0, one.read_bytes())
        return bytes(fat.image)


@contextmanager
def _small_steps() -> Iterator[None]:
    """Make operations and checkpoints small, so that a small image is written in many steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images.inputs, "CHUNK_SIZE", OPERATION_BYTES)
        patch.setattr(updater.updating, "MIB", CHECKPOINT_BYTES)
        yield


def put_back(world: CrashWorld, kept: Path) -> None:
    """Make the machine's folders and disk those of a copy."""
    for name in KEPT_FOLDERS:
        shutil.rmtree(world.folder / name, ignore_errors=True)
        shutil.copytree(kept / name, world.folder / name, symlinks=True)
    shutil.copyfile(kept / "disk.img", world.disk)


def keep(world: CrashWorld, kept: Path) -> None:
    """Copy the machine's folders and disk."""
    shutil.rmtree(kept, ignore_errors=True)
    for name in KEPT_FOLDERS:
        shutil.copytree(world.folder / name, kept / name, symlinks=True)
    shutil.copyfile(world.disk, kept / "disk.img")
