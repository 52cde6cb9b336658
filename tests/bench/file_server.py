"""Files of a folder with ranges, for who has no nginx: `file_server FOLDER PORT LOG`."""

from __future__ import annotations

import re
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from typing_extensions import override


def handler_of(root: Path, log: Path) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:  # http.server has it so
            path = root / self.path.rpartition("/")[2]
            if not path.is_file():
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            size = path.stat().st_size
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            start = int(asked[1]) if asked else 0
            end = min(int(asked[2]) + 1, size) if asked and asked[2] else size
            self.send_response(HTTPStatus.PARTIAL_CONTENT if asked else HTTPStatus.OK)
            self.send_header("Content-Length", str(end - start))
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
            self.end_headers()
            with path.open("rb") as file:
                self.connection.sendfile(file, start, end - start)
            with log.open("a") as lines:
                lines.write(f"{end - start}\n")

        @override
        def log_message(self, format: str, *args: object) -> None:
            """Stay silent."""

    return Handler


def main(root: Path, port: int, log: Path) -> None:
    ThreadingHTTPServer(("127.0.0.1", port), handler_of(root, log)).serve_forever()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
