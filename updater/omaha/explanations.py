"""What the stock engine's error numbers mean: its own name of each, and a phrase for people. Pure.

The names are those of the engine's log, without their common beginning `kActionCode`, so that an
operator finds them in both places.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from updater.omaha.codes import HTTP_ERROR_BASE, HTTP_ERROR_ODD, without_flags

if TYPE_CHECKING:
    from collections.abc import Mapping

EXPLANATIONS: Final[Mapping[int, tuple[str, str]]] = MappingProxyType({
    0: ("Success", "nothing failed"),
    1: ("Error", "the engine gave no reason"),
    2: ("OmahaRequestError", "the update check failed"),
    3: ("OmahaResponseHandlerError", "the offer does not suit the machine's partitions"),
    4: ("FilesystemCopierError", "the running partition could not be copied"),
    5: ("PostinstallRunnerError", "the new image could not be mounted or its program failed"),
    6: ("SetBootableFlagError", "the new partition could not be made the boot target"),
    7: ("InstallDeviceOpenError", "the passive partition or kernel file could not be opened"),
    8: ("KernelDeviceOpenError", "the kernel file could not be opened"),
    9: ("DownloadTransferError", "the payload could not be downloaded"),
    10: ("PayloadHashMismatchError", "the payload is not the one that was offered"),
    11: ("PayloadSizeMismatchError", "the payload has another size than was offered"),
    12: ("DownloadPayloadVerificationError", "the payload does not say what it makes"),
    13: ("DownloadNewPartitionInfoError", "the payload does not describe the new partition"),
    14: ("DownloadWriteError", "the download could not be written"),
    15: ("NewRootfsVerificationError", "the written partition is not what the payload promised"),
    16: ("NewKernelVerificationError", "the written kernel is not what the payload promised"),
    17: ("SignedDeltaPayloadExpectedError", "the payload is not signed"),
    18: ("DownloadPayloadPubKeyVerificationError", "no key of the machine signed the payload"),
    19: ("PostinstallBootedFromFirmwareB", "the machine runs from its second firmware"),
    20: ("DownloadStateInitializationError", "the source partition or resume state is not right"),
    21: ("DownloadInvalidMetadataMagicString", "what was downloaded is no payload"),
    22: ("DownloadSignatureMissingInManifest", "the payload names no signature"),
    23: ("DownloadManifestParseError", "the engine cannot read the payload's manifest"),
    24: ("DownloadMetadataSignatureError", "the metadata signature could not be checked"),
    25: ("DownloadMetadataSignatureVerificationError", "the metadata signature was not verified"),
    26: ("DownloadMetadataSignatureMismatch", "the metadata signature is wrong"),
    27: ("DownloadOperationHashVerificationError", "an operation's hash could not be checked"),
    28: ("DownloadOperationExecutionError", "an operation of the payload could not be applied"),
    29: ("DownloadOperationHashMismatch", "an operation's data arrived damaged"),
    30: ("OmahaRequestEmptyResponseError", "the server's answer was empty"),
    31: ("OmahaRequestXMLParseError", "the server's answer was no XML"),
    32: ("DownloadInvalidMetadataSize", "the metadata has another size than was offered"),
    33: ("DownloadInvalidMetadataSignature", "the metadata signature cannot be read"),
    34: ("OmahaResponseInvalid", "the server's answer was an error or lacked something"),
    35: ("OmahaUpdateIgnoredPerPolicy", "the machine's policy ignores the update"),
    36: ("OmahaUpdateDeferredPerPolicy", "the machine's policy puts the update off"),
    37: ("OmahaErrorInHTTPResponse", "the server answered with an HTTP error"),
    38: ("DownloadOperationHashMissingError", "an operation of the payload has no hash"),
    39: ("DownloadMetadataSignatureMissingError", "the metadata signature is missing"),
    40: ("OmahaUpdateDeferredForBackoff", "the machine waits before it tries the download again"),
    41: ("PostinstallPowerwashError", "wiping the machine could not be prepared"),
    42: ("NewPCRPolicyVerificationError", "the PCR policy is not what the payload promised"),
    43: ("NewPCRPolicyHTTPError", "the PCR policy could not be sent to its server"),
    44: ("RollbackError", "the new version did not come up; the machine runs the old one"),
    100: ("DownloadIncomplete", "the download ended early"),
    HTTP_ERROR_BASE: ("OmahaRequestHTTPResponseBase", "the server did not answer"),
    HTTP_ERROR_ODD: ("OmahaRequestHTTPResponseBase", "the server answered with no HTTP status"),
    5000: ("Bascule", "a failure that stock engines do not have"),
})  # fmt: skip


def sentence_of(error_code: int) -> str:
    """Return the number in words, flag bits ignored: phrase, the engine's name, number.

    Such as `the payload could not be downloaded (DownloadTransferError, 9)`.
    """
    number = without_flags(error_code)
    if number in EXPLANATIONS:
        name, phrase = EXPLANATIONS[number]
        return f"{phrase} ({name}, {number})"
    if HTTP_ERROR_BASE < number < HTTP_ERROR_ODD:
        status = number - HTTP_ERROR_BASE
        return f"the server answered HTTP {status} (OmahaRequestHTTPResponseBase, {number})"
    return f"an error that has no name here ({number})"
