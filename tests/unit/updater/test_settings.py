from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from partitions.boot import AUTO, KEEPERS
from partitions.slots import Slot
from updater.assembly import slot_layout
from updater.errors import (
    EXIT_USAGE,
    SettingsError,
    SettingsMissingError,
    WindowInvalidError,
)
from updater.settings import SETTINGS_MAX_BYTES, Loaded, load

WHOLE: Final = """\
[slots]
disk = "/dev/vda"
a = { usr = "PARTLABEL=USR-A" }
b = { usr = "PARTLABEL=USR-B" }

[trust]
metadata_url = "https://updates.example/repository/metadata/"
"""


def write(folder: Path, text: str, name: str = "node.toml") -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def refusal(folder: Path, text: str, *, drop_in: str = "") -> str:
    """Return the sentence that these settings are refused with."""
    file = write(folder, text)
    if drop_in:
        write(folder, drop_in, "node.toml.d/10-more.toml")
    with pytest.raises(SettingsError) as caught:
        load(file)
    assert (caught.value.code, caught.value.exit_status) == ("settings-invalid", EXIT_USAGE)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def loaded(folder: Path, text: str) -> Loaded:
    return load(write(folder, text))


def test_the_few_lines_that_must_be_there_are_enough(tmp_path: Path) -> None:
    settings = loaded(tmp_path, WHOLE).settings
    assert settings.slots.a == {"usr": "PARTLABEL=USR-A"}
    assert settings.updates.reboot == "manual"
    assert settings.node.reboot_command == ["systemctl", "reboot"]


