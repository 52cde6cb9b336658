"""The errors of all rooms a node is made of, for those who must catch any of them.

Apart from `errors`, because the Omaha messages use that and must know neither room.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from images.errors import ImagesError
from partitions.errors import PartitionsError
from updater.errors import UpdaterError

# What any room may raise with a code, a sentence and a hint.
AnyRoomError: TypeAlias = UpdaterError | ImagesError | PartitionsError
ROOM_ERRORS: Final = (UpdaterError, ImagesError, PartitionsError)
