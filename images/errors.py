"""What can go wrong with an image, a payload or a release document, as one tree.

Each leaf owns a stable code, a hint for a person and an exit status. Nothing is raised here.

    ImagesError
    ├── PayloadError                the file is not what its format promises
    │   ├── PayloadMagicError, PayloadVersionError, TruncatedPayloadError
    │   ├── TrailingBytesError, PayloadLimitsError, ManifestInvalidError
    │   ├── OperationOutputError, PartitionMismatchError, ManifestContradictionError
    │   └── UnsupportedError        a sound payload that we do not apply
    │       ├── OperationUnsupportedError
    │       ├── CoderMissingError
    │       └── DeltaUnsupportedError
    ├── PayloadRefusedError         the bytes are not the ones that were signed
    │   ├── MetadataSignatureError, PayloadSignatureError, PayloadUnsignedError
    │   └── MetadataMismatchError, BlobMismatchError
    ├── SourceMissingError, SourceMismatchError, IndexMissingError
    ├── KeyUnreadableError, KeyUnsuitableError, KeyExistsError
    ├── DocumentInvalidError, VersionInvalidError
    ├── FileUnreadableError, FileWriteError, ImageSizeError, PartUnknownError
    ├── LibraryMissingError                                         building a delta
    └── ToolMissingError, ToolFailedError, KernelModuleError        building the reference OS
        PackagesDifferError, PythonDiffersError, SourceFolderError
"""

from __future__ import annotations

from typing import ClassVar

EXIT_REFUSED = 3  # trust or policy said no; see the exit statuses in docs


class ImagesError(Exception):
    """Any failure this room reports; `str()` of it is one sentence with the values.

    Attributes:
        code: kebab-case, stable, never reused: operators grep and alert on it.
        hint: what a person should do next.
        exit_status: what a command that ends with it returns.
    """

    code: ClassVar[str] = "images"
    hint: ClassVar[str] = "Report this: an error of the images room has no code of its own."
    exit_status: ClassVar[int] = 1


class PayloadError(ImagesError):
    """The payload is not what its format promises."""


class PayloadMagicError(PayloadError):
    """The file does not begin with the magic of a payload."""

    code = "payload-magic"
    hint = "Give a CrAU payload, as `bascule-image build` writes it; this is another kind of file."


class PayloadVersionError(PayloadError):
    """The payload has a major version that we do not read."""

    code = "payload-version"
    hint = "Build the payload in format 2 or 1, or take a newer bascule."


class TruncatedPayloadError(PayloadError):
    """The payload ends before the bytes that it names."""

    code = "payload-truncated"
    hint = "Fetch or copy the payload again: its end is missing."


class TrailingBytesError(PayloadError):
    """The payload goes on after its last named byte."""

    code = "payload-trailing"
    hint = "Fetch or copy the payload again: nothing may follow its signatures."


class PayloadLimitsError(PayloadError):
    """The payload claims more than a node is willing to hold in memory."""

    code = "payload-limits"
    hint = "Build the payload with smaller chunks or parts; images/README.md lists the limits."


class ManifestInvalidError(PayloadError):
    """The manifest cannot be parsed, or contradicts itself or the file."""

    code = "manifest-invalid"
    hint = "Build the payload again, or fetch it again if it came over a network."


class OperationOutputError(PayloadError):
    """A blob does not unpack to exactly what its operation announces."""

    code = "operation-output"
    hint = "Build the payload again: its hashes are right, what it unpacks to is not."


class PartitionMismatchError(PayloadError):
    """What was written is not the image that the manifest names."""

    code = "partition-mismatch"
    hint = "Check the disk that holds the output, then apply the payload again."


class ManifestContradictionError(PayloadError):
    """Each operation makes what it says, and together they do not make the image."""

    code = "manifest-contradiction"
    hint = (
        "Do not publish it: a node would install what it makes. Build it again from an image that"
        " does not change meanwhile; if that makes the same, report a broken builder."
    )


class UnsupportedError(PayloadError):
    """The payload may be sound, but it is not one that we apply."""

    exit_status = EXIT_REFUSED


class OperationUnsupportedError(UnsupportedError):
    """The payload asks for an operation that we do not carry out."""

    code = "operation-unsupported"
    hint = "Use the full payload of the release; images/README.md lists what is carried out."


class CoderMissingError(UnsupportedError):
    """The payload packs bytes again with a coder that this system does not have."""

    code = "coder-missing"
    hint = (
        "Another payload of the release is used; for this one the node's liblz4, libzstd, zlib and"
        " gzip must have the very versions of the machine that built it."
    )


class DeltaUnsupportedError(UnsupportedError):
    """The payload is a delta that is not applied here: unknown, or no old image is at hand."""

    code = "delta-unsupported"
    hint = "Use the full payload of the same release."


class PayloadRefusedError(ImagesError):
    """The bytes are not the ones that a trusted key signed."""

    exit_status = EXIT_REFUSED


