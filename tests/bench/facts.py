"""Facts beside a payload, as a channel would sign them: `python -m tests.bench.facts PAYLOAD`.

They are what `install_once` trusts. The public key is the first of `keys/*.pub.pem` beside the
payload that signed it; a payload without a signature has none.
"""

from __future__ import annotations

import hashlib
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from images.errors import ImagesError
from images.reader import Accept, PayloadFile, verify_file
from images.release import encode_payload_facts, facts_of
from images.signing import load_public_keys


def describe(payload: Path) -> Path:
    """Write the facts of a payload beside it, unless they are newer than it; return where."""
    output = payload.with_name(payload.name + ".facts.json")
    if output.exists() and output.stat().st_mtime_ns > payload.stat().st_mtime_ns:
        return output
    with PayloadFile.open(payload) as file:
        is_delta = file.metadata(None, accept=Accept.ANY).manifest.is_delta
    facts = facts_of(
        payload,
        product="bench",
        board="bench",
        version="2.0.0",
        rollback_index=1,
        min_engine="0.1.0",
        created=datetime.now(UTC),
        source_version="1.0.0" if is_delta else None,
    )
    with payload.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    about: dict[str, Any] = {
        "facts": encode_payload_facts(facts),
        "sha256": sha256,
        "size": payload.stat().st_size,
        "key": signer(payload),
    }
    output.write_text(json.dumps(about))
    return output


def signer(payload: Path) -> str:
    """Return the public key, as PEM, that signed a payload; empty when none here did."""
    for key in sorted((payload.parent / "keys").glob("*.pub.pem")):
        try:
            verify_file(payload, load_public_keys(key))
        except ImagesError:
            continue
        return key.read_text()
    return ""


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(describe(Path(name)))
