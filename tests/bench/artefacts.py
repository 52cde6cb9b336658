"""What is made once and measured often: payloads, deltas, bundles, each with what making it cost.

A file NAME in the folder has NAME.made.json beside it, which says from what it was made, by which
state of its maker, and at what cost. A file without one was put there by somebody: it is taken, and
what it cost is not known.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from backports import zstd

from tests.bench.measure import CommandFailedError, Cost, run

ROOT: Final = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Made:
    """An artefact.

    Attributes:
        path: the file.
        size: its bytes.
        cost: of making it; None when it was put there.
        stale: an earlier state of its maker made it.
    """

    path: Path
    size: int
    cost: Cost | None
    stale: bool = False


def inputs_key(images: Sequence[Path]) -> str:
    """Return what tells images apart: names, sizes, times."""
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in images]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def our_key() -> str:
    """Return the state of our own builder: its sources and the library that packs."""
    sha256 = hashlib.sha256(zstd.zstd_version.encode())
    for source in sorted((ROOT / "images").rglob("*.py")):
        if "reference" not in source.parts:
            sha256.update(source.read_bytes())
    return sha256.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Artefacts:
    """A folder of artefacts.

    Attributes:
        folder: where they are.
        scratch: for what making one needs.
        keep: take what an earlier state of a maker made, and say so.
        makes: whether what is not there is made; else it is a failure.
        say: told what is being made.
    """

    folder: Path
    scratch: Path
    keep: bool
    say: Callable[[str], None]
    makes: bool = True

    def make(
        self, name: str, command: str | Sequence[str], *, images: Sequence[Path], maker: str
    ) -> Made:
        """Return an artefact, made now unless the one that is there is of the same inputs.

        Args:
            name: of the file.
            command: makes it; `{output}` in it stands for the file to write.
            images: that it is made from.
            maker: what makes it, in which state.

        Raises:
            CommandFailedError: making it failed, or is not to be tried.
        """
        path, note = self.folder / name, self.folder / f"{name}.made.json"
        wanted = {"inputs": inputs_key(images), "maker": maker}
        found = self._found(path, note, wanted)
        if found is not None:
            return found
        if not self.makes:
            raise CommandFailedError(f"{name} is not made yet")
        self.say(f"making {name}")
        draft = self.folder / f".{name}.part"
        filled = (
            command.replace("{output}", str(draft))
            if isinstance(command, str)
            else [word.replace("{output}", str(draft)) for word in command]
        )
        draft.unlink(missing_ok=True)
        cost = run(filled, folder=self.scratch)
        draft.replace(path)
        note.write_text(json.dumps(wanted | {"cost": asdict(cost) | {"output": ""}}))
        return Made(path=path, size=path.stat().st_size, cost=cost)

    def _found(self, path: Path, note: Path, wanted: dict[str, str]) -> Made | None:
        if not path.exists():
            return None
        size = path.stat().st_size
        if not note.exists():
            return Made(path=path, size=size, cost=None)
        known = json.loads(note.read_text())
        stale = known["maker"] != wanted["maker"]
        if known["inputs"] != wanted["inputs"] or (stale and not self.keep):
            return None
        return Made(path=path, size=size, cost=Cost(**known["cost"]), stale=stale)
