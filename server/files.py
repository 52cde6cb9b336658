"""Files over HTTP: signed metadata, what it names, payloads with ranges. Names never reach out.

What has a version or a hash in its name never changes and may be kept for ever by any cache;
`timestamp.json` is asked for anew each time; what is missing may come, so that is never kept.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from starlette.responses import FileResponse, Response
from starlette.staticfiles import NotModifiedResponse, StaticFiles
from typing_extensions import override

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from starlette.types import Scope

IMMUTABLE: Final = "public, max-age=31536000, immutable"
REVALIDATE: Final = "no-cache"
CHUNK_BYTES: Final = 1024 * 1024  # a payload is read by threads: few, large steps

_VERSIONED: Final = re.compile(r"(?:[0-9]+\.[a-z0-9-]+\.json|[0-9a-f]{64}\..+)", re.ASCII)
_PAYLOAD: Final = re.compile(r"([0-9a-f]{64})\.crau", re.ASCII)


class LargeFileResponse(FileResponse):
    """A file in large steps; ranges are Starlette's."""

    chunk_size = CHUNK_BYTES


class _Folder(StaticFiles):
    """A folder whose answers say how long they may be kept."""

    def __init__(self, folder: Path) -> None:
        super().__init__(directory=folder, check_dir=False)

    @override
    def file_response(
        self,
        full_path: str | os.PathLike[str],
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        from starlette.datastructures import Headers

        name = str(full_path).rpartition("/")[2]
        response = LargeFileResponse(
            full_path, status_code=status_code, stat_result=stat_result, headers=self.headers(name)
        )
        if self.is_not_modified(response.headers, Headers(scope=scope)):
            return NotModifiedResponse(response.headers)
        return response

    def headers(self, name: str) -> dict[str, str]:
        """Return what a file's answer says beside the file itself."""
        return {"Cache-Control": IMMUTABLE if _VERSIONED.fullmatch(name) else REVALIDATE}


class RepositoryFiles(_Folder):
    """Signed metadata, or the targets that it names."""


class StaticFolder(_Folder):
    """Our own style sheet and script."""


class PayloadFiles(_Folder):
    """Payloads by hash; nothing else of the folder has a name."""

    @override
    async def get_response(self, path: str, scope: Scope) -> Response:
        if not _PAYLOAD.fullmatch(path):
            return Response("not found\n", status_code=404, media_type="text/plain")
        return await super().get_response(path, scope)

    @override
    def headers(self, name: str) -> dict[str, str]:
        return {"Cache-Control": IMMUTABLE, "ETag": f'"{name.partition(".")[0]}"'}
