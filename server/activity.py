"""The log of what people did here and what the server stopped by itself. Only added to."""

from __future__ import annotations

import getpass
import logging
from typing import TYPE_CHECKING, Final

from server.schema import ACTIVITY

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

log = logging.getLogger(__name__)

SERVER: Final = "server"  # the actor of what nobody ordered


def operator() -> str:
    """Return the account name of the person at the keyboard."""
    try:
        return getpass.getuser()[:64]
    except (KeyError, OSError, ImportError):
        return "unknown"  # an account without a name, as in some containers


def record(  # one row of six columns
    connection: Connection,
    now_s: int,
    verb: str,
    subject: str,
    sentence: str,
    *,
    actor: str | None = None,
) -> None:
    """Add one line, in the transaction of what it tells of.

    Args:
        connection: a writing one.
        now_s: the present.
        verb: such as `channel promote`.
        subject: what it was done to.
        sentence: what happened, with its reason.
        actor: who; None for the person at the keyboard.
    """
    who = operator() if actor is None else actor
    log.info("%s verb=%r subject=%s actor=%s", sentence, verb, subject, who)
    connection.execute(
        ACTIVITY.insert().values(
            at=now_s, actor=who, verb=verb, subject=subject[:256], sentence=sentence
        )
    )