class MetadataSignatureError(PayloadRefusedError):
    """No trusted key made the signature over header and manifest."""

    code = "metadata-signature"
    hint = "Use the payload and the public key of the same signer; the file may be tampered with."


class PayloadSignatureError(PayloadRefusedError):
    """No trusted key made the signature over the payload."""

    code = "payload-signature"
    hint = "Use the payload and the public key of the same signer; the file may be tampered with."


class PayloadUnsignedError(PayloadRefusedError):
    """The payload carries no signature although a key is given."""

    code = "payload-unsigned"
    hint = "Sign the payload: `bascule-image build --key NAME.key.pem`."


class MetadataMismatchError(PayloadRefusedError):
    """Header and manifest are not the ones that the signed release names."""

    code = "metadata-mismatch"
    hint = "The mirror may be stale or tampered with; take another one, or publish again."


class BlobMismatchError(PayloadRefusedError):
    """The bytes of an operation are not the ones that its manifest names."""

    code = "blob-mismatch"
    hint = "Fetch or copy the payload again; if it happens again, the source is damaged."


class SourceMissingError(ImagesError):
    """A delta is to be applied without the image that it starts from."""

    code = "source-missing"
    hint = "Give the old image (`--source NAME=FILE`), or use the full payload of the release."


class SourceMismatchError(ImagesError):
    """The old image is not the one that a delta starts from."""

    code = "source-mismatch"
    hint = "Use the image that the delta was built from, or the full payload of the release."


class IndexMissingError(ImagesError):
    """A payload that blocks are to be looked up in has no block index."""

    code = "index-missing"
    hint = "Name full payloads that `bascule-image build` wrote without --compat."


class KeyUnreadableError(ImagesError):
    """A key file is missing or is no PEM key."""

    code = "key-unreadable"
    hint = "Give a PEM file; `bascule-image keygen NAME` makes NAME.key.pem and NAME.pub.pem."


class KeyUnsuitableError(ImagesError):
    """A key is of a kind or size that payloads are not signed with."""

    code = "key-unsuitable"
    hint = "Use RSA-2048 or 4096, or EC P-256 in format 2 alone: `bascule-image keygen NAME`."


class KeyExistsError(ImagesError):
    """A new key would replace one that exists."""

    code = "key-exists"
    hint = "Choose another name, or move the old key away: a lost key cannot be made again."


class DocumentInvalidError(ImagesError):
    """A release document breaks its schema."""

    code = "document-invalid"
    hint = "Publish the document again with this version of `bascule-server`."


class VersionInvalidError(ImagesError):
    """A version is not one that can be ordered."""

    code = "version-invalid"
    hint = "Write 1.2.3, 1.2.3-rc.1 or 1.2.3+build: 1 to 6 numbers, at most 64 characters."


class FileUnreadableError(ImagesError):
    """A file that was named cannot be read."""

    code = "file-unreadable"
    hint = "Check the path and its permissions."


class FileWriteError(ImagesError):
    """An output cannot be written."""

    code = "file-write"
    hint = "Check the folder, its permissions and the free space; nothing was left behind."


class ImageSizeError(ImagesError):
    """An image has a size that a payload cannot hold."""

    code = "image-size"
    hint = "Pad the image to whole blocks, for example `truncate -s %4096 IMAGE`."


class PartUnknownError(ImagesError):
    """A part was named that the payload does not have, or named wrongly."""

    code = "part-unknown"
    hint = "See the parts of a payload with `bascule-image inspect`; write them as NAME=FILE."


class LibraryMissingError(ImagesError):
    """A library that only builders need is not installed."""

    code = "library-missing"
    hint = "Install bascule with its extra `server`, or numpy alone."


class ToolMissingError(ImagesError):
    """A program that the recipe of the reference OS runs is not installed."""

    code = "recipe-program-missing"
    hint = "Install it; docs/reference-os.md lists what the recipe needs."


class ToolFailedError(ImagesError):
    """A program that the recipe of the reference OS runs failed."""

    code = "recipe-program-failed"
    hint = "Its own last lines say why; mmdebstrap needs the network or a mirror (`--mirror`)."


class KernelModuleError(ImagesError):
    """The kernel of the reference OS lacks a module that it is to have."""

    code = "kernel-module"
    hint = "Take the name out of the recipe, or take another kernel."


class PackagesDifferError(ImagesError):
    """Debian's packages are not of the versions that were asked for."""

    code = "packages-differ"
    hint = "Name a mirror that still has them (`--mirror`, a snapshot), or build without a list."


class PythonDiffersError(ImagesError):
    """This machine's Python is not the one of the image, whose bytecode it is to compile."""

    code = "python-differs"
    hint = "Build on Debian 12, or in a container of it: both need the same Python."


class SourceFolderError(ImagesError):
    """The recipe does not find the sources of bascule that it installs."""

    code = "source-folder"
    hint = "Run it from a checkout, or name one: `--source FOLDER`."
