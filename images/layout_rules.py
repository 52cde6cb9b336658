"""What a full payload of our own layout must keep: dictionaries, block index, ages. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Final

from images.dictionary import DICTIONARY_MAX
from images.errors import ManifestInvalidError, PayloadLimitsError
from images.payload import CLEARS, READS_TARGET, BlockIndex, IndexGroup, Operation, Part
from images.proto import payload_pb2 as pb

HASH_SIZES: Final = range(6, 9)  # bytes of a short hash
INDEX_GROUP_MAX: Final = 1024 * 1024  # bytes of a group, which is held in memory
AGES_MAX: Final = 64
_SHA256_SIZE: Final = 32


def check_dictionaries(part: Part) -> None:
    """Check that each dictionary is output of operations just before, within 8 MiB.

    What counts is all that is made from the first of these operations up to the one that uses
    them: whoever carries operations out in order holds so much and never reads back.

    Raises:
        ManifestInvalidError: it is not made yet, or its bytes or those made of it have no hash.
        PayloadLimitsError: it reaches back too far.
    """
    made = _sums(0 if op.kind in CLEARS else op.output_limit for op in part.operations)
    unusable = _sums(int(op.kind in CLEARS or op.dst_sha256 is None) for op in part.operations)
    for number, operation in enumerate(part.operations):
        used = operation.dictionary
        if operation.kind not in READS_TARGET:
            if used:
                raise ManifestInvalidError(
                    f"an operation {operation.kind.name} of part {part.name} has a dictionary"
                )
            continue
        what = f"operation {number} of part {part.name}"
        if not used or used.stop > number:
            raise ManifestInvalidError(
                f"{what} takes operations {used.start} to {used.stop} for its dictionary"
            )
        if operation.dst_sha256 is None or unusable[used.stop] - unusable[used.start]:
            raise ManifestInvalidError(f"{what} or its dictionary has no hash of what is made")
        if made[number] - made[used.start] > DICTIONARY_MAX:
            raise PayloadLimitsError(
                f"the dictionary of {what} begins {made[number] - made[used.start]} bytes before"
                f" it, at most {DICTIONARY_MAX} are allowed"
            )


def _sums(values: Iterable[int]) -> list[int]:
    """Return the sum before each value, and that of all."""
    return [0, *accumulate(values)]


def block_index(
    part: Part, update: pb.PartitionUpdate, *, start: int, block_size: int
) -> BlockIndex | None:
    """Return the block index of a part, whose bytes begin at `start` of the data area.

    Raises:
        ManifestInvalidError: it names other operations than there are, or operations without
            a hash of what they make; or it belongs to a delta.
        PayloadLimitsError: a group is too large.
    """
    if not update.index_groups:
        return None
    _check_indexed(part, update)
    groups: list[IndexGroup] = []
    first = 0
    for message in update.index_groups:
        operations = part.operations[first : first + message.operations]
        length = update.index_hash_size * sum(
            blocks_of(operation, block_size) for operation in operations
        )
        if length > INDEX_GROUP_MAX:
            raise PayloadLimitsError(
                f"a group of the index of part {part.name} has {length} bytes,"
                f" at most {INDEX_GROUP_MAX} are allowed"
            )
        groups.append(
            IndexGroup(
                first=first,
                count=len(operations),
                offset=start,
                length=length,
                sha256=message.sha256,
            )
        )
        first, start = first + len(operations), start + length
    return BlockIndex(hash_size=update.index_hash_size, groups=tuple(groups))


def blocks_of(operation: Operation, block_size: int) -> int:
    """Return how many hashes the index has for an operation."""
    return 0 if operation.kind in CLEARS else operation.output_limit // block_size


def check_ages(part: Part, ages: Sequence[int]) -> tuple[int, ...]:
    """Return the operations of each age.

    Raises:
        ManifestInvalidError: they are not all operations of the part, or too many ages.
    """
    if ages and (len(ages) > AGES_MAX or sum(ages) != len(part.operations)):
        raise ManifestInvalidError(
            f"part {part.name} has {len(part.operations)} operations,"
            f" its {len(ages)} ages have {sum(ages)}"
        )
    return tuple(ages)


def _check_indexed(part: Part, update: pb.PartitionUpdate) -> None:
    named = sum(group.operations for group in update.index_groups)
    if part.old_size is not None or named != len(part.operations):
        raise ManifestInvalidError(
            f"the index of part {part.name} names {named} operations of {len(part.operations)}"
        )
    if update.index_hash_size not in HASH_SIZES:
        raise ManifestInvalidError(
            f"the index of part {part.name} has hashes of {update.index_hash_size} bytes"
        )
    if any(operation.dst_sha256 is None for operation in part.operations):
        raise ManifestInvalidError(f"part {part.name} has an index, but not all hashes")
    for group in update.index_groups:
        if group.operations == 0 or len(group.sha256) != _SHA256_SIZE:
            raise ManifestInvalidError(
                f"the index of part {part.name} has a group of {group.operations} operations"
                f" with a hash of {len(group.sha256)} bytes"
            )
