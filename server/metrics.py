"""Numbers for Prometheus. Labels come from closed sets: a node cannot make a new series."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from typing_extensions import override

from server.errors import ServerError
from server.queries import groups
from server.wording import EVENT_WORDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from prometheus_client.core import Metric

    from server.desk import Desk
    from server.freshness import Freshness
    from server.views import GroupView

VERSIONS_MAX: Final = 50  # per group; the rest is counted as `other`
OTHER: Final = "other"

_AREAS: Final[Mapping[str, str]] = MappingProxyType({
    "": "dashboard", "fragment": "dashboard", "static": "static", "v1": "omaha",
    "repository": "repository", "payloads": "payloads", "api": "api", "healthz": "healthz",
    "metrics": "metrics",
})  # fmt: skip


class Metrics:
    """What one server process counts; also the `Tally` of the Omaha endpoint."""

    def __init__(self, desk: Desk, freshness: Freshness) -> None:
        """Make a registry of its own, so that two servers in one process stay apart."""
        self._registry = CollectorRegistry()
        self._checks = Counter(
            "bascule_checks", "Update checks by outcome", ["outcome"], registry=self._registry
        )
        self._events = Counter(
            "bascule_events", "Reported events by kind", ["event"], registry=self._registry
        )
        self._grants = Counter("bascule_grants", "New grants", ["group"], registry=self._registry)
        self._requests = Counter(
            "bascule_http_requests",
            "Answered HTTP requests",
            ["area", "status"],
            registry=self._registry,
        )
        self._registry.register(_DeskCollector(desk, freshness))

    def check(self, outcome: str) -> None:
        """Count an update check by the code of its outcome."""
        self._checks.labels(outcome or OTHER).inc()

    def event(self, event_type: int, result: int) -> None:
        """Count an event of a node by its words."""
        self._events.labels(EVENT_WORDS.get((event_type, result), OTHER)).inc()

    def grant(self, group: str) -> None:
        """Count a new grant."""
        self._grants.labels(group).inc()

    def request(self, path: str, status: int) -> None:
        """Count an answered request by the first part of its path."""
        area = _AREAS.get(path.strip("/").partition("/")[0], OTHER)
        self._requests.labels(area, str(status)).inc()

    def exposition(self) -> bytes:
        """Return all of it in Prometheus' text format."""
        return generate_latest(self._registry)


class _DeskCollector(Collector):
    """What is counted when it is asked for: nodes, groups, signatures."""

    def __init__(self, desk: Desk, freshness: Freshness) -> None:
        self._desk = desk
        self._freshness = freshness

    @override
    def collect(self) -> Iterable[Metric]:
        nodes = GaugeMetricFamily("bascule_nodes", "Known nodes", labels=["group", "version"])
        states = GaugeMetricFamily(
            "bascule_node_states", "Known nodes by state", labels=["group", "state"]
        )
        under_way = GaugeMetricFamily("bascule_grants_active", "Nodes under way", labels=["group"])
        paused = GaugeMetricFamily("bascule_group_paused", "1 when paused", labels=["group"])
        stopped = GaugeMetricFamily(
            "bascule_rollouts_stopped", "Releases stopped in the group", labels=["group"]
        )
        for group in self._groups():
            for version, count in _capped(group.versions).items():
                nodes.add_metric([group.name, version], count)
            for state, count in group.states.items():
                states.add_metric([group.name, state], count)
            under_way.add_metric([group.name], group.under_way)
            paused.add_metric([group.name], float(group.paused))
            stopped.add_metric([group.name], len(group.stops))
        return [nodes, states, under_way, paused, stopped, self._expiry()]

    def _groups(self) -> list[GroupView]:
        with self._desk.store.reading() as connection:
            return groups(connection, self._desk.settings, now_s=self._desk.now_s())

    def _expiry(self) -> Metric:
        family = GaugeMetricFamily(
            "bascule_metadata_expires_seconds",
            "Unix time at which the signature of a role ends",
            labels=["role"],
        )
        try:
            roles = self._freshness.roles()
        except ServerError:
            return family  # /healthz says what is wrong
        for role in roles:
            family.add_metric([role.name], role.expires.timestamp())
        return family


def _capped(versions: Mapping[str, int]) -> dict[str, int]:
    """Keep the versions that most nodes run; a made-up one cannot become a series of its own."""
    ranked = sorted(versions.items(), key=lambda item: item[1], reverse=True)
    kept = dict(ranked[:VERSIONS_MAX])
    if rest := sum(count for _, count in ranked[VERSIONS_MAX:]):
        kept[OTHER] = rest
    return kept
