"""Which byte ranges to ask for, so that few requests fetch little. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

GAP_BYTES: Final = 64 * 1024  # what a slow link brings in the time that a request takes
REQUESTS_MAX: Final = 64  # of one payload: servers and proxies count them

Span = tuple[int, int]  # first byte, and the one after the last


def coalesced(
    spans: Iterable[Span], *, gap: int = GAP_BYTES, most: int = REQUESTS_MAX
) -> list[Span]:
    """Return ascending spans that cover `spans`, those joined that are at most `gap` apart.

    Where that leaves more than `most`, larger gaps are fetched too.
    """
    ordered = sorted(span for span in spans if span[0] < span[1])
    joined = _joined(ordered, gap)
    while len(joined) > most:
        gap = max(1, gap * 2)
        joined = _joined(joined, gap)
    return joined


def _joined(ordered: Iterable[Span], gap: int) -> list[Span]:
    result: list[Span] = []
    for start, end in ordered:
        if result and start - result[-1][1] <= gap:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return result
