"""Every bound of the trust room, with its unit and its reason. No code lives here.

None of these can be widened by anything that comes from outside (reference/trust.md 6).
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

# Sizes of metadata files: checked while they arrive, before anything is parsed.
ROOT_MAX_BYTES: Final = 256 * 1024  # 30 keys with ML-DSA-65 signatures stay below 200 KiB
TIMESTAMP_MAX_BYTES: Final = 8 * 1024  # one file name and one signature: about 500 bytes
SNAPSHOT_MAX_BYTES: Final = 256 * 1024  # one line a role; we have about six
TARGETS_MAX_BYTES: Final = 4 * 1024 * 1024  # 250 bytes a target: room for 16 000 payloads

MAX_DELEGATIONS: Final = 8  # roles asked for one path; the layout needs two
MAX_ROOT_ROTATIONS: Final = 256  # roots walked in one refresh: a century at two a year and more

# Times of one refresh, in seconds.
CONNECT_TIMEOUT_S: Final = 5.0  # for each address of the server
IDLE_TIMEOUT_S: Final = 10.0  # without a single byte
REFRESH_DEADLINE_S: Final = 300.0  # all files together: the largest `releases` at 14 KiB/s
CHUNK_BYTES: Final = 64 * 1024  # read at once

ONLINE_HORIZON: Final = timedelta(days=7)  # a timestamp lives 3 days; one that ends later than
# this was made for an air gap, and would let a network attacker freeze us for as long

CLOCK_TOLERANCE: Final = timedelta(minutes=5)  # what NTP may take back after a refresh
CLOCK_FLOOR_STEP: Final = timedelta(hours=1)  # the floor is written this often, to spare the disk

MAX_HOLDBACK: Final = timedelta(days=14)  # Omaha silent about a newer `current` for longer: alarm
ROOT_WARNING: Final = timedelta(days=90)  # a root that ends sooner needs a signing ceremony

# What the node remembers.
FLOORS_MAX_BYTES: Final = 256 * 1024  # 512 roots and 64 roles take below 64 KiB
ROOTS_KEPT: Final = 512  # newest known roots: two full walks
ROLES_KEPT: Final = 64  # version floors: three roles, and two a channel ever followed
