"""What can go wrong between a name and durable bytes, as a tree drawn by whose fault it is.

    PartitionsError
    ├── TableError            the partition table on the disk
    │   ├── GptMissingError · GptDamagedError · GptAmbiguousError · GptEntryError
    │   └── GptChangedError
    ├── PartitionLookupError  the names in the settings against that table
    │   ├── PartitionUnknownError · PartitionAmbiguousError · PartitionStaleError
    │   └── BootFileSharedError
    ├── WriteRefusedError     what must not be written (exit status 3)
    │   └── SlotBootedError · DeviceMountedError · BootFolderUnmountedError
    ├── DeviceError           the device under the bytes
    │   ├── DeviceOpenError · DeviceBusyError · DeviceTooSmallError
    │   └── DeviceReadError · DeviceWriteError · ReadbackMismatchError
    ├── BootControlError      the boot loader's memory
    │   ├── NothingBootableError · BootFolderError
    │   ├── LoaderTemplateError · LoaderDefaultError · LoaderForeignError
    │   ├── EfiVariableError · EfiEntryError
    │   ├── GrubenvInvalidError · GrubenvCrowdedError
    │   ├── UbootConfigError · UbootInvalidError · UbootCrowdedError · UbootNotAtomicError
    │   └── CustomCommandError · CustomRefusedError · BootControlUnknownError
    └── DiskImageError        making a disk file
        ├── LayoutInvalidError · ContentsInvalidError · EfiStoreInvalidError · DiskExistsError
        └── ToolMissingError · ToolFailedError

Each class owns a stable code, a hint and an exit status. Broken invariants (a negative offset, a
layout that names the same thing twice in code) are not here: they crash, loudly.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_REFUSED = 3


class PartitionsError(Exception):
    """Anything that stops work on a disk with a code, a sentence and a hint.

    Attributes:
        code: kebab-case, stable and never reused; operators grep and alert on it.
        hint: what a person should look at or do next.
        exit_status: what a command ends with.
    """

    code: ClassVar[str] = "partitions"
    hint: ClassVar[str] = "This is a bug: every error should have a code of its own."
    exit_status: ClassVar[int] = EXIT_FAILED


class TableError(PartitionsError):
    """The partition table cannot be used as it is."""


class GptMissingError(TableError):
    """The disk carries no GPT, neither at its start nor at its end."""

    code = "gpt-missing"
    hint = "Check that the path names the whole disk; `sgdisk -p` shows what is on it."


class GptDamagedError(TableError):
    """Traces of a GPT are there, but no copy of it is valid."""

    code = "gpt-damaged"
    hint = "Look at it with `sgdisk -v`; restore the table from a backup. Nothing was written."


class GptAmbiguousError(TableError):
    """Two valid tables tell different stories, so neither is believed."""

    code = "gpt-ambiguous"
    hint = "Decide which copy is right with `sgdisk` (recovery menu); bascule does not guess."


class GptEntryError(TableError):
    """An entry lies outside the disk, overlaps another or repeats its GUID."""

    code = "gpt-entry"
    hint = "Look at it with `sgdisk -v` and mend the table. Nothing was written."


class GptChangedError(TableError):
    """The table is no longer the one that was read, so the edit does not apply."""

    code = "gpt-changed"
    hint = "Another program edits this disk's table; stop it and try again. Nothing was written."


class PartitionLookupError(PartitionsError):
    """A name in the settings does not lead to one partition."""


class PartitionUnknownError(PartitionLookupError):
    """No partition of the disk has this label or PARTUUID."""

    code = "partition-unknown"
    hint = "Compare the settings with `bascule-image disk show DISK`."


class PartitionAmbiguousError(PartitionLookupError):
    """More than one partition answers to a name, or one partition to two names."""

    code = "partition-ambiguous"
    hint = "Name the partition by PARTUUID=…; `bascule-image disk show DISK` lists them."


class PartitionStaleError(PartitionLookupError):
    """The kernel's idea of a partition differs from the table on the disk."""

    code = "partition-stale"
    hint = "Make the kernel read the table again with `partprobe DISK`, or reboot."


class BootFileSharedError(PartitionLookupError):
    """Two parts of the slots are named to be the same file."""

    code = "boot-file-shared"
    hint = "Each part of each slot needs a file of its own; FAT knows no small and large letters."


class WriteRefusedError(PartitionsError):
    """Writing there would harm a system that is in use; nothing was written."""

    exit_status = EXIT_REFUSED


class SlotBootedError(WriteRefusedError):
    """The running system lives there: it is never written and never disarmed."""

    code = "slot-booted"
    hint = "Only the passive slot is written; check the slots in the settings."