class TestWhereTheyComeFrom:
    def test_drop_ins_come_after_the_file_and_by_name(self, tmp_path: Path) -> None:
        file = write(tmp_path, WHOLE + '[server]\ngroup = "first"\nchannel = "kept"\n')
        write(tmp_path, '[server]\ngroup = "last"\n', "node.toml.d/20.toml")
        write(tmp_path, '[server]\ngroup = "middle"\n', "node.toml.d/10.toml")
        write(tmp_path, "nonsense", "node.toml.d/30.toml.disabled")
        found = load(file)
        assert (found.settings.server.group, found.settings.server.channel) == ("last", "kept")
        assert [path.name for path in found.files] == ["node.toml", "10.toml", "20.toml"]

    def test_runtime_wins_over_admin_and_admin_over_vendor(self, tmp_path: Path) -> None:
        vendor, admin, runtime = (tmp_path / name for name in ("usr", "etc", "run"))
        write(vendor, WHOLE + '[server]\ngroup = "vendor"\nchannel = "vendor"\n', "bascule.toml")
        write(vendor, '[server]\npoll_interval_secs = 7\ngroup = "v2"\n', "bascule.toml.d/9.toml")
        write(admin, '[server]\ngroup = "admin"\nchannel = "admin"\n', "bascule.toml.d/1.toml")
        write(runtime, '[server]\ngroup = "runtime"\n', "bascule.toml")
        server = load(folders=(vendor, admin, runtime)).settings.server
        assert (server.group, server.channel, server.poll_interval_secs) == ("runtime", "admin", 7)

    def test_each_value_knows_the_file_that_had_the_last_word(self, tmp_path: Path) -> None:
        file = write(tmp_path, WHOLE + '[server]\ngroup = "first"\n')
        more = write(tmp_path, '[server]\ngroup = "last"\n', "node.toml.d/10.toml")
        origins = load(file).origins
        assert origins["server.group"] == more
        assert origins["slots.disk"] == file
        assert "server.channel" not in origins

    def test_tables_merge_and_lists_are_replaced(self, tmp_path: Path) -> None:
        file = write(tmp_path, WHOLE + '[download]\nmirrors = ["https://one.example"]\nretries=1\n')
        write(tmp_path, '[download]\nmirrors = ["https://two.example"]\n', "node.toml.d/1.toml")
        download = load(file).settings.download
        assert (download.mirrors, download.retries) == (["https://two.example"], 1)

    def test_no_file_at_all_says_what_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match=r"slots\.disk is not set"):
            load(folders=(tmp_path,))

    @pytest.mark.parametrize("name", ["missing.toml", "."])
    def test_a_file_that_is_named_must_be_there(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(SettingsMissingError, match="does not exist or is no file") as caught:
            load(tmp_path / name)
        assert "config check" not in caught.value.hint

    def test_a_file_that_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        file = write(tmp_path, WHOLE)
        (tmp_path / "node.toml.d").mkdir()
        (tmp_path / "node.toml.d" / "10.toml").mkdir()
        with pytest.raises(SettingsError, match=r"10\.toml cannot be read: Is a directory"):
            load(file)

    def test_a_file_as_no_person_writes_it_is_not_read_to_its_end(self, tmp_path: Path) -> None:
        assert "longer than" in refusal(tmp_path, WHOLE + "#" * SETTINGS_MAX_BYTES)


class TestWhatIsRefused:
    def test_broken_toml_names_file_line_and_column(self, tmp_path: Path) -> None:
        sentence = refusal(tmp_path, WHOLE + "[server\n")
        assert sentence.startswith(f"{tmp_path}/node.toml is not TOML:")
        assert "line 8, column 8" in sentence

    def test_bytes_that_are_no_text_are_refused(self, tmp_path: Path) -> None:
        file = tmp_path / "node.toml"
        file.write_bytes(b"[slots]\ndisk = '\xff'\n")
        with pytest.raises(SettingsError, match="is not TOML"):
            load(file)

    @pytest.mark.parametrize(
        ("extra", "key", "line"),
        [
            ('[server]\nurl = "x"\n', "server.url", 9),
            ('\n\n[server]\n# a note\n"url" = "x"\n', "server.url", 12),
            ("[sever]\n", "sever", 8),
            ('[[health.checks]]\nname = "x"\ncomand = ["true"]\n', "health.checks.comand", 10),
            (
                '[[reboot.windows]]\nstart = ""\n\n[[reboot.windows]]\nlength = ""\nbegin = ""\n',
                "reboot.windows.begin",
                13,
            ),
            ("download = { retries = 1, retrys = 2 }\n", "download.retrys", 1),
            ("download.retrys = 2\n", "download.retrys", 1),
        ],
    )
    def test_an_unknown_key_names_file_and_line(
        self, tmp_path: Path, extra: str, key: str, line: int
    ) -> None:
        text = extra + WHOLE if line == 1 else WHOLE + extra
        expected = f"{tmp_path}/node.toml, line {line}: unknown key '{key}'"
        assert refusal(tmp_path, text) == expected

    def test_an_unknown_key_of_a_drop_in_names_the_drop_in(self, tmp_path: Path) -> None:
        sentence = refusal(tmp_path, WHOLE, drop_in="[updates]\nrebot = 1\n")
        assert (
            sentence == f"{tmp_path}/node.toml.d/10-more.toml, line 2: unknown key 'updates.rebot'"
        )

    @pytest.mark.parametrize(
        ("extra", "key", "line", "words"),
        [
            ('[server]\npoll_interval_secs = "7"\n', "server.poll_interval_secs", 9, "float"),
            ("[server]\npoll_interval_secs = 0\n", "server.poll_interval_secs", 9, "> 0"),
            ("[server]\ngroup = 'a b'\n", "server.group", 9, "must be a name of at most 64"),
            ("[metrics]\ntextfile = 'x'\n", "metrics.textfile", 9, "path that ends in .prom"),
            ("[bus]\naddress = 'x'\n", "bus.address", 9, "unix:path=… or unix:abstract=…"),
            ("[node]\nmachine = 'vm'\n", "node.machine", 9, "there are: linux, model"),
            ("[updates]\nreboot = 'now'\n", "updates.reboot", 9, "enum value 'now'"),
            ("[updates]\nautomatic = 1\n", "updates.automatic", 9, "Expected `bool`"),
            ("[updates]\nmax_attempts = 1000\n", "updates.max_attempts", 9, "<= 100"),
            ("[node]\nreboot_command = []\n", "node.reboot_command", 9, "length >= 1"),
            ("[node]\nreboot_command = ['a', 1]\n", "node.reboot_command", 9, "Expected `str`"),
            ("[health]\nchecks = 3\n", "health.checks", 9, "Expected `array`"),
            (
                "[[health.checks]]\nname = 'a'\ncommand = 'true'\n",
                "health.checks.command",
                10,
                "Expected `array`",
            ),
            ("[[health.checks]]\nname = 'a'\n", "health.checks", 8, "missing required"),
        ],
    )
    def test_a_wrong_value_names_file_line_and_key(
        self, tmp_path: Path, extra: str, key: str, line: int, words: str
    ) -> None:
        sentence = refusal(tmp_path, WHOLE + extra)
        assert sentence.startswith(f"{tmp_path}/node.toml, line {line}: {key}")
        assert words in sentence

    def test_the_boot_loaders_are_those_that_we_can_speak_to(self, tmp_path: Path) -> None:
        text = WHOLE.replace("[slots]\n", '[slots]\nboot_control = "lilo"\n')
        sentence = refusal(tmp_path, text)
        assert "line 2: slots.boot_control: Invalid enum value 'lilo'; there are: " in sentence
        assert set(sentence.partition("there are: ")[2].split(", ")) == {AUTO, *KEEPERS}

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("/dev/sda3", "must be PARTLABEL=…, PARTUUID=… or FILE=/absolute/path"),
            ("FIL=/boot/b/linux", "must be PARTLABEL=…"),
            ("FILE=boot/b/linux", "must be PARTLABEL=…"),
            (" PARTLABEL=x", "must be PARTLABEL=…"),
            ("USR-B", "must be PARTLABEL=…"),
            ("PARTLABEL=", "must be PARTLABEL=…"),
            ("PARTUUID=xyz", "badly formed"),
            ("FILE=/boot/a b", "'/boot/a b' is no absolute path"),
            ("FILE=/boot/../etc/shadow", "'/boot/../etc/shadow' is no absolute path"),
        ],
    )
    def test_a_part_is_named_in_one_of_three_ways(
        self, tmp_path: Path, text: str, words: str
    ) -> None:
        sentence = refusal(tmp_path, WHOLE.replace("PARTLABEL=USR-B", text))
        assert sentence.startswith(f"{tmp_path}/node.toml, line 4: slots.b.usr: {text!r}")
        assert words in sentence

    def test_a_part_in_a_table_of_its_own_names_its_line(self, tmp_path: Path) -> None:
        text = WHOLE.replace('b = { usr = "PARTLABEL=USR-B" }', '[slots.b]\n\nusr = "USR-B"')
        assert "node.toml, line 6: slots.b.usr: 'USR-B' must be" in refusal(tmp_path, text)

    @pytest.mark.parametrize(
        ("a", "b"),
        [
            ("PARTLABEL=USR-A", "PARTLABEL=USR-A"),
            (f"PARTUUID={'a' * 8}-0000-0000-0000-{'0' * 12}",) * 2,
            (f"PARTUUID={'a' * 32}", f"PARTUUID={'A' * 32}"),
            ("FILE=/boot/a/linux", "FILE=/boot/A/Linux"),
        ],
    )
    def test_no_two_parts_are_one(self, tmp_path: Path, a: str, b: str) -> None:
        text = WHOLE.replace("PARTLABEL=USR-A", a).replace("PARTLABEL=USR-B", b)
        expected = f"{tmp_path}/node.toml, line 4: slots.b.usr: {b!r} is what slots.a.usr names"
        assert refusal(tmp_path, text) == f"{expected} already"

    def test_labels_tell_small_and_large_letters_apart(self, tmp_path: Path) -> None:
        loaded(tmp_path, WHOLE.replace("USR-B", "usr-a"))

    def test_a_boot_file_is_a_part_like_another(self, tmp_path: Path) -> None:
        text = WHOLE.replace('USR-A"', 'USR-A", kernel = "FILE=/boot/a/linux"')
        text = text.replace('USR-B"', 'USR-B", kernel = "FILE=/boot/b/linux"')
        layout = slot_layout(load(write(tmp_path, text)).settings)
        assert layout[Slot.B]["kernel"].file == Path("/boot/b/linux")

    def test_a_table_that_is_none_names_file_and_line(self, tmp_path: Path) -> None:
        sentence = refusal(tmp_path, "server = 3\n" + WHOLE)
        assert sentence.startswith(f"{tmp_path}/node.toml, line 1: server: Expected `object`")

    def test_both_slots_have_the_same_parts(self, tmp_path: Path) -> None:
        text = WHOLE.replace('b = { usr = "PARTLABEL=USR-B" }', 'b = { root = "PARTLABEL=B" }')
        assert "slots.a and slots.b must name the same parts" in refusal(tmp_path, text)

    def test_a_slot_has_a_part(self, tmp_path: Path) -> None:
        text = '[slots]\ndisk = "/dev/vda"\n[trust]\nmetadata_url = "https://x.example/"\n'
        assert "at least one" in refusal(tmp_path, text)

    def test_grubs_environment_needs_its_file(self, tmp_path: Path) -> None:
        grub = WHOLE.replace("[slots]\n", '[slots]\nboot_control = "grubenv"\n')
        assert "slots.grubenv is not set" in refusal(tmp_path, grub)
        relative = grub.replace("[slots]\n", '[slots]\ngrubenv = "grub/grubenv"\n')
        assert "slots.grubenv 'grub/grubenv' is no absolute path" in refusal(tmp_path, relative)

    def test_a_custom_loader_needs_its_program(self, tmp_path: Path) -> None:
        text = WHOLE.replace("[slots]\n", '[slots]\nboot_control = "custom"\n')
        assert "slots.custom_command is empty" in refusal(tmp_path, text)
        loaded(tmp_path, text.replace("[slots]\n", '[slots]\ncustom_command = ["/bin/x"]\n'))

    def test_grubs_environment_is_checked_when_it_would_be_found(self, tmp_path: Path) -> None:
        text = WHOLE.replace("[slots]\n", '[slots]\ngrubenv = "grub/grubenv"\n')
        assert "is no absolute path" in refusal(tmp_path, text)

    def test_grubs_environment_counts_fewer_tries(self, tmp_path: Path) -> None:
        text = WHOLE.replace(
            "[slots]\n",
            '[slots]\nboot_control = "grubenv"\ngrubenv = "/boot/grub/grubenv"\ntries = 10\n',
        )
        sentence = refusal(tmp_path, text)
        assert "slots.tries is 10, GRUB's environment counts to 9" in sentence
        loaded(tmp_path, text.replace("tries = 10", "tries = 9"))

    @pytest.mark.parametrize(
        ("boot_control", "tries", "words"),
        [
            ("systemd-boot", 10, "an entry of systemd-boot counts to 9"),
            ("efi", 2, "the firmware's BootNext counts to 1"),
        ],
    )
    def test_a_loader_counts_no_further_than_it_can(
        self, tmp_path: Path, boot_control: str, tries: int, words: str
    ) -> None:
        text = WHOLE.replace(
            "[slots]\n", f'[slots]\nboot_control = "{boot_control}"\ntries = {tries}\n'
        )
        assert f"slots.tries is {tries}, {words}" in refusal(tmp_path, text)
        loaded(tmp_path, text.replace(f"tries = {tries}", f"tries = {tries - 1}"))

    @pytest.mark.parametrize(
        ("boot_control", "key"),
        [("systemd-boot", "boot_folder"), ("efi", "efivars"), ("uboot", "uboot_config")],
    )
    def test_a_model_does_not_touch_what_this_machine_boots_from(
        self, tmp_path: Path, boot_control: str, key: str
    ) -> None:
        text = WHOLE.replace("[slots]\n", f'[slots]\nboot_control = "{boot_control}"\n')
        loaded(tmp_path, text)
        model = f'{text}[node]\nmachine = "model"\n'
        assert f"slots.{key} is this machine's own /" in refusal(tmp_path, model)
        loaded(tmp_path, model.replace("[slots]\n", f'[slots]\n{key} = "/tmp/model"\n'))

    def test_permits_of_etcd_need_an_etcd(self, tmp_path: Path) -> None:
        sentence = refusal(tmp_path, WHOLE + '[permit]\nkind = "etcd"\n')
        assert "permit.endpoints is empty" in sentence

    def test_without_metadata_nothing_could_be_trusted(self, tmp_path: Path) -> None:
        assert "trust.metadata_url is not set" in refusal(tmp_path, WHOLE.split("[trust]")[0])

    @pytest.mark.parametrize(
        "url", ["updates.example", "ftp://updates.example/", "https://user:secret@updates.example/"]
    )
    @pytest.mark.parametrize(
        ("table", "line"),
        [
            ("server", 'omaha_url = "{}"'),
            ("download", 'mirrors = ["https://good.example", "{}"]'),
        ],
    )
    def test_a_server_is_reached_by_http_without_user_information(
        self, tmp_path: Path, table: str, line: str, url: str
    ) -> None:
        sentence = refusal(tmp_path, f"{WHOLE}[{table}]\n{line.format(url)}\n")
        assert f"{url!r} is no http or https URL" in sentence

    @pytest.mark.parametrize("url", ["ftp://x.example/", "x.example", "https://", "https://u@x/"])
    def test_metadata_comes_by_http_or_from_a_folder(self, tmp_path: Path, url: str) -> None:
        sentence = refusal(
            tmp_path, WHOLE.replace("https://updates.example/repository/metadata/", url)
        )
        assert f"trust.metadata_url {url!r} is no http, https or file URL" in sentence
        write(tmp_path, WHOLE.replace("https://updates.example", "file:///srv/mirror"))
        load(tmp_path / "node.toml")


