"""A virtual machine's file of EFI variables, as EDK2's OVMF keeps it: fresh variables are added.

A flash volume's header, a store's header, and variables one behind the other, each at a multiple of
four bytes; erased flash is 0xFF. Only adding to a store that does not have the name yet is done
here: the file is a template of the distribution. Facts: EDK2's `VariableFormat.h` (authenticated
variables) and `PiFirmwareVolume.h`; `virt-fw-vars` is the judge in the tests.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from partitions.efi_variables import ATTRIBUTES, GLOBAL
from partitions.errors import EfiStoreInvalidError

BOOT_VENDOR: Final = uuid.UUID(GLOBAL)
_VOLUME_TYPE: Final = uuid.UUID("fff12b8d-7696-4c8b-a985-2747075b4f50")
_STORE_TYPE: Final = uuid.UUID("aaf32c78-947b-439a-a180-2e144ec37792")
_VOLUME: Final = struct.Struct("<16x16sQ4s4xH")
_STORE: Final = struct.Struct("<16sIBB6x")
_FORMATTED: Final = 0x5A
_HEALTHY: Final = 0xFE
# Begin, state, attributes, counter, time, key index, bytes of name, bytes of data, vendor.
_VARIABLE: Final = struct.Struct("<HBxIQ16xIII16s")
_BEGIN: Final = 0x55AA
_ADDED: Final = 0x3F
_ADDED_BITS: Final = 0x40 | 0x80  # 0 in the state once header and data are written
_DELETED_BIT: Final = 0x02  # 0 in the state once the variable is gone
_ERASED: Final = 0xFF


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """One variable of a store.

    Attributes:
        vendor: whose name space the name is in.
        name: its name.
        data: its value.
        is_live: whether it counts; deleted ones stay in the flash for a while.
    """

    vendor: uuid.UUID
    name: str
    data: bytes
    is_live: bool = True


def variables(flash: bytes) -> list[Variable]:
    """Return the variables of a store, deleted ones too.

    Raises:
        EfiStoreInvalidError: the file is no store of this kind.
    """
    return [variable for _, variable in _walk(flash, *_limits(flash))]


def with_variables(flash: bytes, fresh: Mapping[str, bytes]) -> bytes:
    """Return a store with boot variables added, in the firmware's own name space.

    Raises:
        EfiStoreInvalidError: the file is no store of this kind, has one of them already, or has
            no room.
    """
    start, limit = _limits(flash)
    found = list(_walk(flash, start, limit))
    for _, variable in found:
        if variable.is_live and variable.vendor == BOOT_VENDOR and variable.name in fresh:
            raise EfiStoreInvalidError(f"has the variable {variable.name} already: it is not fresh")
    end = found[-1][0] if found else start
    new = b"".join(_entry(name, data) for name, data in fresh.items())
    if end + len(new) > limit:
        raise EfiStoreInvalidError(f"has {limit - end} bytes left, and {len(new)} are needed")
    return flash[:end] + new + flash[end + len(new) :]


def _limits(flash: bytes) -> tuple[int, int]:
    """Return where variables begin, and where they must have ended."""
    if len(flash) < _VOLUME.size:
        raise EfiStoreInvalidError(f"has {len(flash)} bytes, too few for a store of variables")
    kind, _length, signature, header = _VOLUME.unpack_from(flash)
    if kind != _VOLUME_TYPE.bytes_le or signature != b"_FVH":
        raise EfiStoreInvalidError("does not begin as a flash volume of variables")
    if header + _STORE.size > len(flash):
        raise EfiStoreInvalidError("ends within its headers")
    store, size, formatted, state = _STORE.unpack_from(flash, header)
    if store != _STORE_TYPE.bytes_le or (formatted, state) != (_FORMATTED, _HEALTHY):
        raise EfiStoreInvalidError("has no healthy store of authenticated variables")
    if header + size > len(flash):
        raise EfiStoreInvalidError("ends within its store")
    return header + _STORE.size, header + size


def _walk(flash: bytes, start: int, limit: int) -> Iterator[tuple[int, Variable]]:
    """Yield each variable with the byte behind it."""
    at = start
    while at + _VARIABLE.size <= limit:
        begin, state, _, _, _, name, data, vendor = _VARIABLE.unpack_from(flash, at)
        if begin != _BEGIN:
            if flash[at : at + _VARIABLE.size].count(_ERASED) != _VARIABLE.size:
                raise EfiStoreInvalidError(f"has at byte {at} neither a variable nor erased flash")
            return
        body = at + _VARIABLE.size
        end = _aligned(body + name + data)
        if end > limit:
            raise EfiStoreInvalidError(f"has at byte {at} a variable that ends outside")
        text = flash[body : body + name].decode("utf-16-le", errors="replace")
        yield (
            end,
            Variable(
                vendor=uuid.UUID(bytes_le=vendor),
                name=text.removesuffix("\0"),
                data=flash[body + name : body + name + data],
                is_live=not state & _ADDED_BITS and bool(state & _DELETED_BIT),
            ),
        )
        at = end


def _entry(name: str, data: bytes) -> bytes:
    text = f"{name}\0".encode("utf-16-le")
    sizes = len(text), len(data)
    head = _VARIABLE.pack(_BEGIN, _ADDED, ATTRIBUTES, 0, 0, *sizes, BOOT_VENDOR.bytes_le)
    entry = head + text + data
    return entry.ljust(_aligned(len(entry)), bytes([_ERASED]))


def _aligned(byte: int) -> int:
    return byte + -byte % 4
