"""The service on a real bus, asked by busctl, gdbus and `bascule`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.sim.bus_node import NAME, OBJECT, BusNode, bus_node
from tests.sim.message_bus import NOBODY
from updater.bus.door import METHODS, SIGNALS
from updater.bus.view import PROPERTIES

pytestmark = pytest.mark.e2e

# What a caller may rely on: a member leaves this table only with a new interface name.
MEMBERS = {
    "Check": ("method", "-", "u"),
    "Confirm": ("method", "-", "s"),
    "History": ("method", "u", "s"),
    "Hold": ("method", "a{sv}", "s"),
    "Perform": ("method", "ssb", "us"),
    "PermitReturn": ("method", "s", "u"),
    "PermitSetMax": ("method", "i", "u"),
    "PermitStatus": ("method", "-", "u"),
    "Pin": ("method", "s", "s"),
    "Reboot": ("method", "a{sv}", "u"),
    "Reset": ("method", "-", "s"),
    "Rollback": ("method", "-", "s"),
    "Slots": ("method", "-", "s"),
    "Status": ("method", "-", "s"),
    "Unhold": ("method", "-", "s"),
    "Unpin": ("method", "-", "s"),
    "Update": ("method", "a{sv}", "u"),
    "Why": ("method", "-", "s"),
    "BootedSlot": ("property", "s"),
    "BootedVersion": ("property", "s"),
    "CompatibleState": ("property", "s"),
    "Confirmed": ("property", "b"),
    "EngineVersion": ("property", "s"),
    "Held": ("property", "b"),
    "HoldReason": ("property", "s"),
    "LastCheck": ("property", "x"),
    "LastFailureCode": ("property", "s"),
    "LastFailureSentence": ("property", "s"),
    "NextCheck": ("property", "x"),
    "Pinned": ("property", "s"),
    "Progress": ("property", "d"),
    "State": ("property", "s"),
    "TargetSlot": ("property", "s"),
    "UpdateVersion": ("property", "s"),
    "UpdateKind": ("property", "s"),
    "UpdateCost": ("property", "x"),
    "UpdateLeftOut": ("property", "s"),
    "UpdateWholeOn": ("property", "s"),
    "WaitingCode": ("property", "s"),
    "WaitingSentence": ("property", "s"),
    "JobDone": ("signal", "uissss"),
}
DONE = f"type='signal',interface='{NAME}',member='JobDone'"
CHANGED = "type='signal',member='PropertiesChanged'"


@pytest.fixture(scope="module")
def resting() -> Iterator[BusNode]:
    """A node that runs 1.0.0, knows of nothing newer, and whose service is on the bus."""
    with bus_node() as node:
        node.start()
        node.wait_on_bus()
        yield node


@pytest.fixture
def node() -> Iterator[BusNode]:
    with bus_node() as made:
        yield made


def introspected(text: str, interface: str) -> dict[str, tuple[str, ...]]:
    """Return the members of an interface in what `busctl introspect` prints."""
    members: dict[str, tuple[str, ...]] = {}
    inside = False
    for line in text.splitlines():
        name, kind, *rest = line.split()
        inside = name == interface if kind == "interface" else inside
        if inside and name.startswith("."):
            members[name[1:]] = (kind, *rest[: 2 if kind == "method" else 1])
    return members


def test_introspection_tells_every_member_with_its_signature(resting: BusNode) -> None:
    done = resting.bus.busctl("introspect", NAME, OBJECT)
    assert introspected(done.stdout, NAME) == MEMBERS


def test_introspection_names_the_arguments(resting: BusNode) -> None:
    told = re.sub(r"\s+", " ", resting.bus.gdbus("introspect", "-d", NAME, "-o", OBJECT).stdout)
    assert "Pin(in s version, out s facts);" in told
    assert "Update(in a{sv} options, out u job);" in told
    assert "JobDone(u job, i status, s code, s sentence, s hint, s facts);" in told


def test_facts_are_those_of_the_command(resting: BusNode) -> None:
    for member, command in (("Status", "status"), ("Slots", "slots"), ("Why", "why")):
        assert resting.facts(member) == json.loads(
            resting.cli("--direct", command, "--json").stdout
        )
    assert resting.facts("History", "u", "5") == json.loads(
        resting.cli("--direct", "history", "-n", "5", "--json").stdout
    )


@pytest.mark.parametrize("user", [0, NOBODY])
def test_everybody_may_read(resting: BusNode, user: int) -> None:
    assert resting.call("Status", user=user).returncode == 0
    assert resting.bus.busctl("introspect", NAME, OBJECT, user=user).returncode == 0
    told = resting.bus.gdbus(
        "call", "-d", NAME, "-o", OBJECT,
        "-m", "org.freedesktop.DBus.Properties.Get", NAME, "State", user=user,
    )  # fmt: skip
    assert told.stdout.strip() == "(<'idle'>,)"


DOING = [
    ("Check", "check"), ("Update a{sv} 0", "update"), ("Reboot a{sv} 0", "reboot"),
    ("Rollback", "update"), ("Reset", "update"), ("Confirm", "update"), ("Hold a{sv} 0", "hold"),
    ("Unhold", "hold"), ("Pin s 1.0.0", "hold"), ("Unpin", "hold"), ("PermitSetMax i 1", "permit"),
    ("PermitReturn s x", "permit"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "right"), DOING)
def test_without_polkit_others_than_root_may_do_nothing(
    resting: BusNode, words: str, right: str
) -> None:
    before = resting.facts("Status")
    member, *arguments = words.split()
    method = [f"{NAME}.{member}", *arguments]
    refused = resting.call(member, *arguments, user=NOBODY)
    assert refused.returncode != 0
    assert f"user nobody may not {right}" in refused.stderr or f"org.bascule.{right}" in (
        refused.stderr
    ), method
    assert resting.facts("Status") == before | {"next_check": resting.facts("Status")["next_check"]}


def test_a_refusal_has_a_name_and_a_sentence(resting: BusNode) -> None:
    told = resting.bus.gdbus("call", "-d", NAME, "-o", OBJECT, "-m", f"{NAME}.Rollback")
    expected = "org.bascule.Error.RollbackRefused: slot b holds no system that was confirmed"
    assert expected in told.stderr
    told = resting.bus.gdbus("call", "-d", NAME, "-o", OBJECT, "-m", f"{NAME}.Unhold", user=NOBODY)
    assert "org.bascule.Error.NotAuthorized: " in told.stderr


BAD = [
    ("Hold a{sv} 1 reasons s x", "unknown field `reasons`"),
    ("Hold a{sv} 1 until s yesterday", "until"),
    ("Hold a{sv} 1 reason as 1 x", "option 'reason' is no text"),
    ("Update a{sv} 1 force s yes", "force"),
    ("History u 1000000", "lines"),
    ("Pin s nonsense!", "nonsense!"),
    ("Perform ssb frobnicate {} false", "there is no verb"),
    ("Perform ssb status [] false", "no JSON object"),
]


@pytest.mark.parametrize(("words", "why"), BAD)
def test_what_a_verb_does_not_take_is_refused(resting: BusNode, words: str, why: str) -> None:
    answer = resting.call(*words.split())
    assert why in answer.stderr + answer.stdout


def test_a_deep_option_is_refused_and_the_service_lives(resting: BusNode) -> None:
    deep = "[" * 3000 + "]" * 3000
    answer = resting.call("Perform", "ssb", "status", deep, "false")
    assert '\\"code\\":\\"usage\\"' in answer.stdout
    assert resting.property("State") == "idle"


def test_a_job_ends_with_a_signal(resting: BusNode) -> None:
    with resting.hearing(DONE) as heard:
        job = json.loads(resting.bus.busctl(
            "--json=short", "call", NAME, OBJECT, NAME, "Check",
        ).stdout)["data"][0]  # fmt: skip
        resting.wait_for(lambda: bool(heard.signals("JobDone")), "the end of the job")
    [[number, status, code, sentence, hint, facts]] = heard.signals("JobDone")
    assert (number, status, code, facts) == (job, 4, "nothing-newer", "null")
    assert sentence
    assert hint


def test_a_second_job_of_the_same_kind_is_refused(resting: BusNode) -> None:
    with resting.hearing(DONE) as heard:
        assert resting.call("Check").returncode == 0
        second = resting.bus.gdbus("call", "-d", NAME, "-o", OBJECT, "-m", f"{NAME}.Check")
        assert "org.bascule.Error.EngineBusy: check is under way already" in second.stderr
        resting.wait_for(lambda: bool(heard.signals("JobDone")), "the end of the job")


def test_properties_tell_a_hold_at_once_and_an_idle_node_is_silent(resting: BusNode) -> None:
    with resting.hearing(CHANGED) as heard:
        resting.call("Hold", "a{sv}", "1", "reason", "s", "night shift")
        resting.wait_for(lambda: bool(heard.signals("PropertiesChanged")), "news of the hold")
        resting.call("Unhold")
        resting.wait_for(lambda: len(heard.signals("PropertiesChanged")) == 2, "its end")
    told = [{key: v["data"] for key, v in body[1].items()} for body in heard.signals(
        "PropertiesChanged")]  # fmt: skip
    assert told == [{"Held": True, "HoldReason": "night shift"}, {"Held": False, "HoldReason": ""}]


def test_a_whole_update_by_other_peoples_programs(node: BusNode) -> None:
    """Only busctl and gdbus are used: check, update, wait for the state, reboot, confirm."""
    node.settings(reboot='"manual"', deadline_secs="300")
    node.world.health = ["sh", "-c", f"test -e {node.world.folder}/well"]
    node.settings(reboot='"manual"', deadline_secs="300")
    node.world.release("2.0.0", rollback_index=2)
    node.start_machine()
    node.wait_on_bus()
    with node.hearing(DONE, CHANGED) as heard:
        gdbus = node.bus.gdbus("call", "-d", NAME, "-o", OBJECT, "-m", f"{NAME}.Check")
        assert re.fullmatch(r"\(uint32 \d+,\)\n", gdbus.stdout), gdbus.stderr
        node.wait_for(lambda: len(heard.signals("JobDone")) == 1, "the check")
        assert json.loads(heard.signals("JobDone")[0][5])["version"] == "2.0.0"
        assert node.call("Update", "a{sv}", "0").returncode == 0
        node.wait_for(lambda: node.property("State") == "armed", "state armed")
        node.wait_for(lambda: len(heard.signals("JobDone")) == 2, "the end of the update")
        states = [
            body[1]["State"]["data"]
            for body in heard.signals("PropertiesChanged")
            if "State" in body[1]
        ]
    assert states[-1] == "armed"
    assert node.property("TargetSlot") == "b"
    assert node.property("UpdateVersion") == "2.0.0"
    assert node.call("Reboot", "a{sv}", "0").returncode == 0
    node.wait_for(lambda: node.property("BootedVersion") == "2.0.0", "the new version")
    node.wait_for(lambda: node.property("State") == "trial", "the trial")
    assert node.property("Confirmed") is False
    assert node.call("Confirm").returncode == 0
    node.wait_for(lambda: node.property("State") == "idle", "the end of the trial")
    assert node.property("Confirmed") is True
    assert node.facts("Status")["booted"]["version"] == "2.0.0"


def test_the_tables_of_the_code_are_those_that_callers_rely_on() -> None:
    assert {name for name, kind in MEMBERS.items() if kind[0] == "method"} == {
        *(row[0] for row in METHODS), "Perform",
    }  # fmt: skip
    assert {n: k[1] for n, k in MEMBERS.items() if k[0] == "property"} == PROPERTIES
    assert {n: "".join(a.values()) for n, a in SIGNALS.items()} == {"JobDone": "uissss"}
