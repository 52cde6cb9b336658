"""The dashboard: one page, whole without a script; with one, its live part renews itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from server import queries
from server.charts import colour, progress_bar, version_bar
from server.errors import ServerError
from server.roles import policy_of
from server.wording import ago, event_words, size_words, span

if TYPE_CHECKING:
    from server.desk import Desk
    from server.freshness import Freshness
    from server.views import RoleView

RENEW_S: Final = 5  # how often an open dashboard asks
NODES_SHOWN: Final = 200
EVENTS_SHOWN: Final = 25
ACTIVITY_SHOWN: Final = 10

_TEMPLATES: Final = Path(__file__).with_name("templates")


class Pages:
    """Renders the dashboard of one desk."""

    def __init__(self, desk: Desk, freshness: Freshness) -> None:
        """Load the templates; every value is escaped, unknown names are errors."""
        self._desk = desk
        self._freshness = freshness
        self._templates = Environment(
            loader=FileSystemLoader(_TEMPLATES),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(size=size_words, span=span)
        self._templates.globals.update(
            event_words=event_words,
            version_bar=version_bar,
            progress_bar=progress_bar,
            colour=colour,
        )

    def dashboard(self) -> str:
        """Return the whole page."""
        return self._render("dashboard.html")

    def fragment(self) -> str:
        """Return the part of the page that changes."""
        return self._render("live.html")

    def _render(self, template: str) -> str:
        now = self._desk.clock()
        with self._desk.store.reading() as connection:
            values = {
                "groups": queries.groups(connection, self._desk.settings, now_s=self._desk.now_s()),
                "channels": queries.channels(connection),
                "releases": queries.releases(connection),
                "nodes": queries.nodes(connection, limit=NODES_SHOWN),
                "events": queries.events(connection, limit=EVENTS_SHOWN),
                "activity": queries.activity(connection, limit=ACTIVITY_SHOWN),
            }
        return self._templates.get_template(template).render(
            values,
            renew_s=RENEW_S,
            nodes_shown=NODES_SHOWN,
            now=now,
            ago=lambda moment: ago(moment, now),
            roles_due=self._roles_due(),
        )

    def _roles_due(self) -> list[RoleView]:
        """Return the roles that a person must sign again soon."""
        now = self._desk.clock()
        try:
            roles = self._freshness.roles()
        except ServerError:
            return []  # /healthz says what is wrong
        return [role for role in roles if role.expires - now < policy_of(role.name).warn_before]
