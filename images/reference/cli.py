"""`bascule-image reference`: the reference OS. Words in, facts out; the work is in `recipe.py`."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import rich_click as click

from images.errors import FileUnreadableError, SourceFolderError
from images.reference.packages import Wanted
from images.reference.recipe import Order, build, read_facts
from images.reference.tools import run
from images.reference.variants import VARIANTS

CHECKOUT: Final = Path(__file__).parent.parent.parent
CACHE: Final = Path("build/reference")


@click.group()
def reference() -> None:
    """Build the reference OS: a small Debian system with slots."""


@reference.command(
    "build",
    epilog="Example: bascule-image reference build --version 1.0.0 --output v1"
    "  |  bascule-image reference build --version 1.1.0 --variant unhealthy --output bad",
)
@click.option("--version", required=True, help="The version of the image, for example 1.0.0.")
@click.option(
    "--output", required=True, type=click.Path(path_type=Path, file_okay=False),
    help="A folder for root.img, linux, initrd and facts.json.",
)  # fmt: skip
@click.option(
    "--variant", type=click.Choice(sorted(VARIANTS)), default="good", show_default=True,
    help="See `bascule-image reference variants`.",
)  # fmt: skip
@click.option("--product", default="bascule-reference", show_default=True)
@click.option("--board", default="generic-x86-64", show_default=True)
@click.option("--rollback-index", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--built", "built_at", type=click.DateTime(["%Y-%m-%dT%H:%M:%SZ"]), metavar="TIME",
    help="Of all files, as 2026-01-31T12:00:00Z. Default: SOURCE_DATE_EPOCH, else the checkout's"
    " last commit.",
)  # fmt: skip
@click.option(
    "--server", default="https://updates.invalid", show_default=True, metavar="URL",
    help="The release desk that the nodes ask.",
)  # fmt: skip
@click.option(
    "--root-json", type=click.Path(path_type=Path, dir_okay=False),
    help="The trusted TUF root that the nodes start from.",
)  # fmt: skip
@click.option(
    "--with-agent", is_flag=True,
    help="For tests: whoever has the second serial port is root.",
)  # fmt: skip
@click.option(
    "--cache", type=click.Path(path_type=Path, file_okay=False), default=CACHE, show_default=True,
    help="Where packages and the shared system are kept.",
)  # fmt: skip
@click.option(
    "--packages", type=click.Path(path_type=Path, dir_okay=False),
    help="A facts.json of before: build with exactly its packages.",
)  # fmt: skip
@click.option("--mirror", default="", metavar="URL", help="Of Debian; a snapshot for old packages.")
@click.option(
    "--source", type=click.Path(path_type=Path, file_okay=False), default=CHECKOUT,
    help="The checkout of bascule that goes in. Default: the one that runs.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def build_command(  # noqa: PLR0913  # click passes each option by name
    version: str,
    output: Path,
    *,
    variant: str,
    product: str,
    board: str,
    rollback_index: int,
    built_at: datetime | None,
    server: str,
    root_json: Path | None,
    with_agent: bool,
    cache: Path,
    packages: Path | None,
    mirror: str,
    source: Path,
    as_json: bool,
) -> None:
    """Build root, kernel and initrd of one version.

    The same arguments, sources and packages give the same bytes.
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    moment = built_at.replace(tzinfo=UTC) if built_at else built(source, epoch=epoch)
    order = Order(
        facts=read_facts(
            product=product,
            board=board,
            version=version,
            rollback_index=rollback_index,
            built=moment,
        ),
        variant=variant,
        with_agent=with_agent,
        server=server.rstrip("/"),
        root_json=root_json,
        source=source,
        cache=cache.absolute(),
        wanted=Wanted(mirror=mirror, versions=_versions(packages)),
    )
    facts = build(order, output, say=lambda what: click.echo(f"building: {what}", err=True))
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for name, file in facts["files"].items():
        click.echo(f"{name}: {file['size']} bytes, sha256 {file['sha256']}")
    click.echo(f"root hash: {facts['verity']['root_hash']}")


@reference.command("variants", epilog="Example: bascule-image reference variants")
def variants_command() -> None:
    """List the variants: versions that fail in a known way."""
    for name, variant in VARIANTS.items():
        click.echo(f"{name:14} {variant.summary}")


def built(source: Path, *, epoch: str) -> datetime:
    """Return the time that an image is given when nobody names one: never that of the clock.

    Args:
        source: a checkout, whose last commit has a time.
        epoch: SOURCE_DATE_EPOCH; wins when it is not empty.

    Raises:
        SourceFolderError: the folder has no history.
        ToolMissingError, ToolFailedError: git.
    """
    if not epoch:
        if not (source / ".git").exists():
            raise SourceFolderError(f"{source} has no history to take a time from; give --built")
        epoch = run(["git", "-C", source, "log", "-1", "--format=%ct"]).strip()
    return datetime.fromtimestamp(int(epoch), UTC)


def _versions(packages: Path | None) -> dict[str, str]:
    if packages is None:
        return {}
    try:
        versions: dict[str, str] = json.loads(packages.read_bytes())["packages"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileUnreadableError(f"{packages} is no facts.json of a build: {error}") from error
    return versions