class DeviceMountedError(WriteRefusedError):
    """The device, or one that stands on it, is mounted or used as swap."""

    code = "device-mounted"
    hint = "Unmount it (`findmnt`, `swapon --show` tell where it is used) and try again."


class BootFolderUnmountedError(WriteRefusedError):
    """A boot file would land on the running system's own file system, where no loader looks."""

    code = "boot-folder-unmounted"
    hint = "Mount the loader's partition (`findmnt /boot`), or correct FILE=… in the settings."


class DeviceError(PartitionsError):
    """The device under the bytes fails or is not what it should be."""


class DeviceOpenError(DeviceError):
    """The disk or partition cannot be opened."""

    code = "device-open"
    hint = "Check the path and the rights of this user on it."

    @classmethod
    def because(cls, path: Path, error: OSError) -> Self:
        """Say which path would not open, and why."""
        return cls(f"{path} cannot be opened: {error.strerror or error}")


class DeviceBusyError(DeviceError):
    """Another program holds the device."""

    code = "device-busy"
    hint = "Another updater, device-mapper or RAID holds it; `lsblk` and `fuser` tell which."


class DeviceTooSmallError(DeviceError):
    """What shall be written is larger than the place for it."""

    code = "device-too-small"
    hint = "The place must be at least as large as the image; nothing past its end was written."


class PartitionTooSmallError(DeviceTooSmallError):
    """A partition of a disk layout is smaller than what shall go into it."""

    code = "partition-too-small"
    hint = "Give that partition a larger `size` in the layout."
    exit_status = EXIT_USAGE


class DeviceReadError(DeviceError):
    """The device gave an error, or ended, while it was read."""

    code = "device-read"
    hint = "Look into the kernel log; the disk may be failing."

    @classmethod
    def because(cls, path: Path, offset: int, error: OSError) -> Self:
        """Say where reading failed, and why."""
        return cls(f"reading {path} at byte {offset} failed: {error.strerror or error}")


class DeviceWriteError(DeviceError):
    """The device gave an error while it was written or flushed."""

    code = "device-write"
    hint = "Look into the kernel log and at free space (disk files); the disk may be failing."

    @classmethod
    def because(cls, path: Path, offset: int, error: OSError) -> Self:
        """Say where writing failed, and why."""
        return cls(f"writing {path} at byte {offset} failed: {error.strerror or error}")


class ReadbackMismatchError(DeviceError):
    """What the device gives back is not what was written."""

    code = "readback-mismatch"
    hint = "The disk or its controller may be failing; the slot was not armed."


class BootControlError(PartitionsError):
    """The boot loader's memory cannot be read or written as wanted."""

    code = "boot-control"
    hint = "`bascule slots` shows what the boot loader would do; its settings name the keeper."


class BootFolderError(BootControlError):
    """The loader's partition cannot be read or changed."""

    code = "boot-folder"
    hint = "Is it mounted, writable and not full? `findmnt`, `df`, `dmesg`; then `fsck.vfat -a`."

    @classmethod
    def because(cls, path: Path, error: OSError) -> Self:
        """Say what would not work on which path, and why."""
        return cls(f"{path}: {error.strerror or error}")


class NothingBootableError(BootControlError):
    """The boot loader would find no slot to start."""

    code = "nothing-bootable"
    hint = "Boot a slot by hand from the loader's menu, then run `bascule confirm`."


class LoaderTemplateError(BootControlError):
    """The template of a slot's entry for systemd-boot is missing, or makes no entry."""

    code = "loader-template"
    hint = "Is the loader's partition mounted? docs/loaders.md shows what a template holds."


class LoaderDefaultError(BootControlError):
    """loader.conf names a default, so systemd-boot would not give a failed trial up."""

    code = "loader-default"
    hint = "Remove the line `default` from loader.conf; the versions of the entries decide."


class LoaderForeignError(BootControlError):
    """systemd-boot would start an entry that is of no slot."""

    code = "loader-foreign"
    hint = "Remove that entry, or its `sort-key` if it has one; `bootctl list` shows the order."


class EfiVariableError(BootControlError):
    """The firmware's variables cannot be read or written."""

    code = "efi-variable"
    hint = "Is efivarfs mounted and writable? `findmnt /sys/firmware/efi/efivars`, `dmesg`."

    @classmethod
    def because(cls, path: Path, error: OSError) -> Self:
        """Say what would not work on which path, and why."""
        return cls(f"{path}: {error.strerror or error}")


