"""Deltas of a release: which are worth making, from where each starts, which are kept. Pure.

A delta says of itself which images it starts from and which it makes, by their digests. Which
versions these are is looked up among what was signed: nobody has to say it, and nobody can err.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from images.version import parse_version
from server.errors import DeltaSourceUnknownError, DeltaTargetError
from server.wording import size_words

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from images.payload import Manifest
    from images.release import PayloadFacts

# Of the full payload's bytes. A delta beyond it saves a node little and costs it more work (it
# reads and patches the old image), a failed one is followed by the full payload, and each has to be
# kept, mirrored and signed for: between two builds of one system they come to a tenth or less.
PAYS_SHARE: Final = 0.7
# A channel document names at most 64 payloads of a release (`images.release.PayloadPaths`).
DELTAS_MAX: Final = 63


def starts_of(
    histories: Iterable[Sequence[str]], version: str, *, last: int, published: Collection[str]
) -> list[str]:
    """Return the versions that a delta to `version` is worth making from, newest first.

    Args:
        histories: for each channel what was current on it, newest first.
        version: what the deltas make.
        last: how many of each channel.
        published: versions that have a full payload to make the old images from.
    """
    new = parse_version(version)
    found: set[str] = set()
    for history in histories:
        older = [one for one in history if one in published and parse_version(one) < new]
        found.update(older[:last])
    return sorted(found, key=parse_version, reverse=True)


def pays(size: int, full_size: int) -> bool:
    """Tell whether a delta of `size` bytes is worth keeping beside a full payload."""
    return size <= PAYS_SHARE * full_size


def why_not(size: int, full_size: int, source: str) -> str:
    """Return the sentence that says why a delta is not kept."""
    return (
        f"the delta from {source} is not kept: its {size_words(size)} are"
        f" {100 * size / full_size:.0f} % of the full payload, more than {100 * PAYS_SHARE:.0f} %"
        " does not pay"
    )


def source_of(manifest: Manifest, full: PayloadFacts, others: Iterable[PayloadFacts]) -> str:
    """Return the version that a delta to the release of `full` starts from.

    Of several versions with the same images it is the highest.

    Args:
        manifest: of the delta.
        full: of the release's full payload.
        others: of the full payloads that were published.

    Raises:
        DeltaTargetError: it makes other images than the release.
        DeltaSourceUnknownError: it starts from images that were never published.
    """
    made = {part.name: (part.size, part.sha256.hex()) for part in manifest.parts}
    wanted = {part.name: (part.size, part.sha256) for part in full.partitions}
    if made != wanted:
        raise DeltaTargetError(
            f"the delta makes {_short(made)}, release {full.version} is {_short(wanted)}"
        )
    needed = {
        part.name: (part.old_size, part.old_sha256.hex() if part.old_sha256 else "")
        for part in manifest.parts
        if part.old_size is not None
    }
    found = [
        facts.version
        for facts in others
        if (facts.product, facts.board) == (full.product, full.board)
        and facts.version != full.version
        and needed.items() <= {p.name: (p.size, p.sha256) for p in facts.partitions}.items()
    ]
    if not needed or not found:
        raise DeltaSourceUnknownError(
            f"the delta to {full.version} starts from {_short(needed)}, which is no release of"
            f" {full.product}/{full.board}"
        )
    return max(found, key=parse_version)


def _short(images: dict[str, tuple[int, str]] | dict[str, tuple[int | None, str]]) -> str:
    """Name images by part, size and the start of their digest."""
    return ", ".join(
        f"{name} of {size} bytes {sha256[:12]}" for name, (size, sha256) in images.items()
    )