WINDOWS: Final = """\
[[reboot.windows]]
start = "Sun 02:00"
length = "4h"

[[reboot.windows]]
length = "1h"
start = "Sat 12:00"
timezone = "Europe/Berlin"
"""


class TestHealth:
    def test_units_ports_and_times_are_read(self, tmp_path: Path) -> None:
        health = loaded(
            tmp_path,
            WHOLE
            + '[health]\nunits = ["sshd.service", "dev-by\\\\x2dlabel.device", "a@b.socket"]\n'
            + 'ports = ["127.0.0.1:22", "[::1]:80", "unix:/run/x.sock"]\n'
            + "no_failed_units = true\nsteady_secs = 299\n",
        ).settings.health
        assert health.units[1] == r"dev-by\x2dlabel.device"
        assert (len(health.ports), health.no_failed_units, health.steady_secs) == (3, True, 299)

    @pytest.mark.parametrize(
        "name", ["", "sshd", "--now", "*.service", "a b.service", "x.service\\n", "x.conf"]
    )
    def test_what_is_no_name_of_a_unit_is_refused(self, tmp_path: Path, name: str) -> None:
        said = refusal(tmp_path, f'{WHOLE}[health]\nunits = ["{name}"]\n')
        assert "node.toml, line 9: health.units: '" in said
        assert "must be a unit's full name, such as sshd.service" in said

    def test_what_is_no_address_is_refused(self, tmp_path: Path) -> None:
        said = refusal(tmp_path, f'{WHOLE}[health]\nports = ["127.0.0.1:22", "localhost:80"]\n')
        assert "health.ports: 'localhost:80': it must be 127.0.0.1:22" in said

    @pytest.mark.parametrize(("steady", "deadline"), [(300, 300), (10, 9.5)])
    def test_a_steady_time_needs_room_before_the_deadline(
        self, tmp_path: Path, steady: float, deadline: float
    ) -> None:
        text = f"{WHOLE}[health]\nsteady_secs = {steady}\ndeadline_secs = {deadline}\n"
        assert (
            f"health.steady_secs is {steady:g}, which leaves no room within "
            f"health.deadline_secs ({deadline:g})" in refusal(tmp_path, text)
        )


