"""Charts as SVG text, made here: no script, and as testable as any text. Pure.

Colours are classes of the style sheet, so light and dark follow the reader's choice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from markupsafe import Markup

if TYPE_CHECKING:
    from collections.abc import Mapping

COLOURS: Final = 8  # classes `v0` to `v7`
_WIDTH: Final = 1000  # units of the picture; the page stretches it
_HEIGHT: Final = 14


def version_bar(versions: Mapping[str, int], *, label: str) -> Markup:
    """Return one bar of a group's nodes by version, oldest first; empty for an empty group.

    Args:
        versions: how many nodes run each, in the order of the bar.
        label: what a screen reader says before the numbers.
    """
    total = sum(versions.values())
    words = ", ".join(f"{count} on {version}" for version, count in versions.items())
    parts, left = [], 0.0
    for index, (version, count) in enumerate(versions.items()):
        width = _WIDTH * count / total
        parts.append(
            Markup(
                '<rect class="{}" x="{}" y="0" width="{}" height="{}"><title>{}: {}</title></rect>'
            ).format(colour(index), f"{left:.2f}", f"{width:.2f}", _HEIGHT, version, count)
        )
        left += width
    return Markup(
        '<svg class="bar" viewBox="0 0 {} {}" preserveAspectRatio="none" role="img"'
        ' aria-label="{}"><rect class="rail" x="0" y="0" width="{}" height="{}"/>{}</svg>'
    ).format(
        _WIDTH,
        _HEIGHT,
        f"{label}: {words or 'no nodes'}",
        _WIDTH,
        _HEIGHT,
        Markup("").join(parts),
    )


def progress_bar(share: float, *, label: str) -> Markup:
    """Return a bar that is filled by `share`, 0 to 1."""
    filled = _WIDTH * min(max(share, 0.0), 1.0)
    return Markup(
        '<svg class="bar thin" viewBox="0 0 {} {}" preserveAspectRatio="none" role="img"'
        ' aria-label="{}"><rect class="rail" x="0" y="0" width="{}" height="{}"/>'
        '<rect class="fill" x="0" y="0" width="{}" height="{}"/></svg>'
    ).format(_WIDTH, _HEIGHT, label, _WIDTH, _HEIGHT, f"{filled:.2f}", _HEIGHT)


def colour(index: int) -> str:
    """Return the style class of the version at this place of a group's list."""
    return f"v{index % COLOURS}"
