"""The numbers of Omaha events and of engine errors, and how our own codes map to them.

Numbers 0 to 44 and 2000 to 2999 are those of the stock engine. A failure of ours that the stock
engine has no number for is reported as `BASCULE` (5000); its stable code travels beside it in
the attribute `bascule_code`.
"""

from __future__ import annotations

import enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


class EventType(enum.IntEnum):
    """What an event is about; only those that engines send are named."""

    UNKNOWN = 0
    DOWNLOAD_COMPLETE = 1
    INSTALL_COMPLETE = 2
    UPDATE_COMPLETE = 3
    UPDATE_DOWNLOAD_STARTED = 13
    UPDATE_DOWNLOAD_FINISHED = 14
    UPDATE_INSTALLED = 800  # Nebraska's own: installed, waits for the reboot


class EventResult(enum.IntEnum):
    """How it went; only those that engines send are named."""

    ERROR = 0
    SUCCESS = 1
    SUCCESS_REBOOTED = 2
    DEFERRED = 9


class EngineError(enum.IntEnum):
    """Error numbers of the stock engine that we send or explain."""

    SUCCESS = 0
    ERROR = 1
    OMAHA_REQUEST = 2
    OMAHA_RESPONSE_HANDLER = 3
    FILESYSTEM_COPIER = 4
    POSTINSTALL = 5
    SET_BOOTABLE_FLAG = 6
    INSTALL_DEVICE_OPEN = 7
    KERNEL_DEVICE_OPEN = 8
    DOWNLOAD_TRANSFER = 9
    PAYLOAD_HASH_MISMATCH = 10
    PAYLOAD_SIZE_MISMATCH = 11
    PAYLOAD_VERIFICATION = 12
    NEW_PARTITION_INFO = 13
    DOWNLOAD_WRITE = 14
    NEW_ROOTFS_VERIFICATION = 15
    NEW_KERNEL_VERIFICATION = 16
    SIGNED_DELTA_EXPECTED = 17
    PAYLOAD_PUBLIC_KEY_VERIFICATION = 18
    BOOTED_FROM_FIRMWARE_B = 19
    DOWNLOAD_STATE_INITIALIZATION = 20
    METADATA_MAGIC = 21
    SIGNATURE_MISSING_IN_MANIFEST = 22
    MANIFEST_PARSE = 23
    METADATA_SIGNATURE = 24
    METADATA_SIGNATURE_VERIFICATION = 25
    METADATA_SIGNATURE_MISMATCH = 26
    OPERATION_HASH_VERIFICATION = 27
    OPERATION_EXECUTION = 28
    OPERATION_HASH_MISMATCH = 29
    OMAHA_EMPTY_RESPONSE = 30
    OMAHA_XML_PARSE = 31
    METADATA_SIZE = 32
    METADATA_SIGNATURE_INVALID = 33
    OMAHA_RESPONSE_INVALID = 34
    IGNORED_PER_POLICY = 35
    DEFERRED_PER_POLICY = 36
    OMAHA_HTTP = 37
    OPERATION_HASH_MISSING = 38
    METADATA_SIGNATURE_MISSING = 39
    DEFERRED_FOR_BACKOFF = 40
    POWERWASH = 41
    PCR_POLICY_VERIFICATION = 42
    PCR_POLICY_HTTP = 43
    ROLLBACK = 44
    DOWNLOAD_INCOMPLETE = 100
    BASCULE = 5000  # ours: read the attribute bascule_code


HTTP_ERROR_BASE: Final = 2000  # 2000 + status; 2000 itself: no answer at all
HTTP_ERROR_ODD: Final = 2999  # the status was no HTTP status
_FLAG_BITS: Final = 0xF000_0000  # dev mode, resumed, test image, non-default server
_WORD: Final = 0xFFFF_FFFF