class TestRebootWindows:
    def test_are_a_list_of_starts_and_lengths(self, tmp_path: Path) -> None:
        windows = loaded(tmp_path, WHOLE + WINDOWS).settings.reboot.windows
        assert [(w.start, w.length, w.timezone) for w in windows] == [
            ("Sun 02:00", "4h", ""),
            ("Sat 12:00", "1h", "Europe/Berlin"),
        ]

    @pytest.mark.parametrize(
        ("right", "wrong", "words"),
        [
            ("Sat 12:00", "Sat 25:00", "hour 25 is not within 0..23"),
            ("1h", "1", "length '1' is no time span"),
            ("1h", "30s", "not within one minute and seven days"),
            ("Europe/Berlin", "Europe/Berln", "time zone 'Europe/Berln' is not known here"),
            ("12:00", "12:00 UTC", "two time zones"),
        ],
    )
    def test_that_do_not_hold_are_refused_where_they_are_written(
        self, tmp_path: Path, right: str, wrong: str, words: str
    ) -> None:
        file = write(tmp_path, WHOLE + WINDOWS.replace(right, wrong))
        with pytest.raises(WindowInvalidError) as caught:
            load(file)
        assert str(caught.value).startswith(f"{file}, line 14: ")
        assert words in str(caught.value)
        assert (caught.value.code, caught.value.exit_status) == ("window-invalid", EXIT_USAGE)

    @pytest.mark.parametrize("wrong", ["timezone = 1", 'length = ""'])
    def test_of_the_wrong_kind_name_the_line_in_their_own_table(
        self, tmp_path: Path, wrong: str
    ) -> None:
        key = wrong.partition(" ")[0]
        text = "\n".join(
            wrong if line.startswith(key) and number > 4 else line
            for number, line in enumerate(WINDOWS.splitlines())
        )
        line = 13 if key == "length" else 15
        assert f"node.toml, line {line}: reboot.windows.{key}: Expected" in refusal(
            tmp_path, WHOLE + text
        )

    def test_do_not_keep_the_service_down_in_an_image_without_time_zones(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("updater.zones._find", lambda _name: None)
        assert len(loaded(tmp_path, WHOLE + WINDOWS).settings.reboot.windows) == 2


class TestLimitsOfDownloads:
    @pytest.mark.parametrize("rate", [1, 7])
    def test_a_rate_at_which_a_mirror_seems_to_stall_is_refused(
        self, tmp_path: Path, rate: int
    ) -> None:
        sentence = refusal(tmp_path, f"{WHOLE}[download]\nmax_kib_per_sec = {rate}\n")
        assert f"download.max_kib_per_sec is {rate}; give 8 or more, or 0 for no limit" in sentence

    @pytest.mark.parametrize("rate", [0, 8, 100_000])
    def test_other_rates_hold(self, tmp_path: Path, rate: int) -> None:
        settings = loaded(tmp_path, f"{WHOLE}[download]\nmax_kib_per_sec = {rate}\n").settings
        assert settings.download.max_kib_per_sec == rate

    def test_a_file_that_says_metered_has_an_absolute_path(self, tmp_path: Path) -> None:
        sentence = refusal(tmp_path, f'{WHOLE}[download]\nmetered_file = "metered"\n')
        assert "download.metered_file must be an absolute path, or empty" in sentence

    @pytest.mark.parametrize(
        "key", ["max_mib_per_update", "max_mib_per_day", "metered_max_mib", "recode_max_mib"]
    )
    def test_a_limit_below_zero_is_refused(self, tmp_path: Path, key: str) -> None:
        assert key in refusal(tmp_path, f"{WHOLE}[download]\n{key} = -1\n")
