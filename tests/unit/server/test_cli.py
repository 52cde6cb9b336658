"""The command `bascule-server`, called as a person calls it, in this process."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from images.signing import public_pem
from server.cli import run
from server.desk import open_desk
from server.wording import size_words
from tests.sim import payloads
from tests.sim.desk import (
    BOARD,
    PRODUCT,
    SimNode,
    delta_bytes,
    full_bytes,
    omaha_of,
    payload_bytes,
)
from updater.omaha import Event

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command; give status, output and errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        status = run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


@pytest.fixture
def folder(tmp_path: Path, command: Run) -> Path:
    """A desk with payload, key and channel, made by commands."""
    made = tmp_path / "desk"
    options = ("--product", PRODUCT, "--board", BOARD, "--channel", "stable")
    assert command("init", made, *options)[0] == 0
    (tmp_path / "key.pub.pem").write_bytes(public_pem(payloads.key().public_key()))
    for version in ("1.0.0", "2.0.0"):
        (tmp_path / f"{version}.crau").write_bytes(payload_bytes(version))
    return made


@pytest.fixture
def published(folder: Path, tmp_path: Path, command: Run) -> Path:
    """The same with 2.0.0 current on stable."""
    key = ("--public-key", tmp_path / "key.pub.pem")
    release = (folder, tmp_path / "2.0.0.crau", "--version", "2.0.0")
    assert command("release", "add", *release, *key)[0] == 0
    assert command("channel", "promote", folder, "stable", "2.0.0")[0] == 0
    return folder


def facts(result: tuple[int, str, str]) -> Any:  # noqa: ANN401  # JSON
    status, out, _ = result
    assert status == 0
    return json.loads(out)


def refused(result: tuple[int, str, str]) -> tuple[int, str]:
    """Return status and code of a failure that is told in three lines."""
    status, _, err = result
    lines = err.splitlines()
    assert [line.split(": ")[0] for line in lines[-3:]] == ["error", "hint", "code"]
    assert "Traceback" not in err
    return status, lines[-1].removeprefix("code: ")


def test_init_lays_a_desk_and_says_what_to_move_offline(tmp_path: Path, command: Run) -> None:
    status, out, _ = command("init", tmp_path / "new", "--channel", "stable")
    assert status == 0
    assert str(tmp_path / "new/repository/metadata/1.root.json") in out
    for name in ("root-3", "targets-1", "releases-2", "stable-3"):
        assert str(tmp_path / f"new/keys/offline/{name}.pem") in out
    assert "keys/online" not in out


def test_init_tells_programs_the_same(tmp_path: Path, command: Run) -> None:
    found = facts(command("init", tmp_path / "new", "--json"))
    assert found["root"].endswith("1.root.json")
    assert len(found["offline_keys"]) == 8


def test_secrets_are_for_their_owner_alone(folder: Path) -> None:
    assert (folder / "keys").stat().st_mode & 0o077 == 0
    secrets = [*(folder / "keys").rglob("*.pem"), folder / "bascule.db"]
    assert all(file.stat().st_mode & 0o077 == 0 for file in secrets)


def test_a_release_goes_from_file_to_channel(published: Path, command: Run) -> None:
    (release,) = facts(command("release", "list", published, "--json"))
    assert (release["version"], release["current_on"]) == ("2.0.0", ["stable"])
    (channel,) = facts(command("channel", "list", published, "--json"))
    assert channel["documents"][0]["current"] == "2.0.0"
    assert "2.0.0" in command("release", "list", published)[1]
    assert "stable" in command("channel", "list", published)[1]


def test_a_release_gets_a_delta_and_shows_what_it_costs(
    folder: Path, tmp_path: Path, command: Run
) -> None:
    one = payloads.image(10, seed=1)
    two = one[: -payloads.BLOCK] + payloads.image(1, seed=2)
    for name, data in (
        ("one", full_bytes(one)), ("two", full_bytes(two)), ("delta", delta_bytes(one, two)),
        ("large", delta_bytes(one, two, keep=9)),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(data)
    key = ("--public-key", tmp_path / "key.pub.pem")
    assert command("release", "add", folder, tmp_path / "one", "--version", "1.0.0", *key)[0] == 0
    add = ("release", "add", folder, tmp_path / "two", "--version", "2.0.0", *key)
    status, out, err = command(*add, "--delta", tmp_path / "large")
    assert (status, "delta from 1.0.0 too-large" in out, "does not pay" in err) == (0, True, True)
    status, out, _ = command(*add, "--delta", tmp_path / "delta")
    assert status == 0
    assert "delta from 1.0.0 signed" in out

    def size(name: str) -> list[str]:
        return size_words((tmp_path / name).stat().st_size).split()

    listed = [row.split() for row in command("release", "list", folder)[1].splitlines()]
    assert listed[-3:] == [
        ["TO", "FULL", "1.0.0"],
        ["2.0.0", *size("two"), *size("delta")],
        ["1.0.0", *size("one"), "-"],
    ]
    shown = command("release", "show", folder, "2.0.0")[1]
    assert "any" in shown
    assert "1.0.0" in shown
    (full, delta) = facts(command("release", "show", folder, "2.0.0", "--json"))["payloads"]
    assert (full["delta_from"], delta["delta_from"]) in {("", "1.0.0"), ("1.0.0", "")}
    assert full["is_here"] is delta["is_here"] is True
    assert refused(command("release", "show", folder, "9.0.0")) == (3, "release-unknown")
    assert refused(command(*add, "--delta", tmp_path / "one"))[1] == "delta-target"


def test_a_release_is_withdrawn(published: Path, command: Run) -> None:
    status, out, _ = command("release", "withdraw", published, "2.0.0")
    assert (status, out) == (0, "2.0.0 withdrawn from stable, serial 2\n")
    (release,) = facts(command("release", "list", published, "--json"))
    assert release["withdrawn_from"] == ["stable"]
    assert refused(command("channel", "promote", published, "stable", "2.0.0")) == (
        3, "release-withdrawn",
    )  # fmt: skip


def test_a_group_is_steered(published: Path, command: Run) -> None:
    assert command("group", "create", published, "canary", "--concurrency", "1")[0] == 0
    out = command("group", "set", published, "canary", "--share", "12.5", "--max", "none")[1]
    assert out == "group canary follows stable, share 12.5 %, at most any number under way\n"
    assert command("group", "pause", published, "canary", "--reason", "holiday")[0] == 0
    (canary, default) = facts(command("group", "list", published, "--json"))
    assert (canary["paused"], canary["pause_reason"], default["paused"]) == (True, "holiday", False)
    assert "paused holiday" in command("group", "list", published)[1]
    assert command("group", "resume", published, "canary")[1] == "group canary goes on\n"


def test_a_stopped_rollout_is_shown_and_resumed(published: Path, command: Run) -> None:
    desk = open_desk(published)
    node = SimNode("a" * 32, alias="rack1")
    node.ask(omaha_of(desk))
    node.tell(omaha_of(desk), Event(type=3, result=0, error_code=44, bascule_code="trial-web"))
    desk.store.close()
    sentence = "release 2.0.0 did not hold on node rack1 (trial-web)"
    assert sentence in command("group", "list", published)[1]
    out = command("group", "resume", published, "default")[1]
    assert out == "group default goes on, also with 2.0.0\n"


def test_nodes_are_listed_and_shown(published: Path, command: Run) -> None:
    assert command("node", "list", published)[1] == "none\n"
    desk = open_desk(published)
    node = SimNode("a" * 32, alias="rack1")
    node.ask(omaha_of(desk))
    node.tell(
        omaha_of(desk),
        Event(type=3, result=0, bascule_code="disk-full", bascule_sentence="no space on x"),
    )
    desk.store.close()
    assert "no space on x [disk-full]" in command("node", "list", published)[1]
    (listed,) = facts(command("node", "list", published, "--json", "--group", "default"))
    assert (listed["machine_id"], listed["error_code"]) == ("a" * 32, "disk-full")
    assert facts(command("node", "list", published, "--json", "--version", "9.9.9")) == []
    out = command("node", "show", published, "rack1")[1]
    assert "no space on x [disk-full]" in out
    assert "2.0.0" in out
    shown = facts(command("node", "show", published, "a" * 32, "--json"))
    assert [grant["phase"] for grant in shown["grants"]] == ["failed"]
    assert [event["code"] for event in shown["events"]] == ["disk-full"]


def test_signatures_are_shown_and_renewed(published: Path, command: Run) -> None:
    roles = {role["name"]: role for role in facts(command("metadata", "show", published, "--json"))}
    assert (roles["root"]["threshold"], roles["root"]["keys"]) == (2, 3)
    assert "2 of 3" in command("metadata", "show", published)[1]
    signed = facts(command("metadata", "refresh", published, "--role", "stable", "--json"))
    assert signed == {"signed": ["stable", "snapshot", "timestamp"]}
    assert command("metadata", "refresh", published, "--due")[1] == (
        "signed again: snapshot, timestamp\n"
    )


def test_offline_keys_may_come_from_anywhere(folder: Path, tmp_path: Path, command: Run) -> None:
    moved = tmp_path / "usb"
    shutil.move(folder / "keys/offline", moved)
    release = (folder, tmp_path / "1.0.0.crau", "--version", "1.0.0")
    assert refused(command("release", "add", *release)) == (3, "signing-keys-missing")
    assert command("release", "add", *release, "--keys", moved)[0] == 0
    assert command("channel", "promote", folder, "stable", "1.0.0", "--keys", moved)[0] == 0
    assert command("metadata", "refresh", folder)[0] == 0


def test_encrypted_keys_open_with_their_passphrase(tmp_path: Path, command: Run) -> None:
    words, wrong = tmp_path / "words", tmp_path / "wrong"
    words.write_text("correct horse\n")
    wrong.write_text("battery\n")
    desk = tmp_path / "desk"
    made = ("init", desk, "--channel", "stable", "--passphrase-file", words)
    assert command(*made)[0] == 0
    (tmp_path / "p.crau").write_bytes(payload_bytes("1.0.0"))
    release = ("release", "add", desk, tmp_path / "p.crau", "--version", "1.0.0")
    assert refused(command(*release)) == (3, "signing-key-file")
    assert refused(command(*release, "--passphrase-file", wrong)) == (3, "signing-key-file")
    assert refused(command(*release, "--passphrase-file", tmp_path / "no"))[1] == "signing-key-file"
    assert command(*release, "--passphrase-file", words)[0] == 0


def test_warnings_go_to_standard_error(folder: Path, tmp_path: Path, command: Run) -> None:
    release = (folder, tmp_path / "1.0.0.crau", "--version", "1.0.0", "--json")
    status, out, err = command("release", "add", *release)
    assert status == 0
    assert json.loads(out)["outcome"] == "signed"
    assert err.startswith("warning: no public key was given")


def test_the_keys_of_server_toml_are_used_without_being_named(
    folder: Path, tmp_path: Path, command: Run
) -> None:
    shutil.copy(tmp_path / "key.pub.pem", folder / "payload.pub.pem")
    settings = folder / "server.toml"
    text = settings.read_text().replace("payload_keys = []", 'payload_keys = ["payload.pub.pem"]')
    settings.write_text(text)
    release = (folder, tmp_path / "1.0.0.crau", "--version", "1.0.0")
    assert command("release", "add", *release)[2] == ""


# --- what a person does wrong


def broken_settings(folder: Path) -> None:
    (folder / "server.toml").write_text("public_url = ")


def unknown_key(folder: Path) -> None:
    with (folder / "server.toml").open("a") as file:
        file.write('colour = "blue"\n')


def no_database(folder: Path) -> None:
    (folder / "bascule.db").write_bytes(b"not a database, really" * 100)


def newer_database(folder: Path) -> None:
    with sqlite3.connect(folder / "bascule.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()


def no_metadata(folder: Path) -> None:
    shutil.rmtree(folder / "repository")


def torn_metadata(folder: Path) -> None:
    (folder / "repository/metadata/timestamp.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (broken_settings, (2, "desk-settings")),
        (unknown_key, (2, "desk-settings")),
        (no_database, (1, "database-unreadable")),
        (newer_database, (1, "database-newer")),
        (no_metadata, (2, "desk-missing")),
        (torn_metadata, (3, "repository-damaged")),
    ],
)
def test_a_damaged_desk_is_told_in_three_lines(
    folder: Path, command: Run, damage: Callable[[Path], None], expected: tuple[int, str]
) -> None:
    damage(folder)
    assert refused(command("group", "list", folder)) == expected
    assert refused(command("serve", folder, "--listen", "127.0.0.1:0")) == expected


def test_a_missing_database_is_made_anew(published: Path, command: Run) -> None:
    for file in published.glob("bascule.db*"):
        file.unlink()
    (release,) = facts(command("release", "list", published, "--json"))
    assert release["version"] == "2.0.0"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("group", "list", "{tmp}/nowhere"), (2, "desk-missing")),
        (("group", "list", "{tmp}"), (2, "desk-missing")),
        (("group", "list", "{tmp}/2.0.0.crau"), (2, "desk-missing")),
        (("init", "{desk}"), (3, "desk-exists")),
        (("init", "{tmp}/2.0.0.crau"), (3, "desk-exists")),
        (("init", "{tmp}/x", "--product", "a/b"), (2, "desk-settings")),
        (("init", "{tmp}/x", "--public-url", "ftp://x"), (2, "desk-settings")),
        (("init", "{tmp}/x", "--channel", "Root"), (2, "name-invalid")),
        (("release", "add", "{desk}", "{tmp}/no", "--version", "1"), (1, "file-unreadable")),
        (("release", "add", "{desk}", "{tmp}", "--version", "1"), (1, "file-unreadable")),
        (("release", "add", "{desk}", "{tmp}/key.pub.pem", "--version", "1"), (1, "payload-magic")),
        (("release", "add", "{desk}", "{tmp}/1.0.0.crau"), (2, "usage")),
        (
            ("release", "add", "{desk}", "{tmp}/1.0.0.crau", "--version", "x"),
            (1, "version-invalid"),
        ),
        (
            (
                "release",
                "add",
                "{desk}",
                "{tmp}/1.0.0.crau",
                "--version",
                "1",
                "--public-key",
                "no",
            ),
            (1, "key-unreadable"),
        ),
        (
            ("release", "add", "{desk}", "{tmp}/1.0.0.crau", "--version", "1", "--keys", "{tmp}"),
            (3, "signing-keys-missing"),
        ),
        (("release", "withdraw", "{desk}", "1.0.0"), (3, "release-unknown")),
        (("channel", "promote", "{desk}", "stable", "9.9"), (3, "release-unknown")),
        (("channel", "promote", "{desk}", "nightly", "9.9"), (3, "channel-missing")),
        (
            ("channel", "promote", "{desk}", "stable", "9.9", "--not-before", "soon"),
            (2, "time-invalid"),
        ),
        (
            ("channel", "promote", "{desk}", "stable", "9.9", "--not-before", "2026-12-01T06:00"),
            (2, "time-invalid"),
        ),
        (("channel", "create", "{desk}", "stable"), (3, "channel-exists")),
        (("channel", "create", "{desk}", "timestamp"), (2, "name-invalid")),
        (("channel", "set", "{desk}", "stable", "--base-url", "x"), (2, "name-invalid")),
        (("group", "create", "{desk}", "default"), (3, "group-exists")),
        (("group", "create", "{desk}", "a b"), (2, "name-invalid")),
        (("group", "create", "{desk}", "x", "--channel", "no"), (3, "channel-missing")),
        (("group", "set", "{desk}", "no"), (3, "group-unknown")),
        (("group", "set", "{desk}", "default", "--share", "101"), (2, "usage")),
        (("group", "set", "{desk}", "default", "--share", "nan"), (2, "usage")),
        (("group", "set", "{desk}", "default", "--max", "-1"), (2, "usage")),
        (("group", "set", "{desk}", "default", "--channel", "no"), (3, "channel-missing")),
        (("group", "pause", "{desk}", "no"), (3, "group-unknown")),
        (("group", "resume", "{desk}", "no"), (3, "group-unknown")),
        (("node", "show", "{desk}", "no"), (3, "node-unknown")),
        (("metadata", "refresh", "{desk}", "--role", "no"), (3, "role-unknown")),
        (("serve", "{desk}", "--listen", "here"), (1, "listen-failed")),
        (("serve", "{desk}", "--listen", "127.0.0.1:99999"), (1, "listen-failed")),
        (("serve", "{desk}", "--listen", "192.0.2.1:80"), (1, "listen-failed")),
        (("nonsense",), (2, "usage")),
        (("group", "list"), (2, "usage")),
    ],
)
def test_bad_input_is_told_in_three_lines(
    folder: Path,
    tmp_path: Path,
    command: Run,
    arguments: tuple[str, ...],
    expected: tuple[int, str],
) -> None:
    filled = [text.format(tmp=tmp_path, desk=folder) for text in arguments]
    assert refused(command(*filled)) == expected


def test_a_port_that_is_taken_is_named(folder: Path, command: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert refused(command("serve", folder, "--listen", address)) == (1, "listen-failed")


def test_every_command_has_an_example(command: Run) -> None:
    import rich_click as click

    from server.cli import cli

    def walk(group: click.Group) -> None:
        for one in group.commands.values():
            if isinstance(one, click.Group):
                walk(one)
            else:
                assert one.epilog is not None
                assert one.epilog.startswith("Example: bascule-server ")
                assert one.help

    walk(cli)
    assert command("--help")[0] == 0


def test_every_error_has_a_code_of_its_own_and_a_hint() -> None:
    from server import errors

    def leaves(kind: type[errors.ServerError]) -> list[type[errors.ServerError]]:
        found = [leaf for child in kind.__subclasses__() for leaf in leaves(child)]
        return found or [kind]

    kinds = leaves(errors.ServerError)
    codes = [kind.code for kind in kinds]
    assert len(set(codes)) == len(codes)
    assert all(kind.hint and kind.exit_status in {1, 2, 3, 6} for kind in kinds)