class EfiEntryError(BootControlError):
    """The firmware has not exactly one active boot entry of a slot."""

    code = "efi-entry"
    hint = (
        "`efibootmgr` lists them; make one with `efibootmgr --create-only --disk DISK --part N "
        "--label bascule-a --loader '\\bascule\\a\\linux.efi'`; see docs/loaders.md."
    )


class GrubenvInvalidError(BootControlError):
    """The file is no environment block that GRUB would load and save."""

    code = "grubenv-invalid"
    hint = "Make it with `grub-editenv FILE create`, then set the slots; docs/grub.md shows how."


class GrubenvCrowdedError(BootControlError):
    """Other variables leave no place where ours change with a single sector."""

    code = "grubenv-crowded"
    hint = "Make the file anew with ORDER, A_OK, A_TRY, B_OK and B_TRY first; see docs/grub.md."


class UbootConfigError(BootControlError):
    """The file that says where U-Boot's environment is cannot be used."""

    code = "uboot-config"
    hint = "slots.uboot_config names it; `fw_printenv -c FILE` must work; docs/loaders.md."


class UbootInvalidError(BootControlError):
    """No copy of U-Boot's environment is whole, so neither slot is known to be."""

    code = "uboot-invalid"
    hint = "Boot a slot by hand, then make the environment anew; docs/loaders.md shows how."


class UbootCrowdedError(BootControlError):
    """Other variables leave no room for ours in U-Boot's environment."""

    code = "uboot-crowded"
    hint = "Take variables away with `fw_setenv NAME`, or give the environment more room."


class UbootNotAtomicError(BootControlError):
    """The only copy of U-Boot's environment is too large to be changed in one piece."""

    code = "uboot-not-atomic"
    hint = "Use two copies (redundant), or a file of 0x200 bytes on FAT; docs/loaders.md."


class CustomCommandError(BootControlError):
    """The integrator's program fails, or does not keep what was asked for."""

    code = "custom-command"
    hint = "Run slots.custom_command with `read` by hand; docs/loaders.md has the protocol."


class CustomRefusedError(BootControlError):
    """The integrator's program refuses; the sentence is its own."""

    code = "custom-refused"
    hint = "Ask whoever made slots.custom_command; nothing was changed."
    exit_status = EXIT_REFUSED


class BootControlUnknownError(BootControlError):
    """It cannot be told which boot loader this machine has."""

    code = "boot-control-unknown"
    hint = "Set slots.boot_control to the loader's name; docs/loaders.md lists them."


class DiskImageError(PartitionsError):
    """A disk file cannot be made."""


class LayoutInvalidError(DiskImageError):
    """The TOML of a disk layout holds what it must not."""

    code = "layout-invalid"
    hint = "partitions/README.md lists every key of a disk layout."
    exit_status = EXIT_USAGE


class ContentsInvalidError(DiskImageError):
    """A file system cannot hold what is meant to be copied into it."""

    code = "contents-invalid"
    hint = "Folders, files and (not for vfat) symbolic links, with plain names, can be copied."
    exit_status = EXIT_USAGE


class EfiStoreInvalidError(DiskImageError):
    """The file of a virtual machine's EFI variables cannot take the boot entries."""

    code = "efi-store-invalid"
    hint = "Start from a fresh template of EDK2, such as OVMF_VARS_4M.fd of Debian's ovmf."
    exit_status = EXIT_USAGE


class InputUnreadableError(DiskImageError):
    """A file or folder that shall go on the disk cannot be read."""

    code = "input-unreadable"
    hint = "Check its path and the rights of this user on it."
    exit_status = EXIT_USAGE

    @classmethod
    def because(cls, path: Path, error: OSError) -> Self:
        """Say which path cannot be read, and why."""
        return cls(f"{path} cannot be read: {error.strerror or error}")


class OutputUnwritableError(DiskImageError):
    """A file that shall be made cannot be made at that place."""

    code = "output-unwritable"
    hint = "Check that its folder exists, and that this user may write there."
    exit_status = EXIT_USAGE

    @classmethod
    def because(cls, path: Path, error: OSError) -> Self:
        """Say which path cannot be made, and why."""
        return cls(f"{path} cannot be made: {error.strerror or error}")


class DiskExistsError(DiskImageError):
    """The file to be made is there already."""

    code = "disk-exists"
    hint = "Give another name, or --force to replace it."
    exit_status = EXIT_USAGE


class ToolMissingError(DiskImageError):
    """A program or file that makes a file system or a boot loader is not installed."""

    code = "tool-missing"
    hint = "Install it; partitions/README.md has the packages: A disk layout, A disk that boots."


class ToolFailedError(DiskImageError):
    """A program that makes a file system or a boot loader ended with an error."""

    code = "tool-failed"
    hint = "Its own words are in the message; check size and free space."
