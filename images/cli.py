"""The command `bascule-image`: arguments in, facts or three lines of error out. No rules here.

Other rooms add commands by the entry point group `bascule.image_commands`; they are loaded only
when they are called.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib.metadata import EntryPoint, entry_points
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import rich_click as click
from typing_extensions import override

from images.errors import (
    FileWriteError,
    PartUnknownError,
)

if TYPE_CHECKING:
    from images.assemble import Built
    from images.payload import Manifest, Part
    from images.reader import Progress
    from images.signing import TrustedKeys

PLUGIN_GROUP: Final = "bascule.image_commands"
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130  # 128 and the number of SIGINT, as shells have it


@runtime_checkable
class CodedError(Protocol):
    """What the error families of all rooms share."""

    code: str
    hint: str
    exit_status: int


class PluginGroup(click.RichGroup):
    """A group whose commands also come from other rooms."""

    @override
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_plugins()})

    @override
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        if own is not None or cmd_name not in _plugins():
            return own
        command = _plugins()[cmd_name].load()
        return command if isinstance(command, click.Command) else None


def _named_files(
    ctx: click.Context, param: click.Parameter, values: Sequence[str]
) -> list[tuple[str, Path]]:
    """Read arguments of the form `NAME=FILE`."""
    pairs = [value.partition("=") for value in values]
    for name, _, file in pairs:
        if not (name and file):
            raise click.BadParameter("it is not of the form NAME=FILE", ctx, param)
    return [(name, Path(file)) for name, _, file in pairs]


@click.group(
    cls=PluginGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 done, 1 failed, 2 usage, 3 refused (signature or policy).",
)
@click.version_option(package_name="bascule")
def cli() -> None:
    """Build, sign, inspect, verify and apply the payloads that carry OS images."""


@cli.command(epilog="Example: bascule-image keygen release --type ec")
@click.argument("name", type=click.Path(path_type=Path))
@click.option(
    "--type", "kind", type=click.Choice(["rsa", "ec"]), default="rsa", show_default=True,
    help="ec: P-256, for payloads of format 2 alone.",
)  # fmt: skip
@click.option(
    "--bits", type=click.Choice(["2048", "4096"]), default="2048", show_default=True,
    help="Of an RSA key.",
)  # fmt: skip
def keygen(name: Path, kind: str, bits: str) -> None:
    """Make a key pair that signs payloads: NAME.key.pem and NAME.pub.pem.

    The private key is not encrypted: keep it offline. The public one goes to nodes.
    """
    from images.signing import KeyType
    from images.signing import keygen as make

    private, public = make(name, kind=KeyType(kind), bits=int(bits))
    click.echo(f"private key: {private}\npublic key:  {public}")


@cli.command(
    epilog="Example: bascule-image build --partition usr=v2.ext4 --output v2.crau"
    " --key release.key.pem  |  bascule-image build --partition usr=v2.ext4 --source usr=v1.ext4"
    " --output v1-v2.crau  |  bascule-image build --format 1 --partition usr=v2.btrfs"
    " --partition kernel=vmlinuz --output update.crau --key release.key.pem"
)
@click.option(
    "--partition", "partitions", metavar="NAME=FILE", callback=_named_files, multiple=True,
    required=True, help="A part and its image; may repeat.",
)  # fmt: skip
@click.option(
    "--source", "sources", metavar="NAME=FILE", callback=_named_files, multiple=True,
    help="A part and its old image: the payload is a delta, of each part; may repeat.",
)  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path), required=True, help="The payload.")
@click.option(
    "--format", "major", type=click.Choice(["2", "1"]), default="2", show_default=True,
    help="1: for Flatcar; parts usr, kernel and pcr-policy, always plain.",
)  # fmt: skip
@click.option(
    "--compression", type=click.Choice(["zstd", "xz", "bz2", "none"]),
    help="Default: zstd; with --compat the smaller of xz and bz2; in format 1 bz2. Not for deltas.",
)  # fmt: skip
@click.option(
    "--compat", is_flag=True,
    help="Only what stock readers take; in format 1 nothing changes.",
)  # fmt: skip
@click.option(
    "--after", type=click.Path(path_type=Path), multiple=True,
    help="An earlier full payload, newest first; may repeat. Nodes at these versions fetch less.",
)  # fmt: skip
@click.option(
    "--level", type=click.IntRange(1, 19),
    help="Of zstd, in full payloads; default 19. 12: a quarter of the time, 5 % more bytes.",
)  # fmt: skip
@click.option(
    "--key", "keys", type=click.Path(path_type=Path), multiple=True,
    help="A private key that signs; may repeat. In format 1 the node's key comes last.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def build(  # noqa: PLR0913, PLR0917  # click passes each option by name
    partitions: Sequence[tuple[str, Path]],
    sources: Sequence[tuple[str, Path]],
    output: Path,
    major: str,
    compression: str | None,
    compat: bool,  # noqa: FBT001  # click passes flags by name
    after: Sequence[Path],
    level: int | None,
    keys: Sequence[Path],
    as_json: bool,  # noqa: FBT001
) -> None:
    """Build a payload out of images, one for each part: full, or with --source a delta.

    A delta needs numpy here, and on the node the very image that it starts from.
    """
    from images.build import build as build_format_2
    from images.delta import build_delta
    from images.format_1 import build_format_1
    from images.packing import ZSTD_LEVEL
    from images.signing import load_private_key

    if compat and compression == "zstd":
        raise click.UsageError("stock readers of full payloads refuse zstd: not with --compat")
    if after and (compat or major == "1" or sources):
        raise click.UsageError("--after is for full payloads of our own layout, of format 2")
    plain = compat or major == "1" or compression not in {None, "zstd"}
    if level is not None and (sources or plain):
        raise click.UsageError("--level is of zstd in full payloads of our own layout, of format 2")
    if sources and (major == "1" or compression):
        raise click.UsageError("a delta is of format 2 and packs each piece as is smallest")
    old = _by_name(sources)
    private = [load_private_key(path) for path in keys]
    with _progress("build") as progress:
        if old:
            built = build_delta(
                partitions, old, output, compat=compat, keys=private, progress=progress
            )
        elif major == "1":
            built = build_format_1(
                partitions, output, compression=compression, keys=private, progress=progress
            )
        else:
            built = build_format_2(
                partitions, output, compression=compression, compat=compat, keys=private,
                progress=progress, after=after, level=level or ZSTD_LEVEL,
            )  # fmt: skip
    facts = {
        "file": str(output),
        "size": built.size_bytes,
        "sha256": built.sha256.hex(),
        "signatures": len(private),
        **_manifest_facts(built.manifest),
    }
    if old:
        facts["costs"] = _costs(built)
    _print(facts, as_json=as_json)


@cli.command(epilog="Example: bascule-image inspect v2.crau --json")
@click.argument("payload", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def inspect(payload: Path, as_json: bool) -> None:  # noqa: FBT001
    """Show what a payload holds. Its signatures are counted, not verified."""
    from images.errors import PayloadSignatureError
    from images.reader import Accept, PayloadFile
    from images.signing import parse_signatures

    with PayloadFile.open(payload) as file:
        metadata = file.metadata(None, accept=Accept.ANY)
        signatures = parse_signatures(
            file.signatures(metadata), major=metadata.header.major, error=PayloadSignatureError
        )
        facts = {
            "file": str(payload),
            "size": file.size_bytes,
            "metadata_size": metadata.header.metadata_size,
            "metadata_sha256": metadata.sha256.hex(),
            "signatures": len(signatures),
            **_manifest_facts(metadata.manifest),
        }
    _print(facts, as_json=as_json)


@cli.command(epilog="Example: bascule-image verify v2.crau --public-key release.pub.pem")
@click.argument("payload", type=click.Path(path_type=Path))
@click.option(
    "--public-key", "keys", type=click.Path(path_type=Path), multiple=True, required=True,
    help="A trusted key, one of which must have signed; may repeat.",
)  # fmt: skip
@click.option(
    "--source", "sources", metavar="NAME=FILE", callback=_named_files, multiple=True,
    help="A part and the image that a delta starts from: its images are made, too; may repeat.",
)  # fmt: skip
@click.option(
    "--no-images", is_flag=True,
    help="Make no images: it needs no room beside the payload, and proves less.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def verify(
    payload: Path,
    keys: Sequence[Path],
    sources: Sequence[tuple[str, Path]],
    no_images: bool,  # noqa: FBT001  # click passes flags by name
    as_json: bool,  # noqa: FBT001
) -> None:
    """Verify every byte of a payload: signatures, hashes, exact length, and what it makes.

    Its images are made beside the payload, without a name, compared and dropped. Those of a delta
    only with --source.
    """
    from images.apply import try_images
    from images.errors import FileWriteError
    from images.reader import Accept, PayloadFile

    old = _by_name(sources)
    if old and no_images:
        raise click.UsageError("--source is for making the images: not with --no-images")
    trusted = _trusted(keys)
    with PayloadFile.open(payload) as file:
        metadata = file.metadata(trusted, accept=Accept.ANY)
        with _progress("verify") as progress:
            file.verify(metadata, trusted, progress=progress)
        why_not = "--no-images" if no_images else ""
        if metadata.manifest.is_delta and not old:
            why_not = why_not or "a delta needs --source"
        if not why_not:
            with _progress("making the images") as progress:
                try:
                    try_images(file, metadata, sources=old, progress=progress)
                except FileWriteError as error:
                    raise FileWriteError(f"{error}; --no-images leaves the images out") from error
    facts = {
        "file": str(payload),
        "verified": True,
        "images": f"not made: {why_not}" if why_not else "made",
        **_manifest_facts(metadata.manifest),
    }
    _print(facts, as_json=as_json)


@cli.command(
    epilog="Example: bascule-image apply delta.crau --source usr=v1.ext4 --output usr=v2.ext4"
)
@click.argument("payload", type=click.Path(path_type=Path))
@click.option(
    "--output", "outputs", metavar="NAME=FILE", callback=_named_files, multiple=True, required=True,
    help="A part and the file it is written to; may repeat.",
)  # fmt: skip
@click.option(
    "--source", "sources", metavar="NAME=FILE", callback=_named_files, multiple=True,
    help="A part and the image that a delta starts from; a full payload needs none.",
)  # fmt: skip
@click.option(
    "--public-key", "keys", type=click.Path(path_type=Path), multiple=True,
    help="A trusted key: the payload is verified before the first byte is written; may repeat.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def apply(
    payload: Path,
    outputs: Sequence[tuple[str, Path]],
    sources: Sequence[tuple[str, Path]],
    keys: Sequence[Path],
    as_json: bool,  # noqa: FBT001
) -> None:
    """Write the images of a payload to files, whole or not at all.

    A delta needs its old images (--source), which are only read. Without --public-key every hash is
    checked, but no signature.
    """
    from images.apply import apply_file

    old = _by_name(sources)
    wanted = _by_name(outputs)
    trusted = _trusted(keys) if keys else None
    with _progress("apply") as progress:
        metadata = apply_file(payload, wanted, sources=old, keys=trusted, progress=progress)
    facts = {
        "file": str(payload),
        "verified": trusted is not None,
        "written": {name: str(path) for name, path in wanted.items()},
        **_manifest_facts(metadata.manifest),
    }
    _print(facts, as_json=as_json)


def main() -> None:
    """Run the command; every foreseen failure is a sentence, a hint and a code on stderr."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # drafts are removed then, too
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run the command with these arguments and return its exit status."""
    try:
        status = cli.main(list(arguments), prog_name="bascule-image", standalone_mode=False)
    except (click.Abort, KeyboardInterrupt):
        again = "Nothing was left behind; run it again."
        return _fail("interrupted", again, "interrupted", EXIT_INTERRUPTED)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else "bascule-image"
        return _fail(error.format_message(), f"See `{path} --help`.", "usage", EXIT_USAGE)
    except BrokenPipeError:  # whoever read our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return EXIT_FAILED
    except OSError as error:  # of standard output, for example on a full disk
        return _fail(str(error), FileWriteError.hint, FileWriteError.code, EXIT_FAILED)
    except Exception as error:
        if not isinstance(error, CodedError):
            raise
        return _fail(str(error), error.hint, error.code, error.exit_status)
    return status if isinstance(status, int) else 0


def _fail(sentence: str, hint: str, code: str, status: int) -> int:
    """Print the three lines; what came from a file or a path cannot add a fourth."""
    for label, text in (("error", sentence), ("hint", hint), ("code", code)):
        click.echo(f"{label}: {_printable(text)}", err=True)
    return status


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _progress(what: str) -> AbstractContextManager[Progress]:
    from images.progress import shown

    return shown(what, sys.stderr, clock=time.monotonic)


def _trusted(paths: Sequence[Path]) -> TrustedKeys:
    from images.signing import load_public_keys

    return load_public_keys(*paths)


def _by_name(pairs: Sequence[tuple[str, Path]]) -> dict[str, Path]:
    named = dict(pairs)
    if len(named) != len(pairs):
        raise PartUnknownError("a part is named twice")
    return named


def _manifest_facts(manifest: Manifest) -> dict[str, Any]:
    return {
        "format": manifest.major,
        "minor": manifest.minor,
        "kind": "delta" if manifest.is_delta else "full",
        "block_size": manifest.block_size,
        "parts": [
            {
                "name": part.name,
                "size": part.size,
                "sha256": part.sha256.hex(),
                "data_bytes": sum(operation.data_length for operation in part.operations),
                "operations": dict(Counter(operation.kind.name for operation in part.operations)),
                **_layout_facts(part),
            }
            for part in manifest.parts
        ],
    }


def _layout_facts(part: Part) -> dict[str, Any]:
    """Return what our own layout adds: bytes of data of each age, oldest first, and the index."""
    if part.index is None:
        return {}
    edges = [0, *accumulate(part.ages)]
    return {
        "ages": [
            sum(operation.data_length for operation in part.operations[start:end])
            for start, end in pairwise(edges)
        ],
        "index_bytes": sum(group.length for group in part.index.groups),
        "index_groups": len(part.index.groups),
    }


def _costs(built: Built) -> dict[str, int]:
    """Return the bytes of blobs by the kind of their operation, and all other bytes."""
    costs: Counter[str] = Counter()
    for part in built.manifest.parts:
        for operation in part.operations:
            costs[operation.kind.name] += operation.data_length
    costs["manifest and signatures"] = built.size_bytes - costs.total()
    return dict(costs.most_common())


def _print(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for key, value in facts.items():
        if key == "parts":
            for part in value:
                click.echo(_part_line(part))
        elif key == "costs":
            click.echo("costs: " + ", ".join(f"{name} {count}" for name, count in value.items()))
        elif isinstance(value, dict):
            for name, text in value.items():
                click.echo(f"{key}: {name} = {_printable(str(text))}")
        else:
            click.echo(f"{key.replace('_', ' ')}: {_printable(str(value))}")


def _part_line(part: dict[str, Any]) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in part["operations"].items())
    line = (
        f"part {part['name']}: {part['size']} bytes, sha256 {part['sha256']},"
        f" {part['data_bytes']} bytes of data, operations: {kinds}"
    )
    if "ages" in part:
        ages = ", ".join(str(size) for size in part["ages"])
        line += f"; bytes by age, oldest first: {ages}; index: {part['index_bytes']} bytes"
    return line


@functools.cache
def _plugins() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=PLUGIN_GROUP)}


if __name__ == "__main__":
    main()
