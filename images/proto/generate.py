"""Make `payload_pb2.py` and its types from `payload.proto`, or tell whether they are current.

Run as `python -m images.proto.generate [--check]`. A development tool: it needs grpcio-tools,
nothing else of bascule imports it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Final

from grpc_tools import protoc  # type: ignore[import-untyped]  # it ships no types

HERE: Final = Path(__file__).parent
PRODUCTS: Final = ("payload_pb2.py", "payload_pb2.pyi")


def generate() -> dict[str, bytes]:
    """Return the generated files by name.

    Raises:
        RuntimeError: the compiler refuses the schema.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = [f"--proto_path={HERE}", f"--python_out={folder}", f"--pyi_out={folder}"]
        status = protoc.main(["protoc", *arguments, "payload.proto"])
        if status != 0:
            raise RuntimeError(f"the protobuf compiler ended with status {status}")
        return {name: (Path(folder) / name).read_bytes() for name in PRODUCTS}


def stale() -> list[str]:
    """Return the names of the checked-in files that differ from the generated ones."""
    made = generate()
    return [name for name in PRODUCTS if _held(name) != made[name]]


def main(arguments: list[str]) -> int:
    """Write the files, or with `--check` only tell; return the exit status."""
    if "--check" in arguments:
        names = stale()
        for name in names:
            sys.stderr.write(f"images/proto/{name} is not what payload.proto makes\n")
        return 1 if names else 0
    for name, content in generate().items():
        (HERE / name).write_bytes(content)
    return 0


def _held(name: str) -> bytes:
    path = HERE / name
    return path.read_bytes() if path.exists() else b""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
