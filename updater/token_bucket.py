"""A limit of bytes per second as a bucket of tokens: values and a time in, a wait out. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

BURST_SECS: Final = 0.25  # of the rate; what may come at once after a pause
BURST_MIN_BYTES: Final = 4096  # a read of less is not worth its call


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """What may still come at once.

    Attributes:
        rate: bytes per second, more than 0.
        tokens: bytes that may come now; below 0 after more came.
        at: when that was so, in seconds of a monotonic clock.
    """

    rate: float
    tokens: float
    at: float

    @property
    def burst(self) -> int:
        """Bytes that may come at once, and that one read should ask for at most."""
        return max(BURST_MIN_BYTES, int(self.rate * BURST_SECS))


def full(rate: float, now: float) -> Bucket:
    """Return a bucket from which a burst may be taken at once."""
    empty = Bucket(rate=rate, tokens=0, at=now)
    return replace(empty, tokens=empty.burst)


def take(bucket: Bucket, size: int, now: float) -> tuple[Bucket, float]:
    """Return the bucket after `size` bytes came, and how many seconds to wait before the next.

    A clock that stands still or goes back adds nothing.
    """
    filled = bucket.tokens + bucket.rate * max(0.0, now - bucket.at)
    tokens = min(float(bucket.burst), filled) - size
    after = replace(bucket, tokens=tokens, at=max(now, bucket.at))
    return after, max(0.0, -tokens / bucket.rate)
