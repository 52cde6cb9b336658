"""The tables. What the columns mean; who writes them is in the modules of the same nouns.

Times are whole seconds since 1970 in UTC. Nothing here is trusted: releases and channels are a
reflection of the signed files, made again from them whenever they differ; the rest is what
operators set and what nodes said. A change needs a migration, held by a test.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
)

METADATA: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# One row per remembered fact about the database itself, such as `reflected_snapshot`.
FACTS: Final = Table(
    "facts",
    METADATA,
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

# A version of a product for a board, as the signed role `releases` lists it.
RELEASES: Final = Table(
    "releases",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("product", String(64), nullable=False),
    Column("board", String(64), nullable=False),
    Column("version", String(64), nullable=False),
    Column("rollback_index", Integer, nullable=False),
    Column("created_at", Integer, nullable=False),
    UniqueConstraint("product", "board", "version"),
)

# A payload file. `tuf_path` is empty for one that only serves stock clients.
PAYLOADS: Final = Table(
    "payloads",
    METADATA,
    Column("sha256", String(64), primary_key=True),
    Column("release_id", ForeignKey("releases.id", ondelete="CASCADE"), primary_key=True),
    Column("tuf_path", String(512), nullable=False),
    Column("size", Integer, nullable=False),
    Column("sha1", String(28), nullable=False),  # base64, as old clients check it
    Column("format", Integer, nullable=False),  # major version of the container
    Index(None, "release_id"),
)

# The newest signed document of a channel for a product and board.
CHANNEL_DOCUMENTS: Final = Table(
    "channel_documents",
    METADATA,
    Column("channel", String(32), primary_key=True),
    Column("product", String(64), primary_key=True),
    Column("board", String(64), primary_key=True),
    Column("serial", Integer, nullable=False),
    Column("document", Text, nullable=False),
)

# A channel exists because `targets` delegates to it; where else its payloads lie is ours.
CHANNELS: Final = Table(
    "channels",
    METADATA,
    Column("name", String(32), primary_key=True),
    Column("base_urls", Text, nullable=False),  # one a line, best first; empty for our own
)

GROUPS: Final = Table(
    "groups",
    METADATA,
    Column("name", String(64), primary_key=True),
    Column("channel", String(32), nullable=False),
    Column("paused", Boolean, nullable=False, server_default=false()),
    Column("pause_reason", Text, nullable=False, server_default=""),
    Column("share_percent", Float, nullable=False),
    Column("max_concurrent", Integer, nullable=True),  # NULL: no limit
    Column("grant_timeout_s", Integer, nullable=True),  # NULL: the desk's setting
    Column("poll_interval_s", Integer, nullable=True),  # NULL: the desk's setting
    Column("created_at", Integer, nullable=False),
)

# A release on its way into a group; stopped when `stop_code` is not empty.
ROLLOUTS: Final = Table(
    "rollouts",
    METADATA,
    Column("group_name", String(64), primary_key=True),
    Column("product", String(64), primary_key=True),
    Column("board", String(64), primary_key=True),
    Column("version", String(64), primary_key=True),
    Column("started_at", Integer, nullable=False),
    Column("stop_code", String(64), nullable=False, server_default=""),
    Column("stop_sentence", Text, nullable=False, server_default=""),
    Column("stopped_at", Integer, nullable=True),
)

# What one machine last said about one product.
NODES: Final = Table(
    "nodes",
    METADATA,
    Column("product", String(64), primary_key=True),
    Column("machine_id", String(64), primary_key=True),
    Column("alias", String(64), nullable=False),
    Column("group_name", String(64), nullable=False),
    Column("board", String(64), nullable=False),
    Column("version", String(64), nullable=False),
    Column("state", String(32), nullable=False),
    Column("slot", String(8), nullable=False),
    Column("oem", String(64), nullable=False),
    Column("agent", String(64), nullable=False),
    Column("boot_id", String(64), nullable=False),
    Column("first_seen", Integer, nullable=False),
    Column("last_seen", Integer, nullable=False),
    Column("error_code", String(64), nullable=False, server_default=""),
    Column("error_sentence", Text, nullable=False, server_default=""),
    Column("error_at", Integer, nullable=True),
    Column("waits_for", String(64), nullable=False, server_default=""),  # reason of the last hold
    Index(None, "group_name"),
    Index(None, "last_seen"),
)

# Leave that a node was given to take a release. `ended_at` is NULL while it holds its place.
GRANTS: Final = Table(
    "grants",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("product", String(64), nullable=False),
    Column("machine_id", String(64), nullable=False),
    Column("group_name", String(64), nullable=False),
    Column("board", String(64), nullable=False),
    Column("version", String(64), nullable=False),
    Column("from_version", String(64), nullable=False),
    Column("phase", String(16), nullable=False),
    Column("granted_at", Integer, nullable=False),
    Column("progress_at", Integer, nullable=False),
    Column("ended_at", Integer, nullable=True),
    Column("code", String(64), nullable=False, server_default=""),
    Index(None, "group_name", "ended_at"),
    Index(None, "product", "machine_id", "id"),
)

# What nodes reported, oldest dropped first.
EVENTS: Final = Table(
    "events",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("at", Integer, nullable=False),
    Column("product", String(64), nullable=False),
    Column("machine_id", String(64), nullable=False),
    Column("group_name", String(64), nullable=False),
    Column("version", String(64), nullable=False),
    Column("type", Integer, nullable=False),
    Column("result", Integer, nullable=False),
    Column("error_code", Integer, nullable=True),
    Column("bascule_code", String(64), nullable=False),
    Column("sentence", String(300), nullable=False),
    Column("release", String(64), nullable=False),
    Index(None, "product", "machine_id"),
)

# What people did here and what the server stopped by itself; only added to.
ACTIVITY: Final = Table(
    "activity",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("at", Integer, nullable=False),
    Column("actor", String(64), nullable=False),
    Column("verb", String(64), nullable=False),
    Column("subject", String(256), nullable=False),
    Column("sentence", Text, nullable=False),
)