TRIAL_PREFIX: Final = "trial-"  # our codes of a slot that did not prove healthy
TRIAL_SHUT_DOWN: Final = "trial-shut-down"
TRIAL_FELL_BACK: Final = "trial-fell-back"
# Trials that people ended: the node needs one who says `--force`, other nodes have nothing to fear.
BLAMELESS_TRIALS: Final = frozenset({TRIAL_SHUT_DOWN, TRIAL_FELL_BACK})

BASCULE_CODE_NUMBERS: Final[Mapping[str, EngineError]] = MappingProxyType(
    {
        "omaha-format": EngineError.OMAHA_XML_PARSE,
        "offer-mismatch": EngineError.OMAHA_RESPONSE_INVALID,
        "device-open": EngineError.INSTALL_DEVICE_OPEN,
        "device-busy": EngineError.INSTALL_DEVICE_OPEN,
        "device-write": EngineError.DOWNLOAD_WRITE,
        "download-failed": EngineError.DOWNLOAD_TRANSFER,
        "payload-hash": EngineError.PAYLOAD_HASH_MISMATCH,
        "payload-digest": EngineError.PAYLOAD_HASH_MISMATCH,
        "payload-truncated": EngineError.PAYLOAD_SIZE_MISMATCH,
        "payload-trailing": EngineError.PAYLOAD_SIZE_MISMATCH,
        "source-mismatch": EngineError.DOWNLOAD_STATE_INITIALIZATION,
        "copy-mismatch": EngineError.FILESYSTEM_COPIER,
        "payload-magic": EngineError.METADATA_MAGIC,
        "payload-limits": EngineError.METADATA_SIZE,
        "manifest-invalid": EngineError.MANIFEST_PARSE,
        "metadata-signature": EngineError.METADATA_SIGNATURE_MISMATCH,
        "payload-signature": EngineError.PAYLOAD_PUBLIC_KEY_VERIFICATION,
        "payload-unsigned": EngineError.SIGNED_DELTA_EXPECTED,
        "operation-unsupported": EngineError.OPERATION_EXECUTION,
        "coder-missing": EngineError.OPERATION_EXECUTION,
        "operation-output": EngineError.OPERATION_EXECUTION,
        "blob-mismatch": EngineError.OPERATION_HASH_MISMATCH,
        "partition-mismatch": EngineError.NEW_ROOTFS_VERIFICATION,
        "readback-mismatch": EngineError.NEW_ROOTFS_VERIFICATION,
        "postinstall-failed": EngineError.POSTINSTALL,
        "postinstall-mount": EngineError.POSTINSTALL,
        "postinstall-firmware": EngineError.BOOTED_FROM_FIRMWARE_B,
        "boot-control": EngineError.SET_BOOTABLE_FLAG,
    }
)


def number_of(bascule_code: str) -> int:
    """Return the `errorcode` to send for one of our kebab-case codes.

    A code of a failed trial is a rollback (44) to every server; a code without a number of
    its own is `EngineError.BASCULE`.
    """
    if bascule_code.startswith(TRIAL_PREFIX):
        return EngineError.ROLLBACK
    return BASCULE_CODE_NUMBERS.get(bascule_code, EngineError.BASCULE)


def without_flags(error_code: int) -> int:
    """Return the number without the engine's four flag bits; negative ones are read as 32 bits."""
    return error_code & _WORD & ~_FLAG_BITS


def is_failed_trial(*, error_code: int | None, bascule_code: str) -> bool:
    """Tell whether a reported failure means that a new slot was booted and did not hold."""
    if bascule_code.startswith(TRIAL_PREFIX):
        return True
    return error_code is not None and without_flags(error_code) == EngineError.ROLLBACK


def speaks_against_version(*, error_code: int | None, bascule_code: str) -> bool:
    """Tell whether a failed trial may be the version's fault, so that no other node shall try it.

    A stock engine's rollback has no cause, so it may.
    """
    if bascule_code in BLAMELESS_TRIALS:
        return False
    return is_failed_trial(error_code=error_code, bascule_code=bascule_code)
