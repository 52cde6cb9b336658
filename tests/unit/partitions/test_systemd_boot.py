"""The keeper in systemd-boot's entries: which files there are after each verb, and what it refuses.

What every keeper promises is in `test_boot_contract.py`; each cut of the power is in
`tests/sim/test_systemd_boot_power_cuts.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from partitions.boot.control import SlotState
from partitions.boot.systemd_boot import (
    VERSION_MAX,
    SystemdBootEntries,
    entry_content,
    obstacle,
    template_of,
)
from partitions.errors import (
    BootControlError,
    BootFolderError,
    LoaderDefaultError,
    LoaderForeignError,
    LoaderTemplateError,
)
from partitions.slots import Slot
from partitions.systemd_boot_firmware import ENTRIES, EntryName, LoaderEntry, lines
from tests.sim.boot_folder import FolderSim

A, B = Slot.A, Slot.B
TEMPLATE = b"title bascule\nlinux /bascule/%s/linux\ninitrd /bascule/%s/initrd\noptions quiet\n"
CONFIG = "loader/loader.conf"
KERNELS = {"bascule/a/linux": b"", "bascule/b/linux": b""}


def template(slot: Slot) -> bytes:
    return TEMPLATE % ((slot.value.encode(),) * 2)


def made(slot: Slot, version: int) -> bytes:
    return entry_content(slot, template(slot), version=version)


def disk(*more: tuple[str, bytes], **entries: bytes) -> FolderSim:
    return FolderSim(
        {
            **KERNELS,
            **{template_of(slot): template(slot) for slot in Slot},
            **{f"{ENTRIES}/{name}": content for name, content in entries.items()},
            **dict(more),
        }
    )


def entries_on(folder: FolderSim) -> Mapping[str, str]:
    """Return the name and version of each entry."""
    found = {name: folder.files[f"{ENTRIES}/{name}"] for name in folder.names(ENTRIES)}
    return {name: dict(lines(content)).get("version", "") for name, content in found.items()}


class TestContent:
    def test_it_is_one_sector_with_the_kernel_at_last(self) -> None:
        content = made(B, 7)
        assert len(content) == 512
        assert content.rstrip(b"\n").decode().splitlines() == [
            "sort-key bascule",
            "version 7",
            "title bascule",
            "initrd /bascule/b/initrd",
            "options quiet",
            "linux /bascule/b/linux",
        ]

    def test_cut_at_any_byte_it_starts_nothing_that_is_there(self) -> None:
        content = made(B, 7).rstrip(b"\n")
        name = EntryName("bascule-b.conf", "bascule-b")
        for size in range(len(content)):
            found = LoaderEntry.parse(name, content[:size])
            assert found is None or found.kernel not in KERNELS

    def test_a_uki_is_a_kernel(self) -> None:
        content = entry_content(A, b"efi /bascule/a/linux.efi\n", version=1)
        assert content.startswith(b"sort-key bascule\nversion 1\nefi /bascule/a/linux.efi\n\n")

    def test_comments_are_left_out(self) -> None:
        assert b"note" not in entry_content(A, b"# note\nlinux /a\n", version=1)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (b"", "has 0 lines `linux` or `efi` with a path"),
            (b"linux /a\nefi /b\n", "has 2 lines"),
            (b"linux /../a\n", "with a path, not 1"),
            (b"linux /a\nversion 3\nsort-key x\n", "that are not its own: sort-key, version"),
            (b"linux /a\nmachine-id 1\n", "not its own: machine-id"),
            (b"linux /a\noptions " + b"x" * 500, "its entry may have 547 bytes, a sector has 512"),
        ],
    )
    def test_a_template_that_makes_no_entry_is_refused(self, text: bytes, words: str) -> None:
        with pytest.raises(LoaderTemplateError, match=words) as refused:
            entry_content(B, text, version=1)
        assert str(refused.value).startswith("loader/bascule/b.conf: ")

    def test_the_longest_one_that_fits_is_taken(self) -> None:
        text = b"linux /a\noptions " + b"x" * 465
        for version in (1, VERSION_MAX):
            content = entry_content(B, text, version=version)
            assert len(content) == 512
            assert content.rstrip(b"\n").endswith(b"\nlinux /a")
        with pytest.raises(LoaderTemplateError):
            entry_content(B, text + b"x", version=1)


class TestFilesOfAVerb:
    def test_an_update_and_the_next(self) -> None:
        folder = disk(**{"bascule-a.conf": made(A, 1)})
        control = SystemdBootEntries(folder, booted=A)
        control.disarm(B)
        assert not folder.cuts
        control.arm(B, tries=3)
        assert entries_on(folder) == {"bascule-a.conf": "1", "bascule-b+3.conf": "2"}
        control.confirm(B)
        assert entries_on(folder) == {"bascule-a.conf": "1", "bascule-b.conf": "2"}
        control = SystemdBootEntries(folder, booted=B)
        control.disarm(A)
        assert entries_on(folder) == {"bascule-b.conf": "2"}
        control.arm(A, tries=1)
        assert entries_on(folder) == {"bascule-a+1.conf": "3", "bascule-b.conf": "2"}

    def test_a_rejected_slot_has_no_file_and_the_other_is_not_touched(self) -> None:
        folder = disk(**{"bascule-a.conf": made(A, 1), "bascule-b+0-1.conf": made(B, 2)})
        SystemdBootEntries(folder, booted=B).reject(B)
        assert entries_on(folder) == {"bascule-a.conf": "1"}

    def test_to_go_back_is_a_trial_with_a_higher_version(self) -> None:
        folder = disk(**{"bascule-a.conf": made(A, 1), "bascule-b.conf": made(B, 2)})
        SystemdBootEntries(folder, booted=B).arm(A, tries=1)
        assert entries_on(folder) == {"bascule-a+1.conf": "3", "bascule-b.conf": "2"}

    def test_to_prefer_the_lower_version_is_one_change_in_place(self) -> None:
        folder = disk(**{"bascule-a.conf": made(A, 1), "bascule-b.conf": made(B, 2)})
        SystemdBootEntries(folder).confirm(A)
        assert entries_on(folder) == {"bascule-a.conf": "3", "bascule-b.conf": "2"}
        assert len(folder.cuts) == 1

    def test_tries_that_are_given_back_get_a_name_that_can_be_counted_down(self) -> None:
        folder = disk(**{"bascule-a.conf": made(A, 1), "bascule-b+2-1.conf": made(B, 2)})
        control = SystemdBootEntries(folder, booted=B)
        control.arm(B, tries=3)  # +3 would become +2-1, which was there when the power failed
        assert entries_on(folder) == {"bascule-a.conf": "1", "bascule-b+3-1.conf": "2"}
        changes = len(folder.cuts)
        control.arm(B, tries=3)
        assert len(folder.cuts) == changes

    def test_a_changed_template_counts_from_the_next_verb_on(self) -> None:
        folder = disk(**{"bascule-a.conf": made(A, 1)})
        folder.files[template_of(A)] = b"linux /bascule/a/linux\noptions debug\n"
        SystemdBootEntries(folder).confirm(A)
        assert b"options debug\n" in folder.files[f"{ENTRIES}/bascule-a.conf"]
        assert len(folder.cuts) == 1

    def test_an_entry_made_by_hand_becomes_ours_and_never_goes_away(self) -> None:
        folder = disk(**{"bascule-a.conf": b"linux /bascule/a/linux\n"})
        SystemdBootEntries(folder).confirm(A)
        assert entries_on(folder) == {"bascule-a.conf": "1"}
        assert all(any(f"{ENTRIES}/bascule-a" in path for path in cut) for cut in folder.cuts)

    @pytest.mark.parametrize(
        "lines", [b"", b"version 6.1.0\nsort-key bascule\n", b"sort-key arch\nversion 1\n"]
    )
    def test_an_entry_that_our_numbers_do_not_rank_gets_a_number_first(self, lines: bytes) -> None:
        folder = disk(**{"bascule-a.conf": b"linux /bascule/a/linux\n" + lines})
        SystemdBootEntries(folder, booted=A).arm(B, tries=1)
        assert entries_on(folder) == {"bascule-a.conf": "1", "bascule-b+1.conf": "2"}
        assert SystemdBootEntries(folder).read().target is B

    def test_numbers_begin_anew_after_the_last_one(self) -> None:
        folder = disk(
            **{"bascule-a.conf": made(A, VERSION_MAX), "bascule-b.conf": made(B, VERSION_MAX - 1)}
        )
        SystemdBootEntries(folder, booted=A).arm(B, tries=1)
        assert entries_on(folder) == {"bascule-a.conf": "2", "bascule-b+1.conf": "3"}

    def test_files_of_others_are_not_touched(self) -> None:
        debian = b"title Debian\nlinux /vmlinuz\n"
        folder = disk(**{"bascule-a.conf": made(A, 1), "debian.conf": debian, "notes.txt": b""})
        control = SystemdBootEntries(folder, booted=A)
        control.arm(B, tries=1)
        control.confirm(B)
        control.reject(B)
        assert sorted(entries_on(folder)) == ["bascule-a.conf", "debian.conf", "notes.txt"]
        assert folder.files[f"{ENTRIES}/debian.conf"] == debian


class TestReading:
    def test_a_used_up_entry_is_not_armed_but_the_loader_would_take_it_at_last(self) -> None:
        folder = disk(**{"bascule-b+0-3.conf": made(B, 2)})
        state = SystemdBootEntries(folder).read()
        assert state.slots[B] == SlotState(armed=False, tries_left=0, confirmed=False)
        assert state.target is B

    def test_of_two_files_of_a_slot_the_loaders_first_counts(self) -> None:
        folder = disk(**{"bascule-b.conf": made(B, 2), "bascule-b+2.conf": made(B, 3)})
        state = SystemdBootEntries(folder).read().slots[B]
        assert state == SlotState(armed=True, tries_left=2, confirmed=False)

    @pytest.mark.parametrize("content", [b"", b"version 9\n", b"\0" * 512, b"linux /gone\n"])
    def test_what_starts_nothing_is_nothing(self, content: bytes) -> None:
        folder = disk(**{"bascule-a.conf": made(A, 1), "bascule-b+2.conf": content})
        state = SystemdBootEntries(folder).read()
        assert state.target is A
        assert not state.slots[B].armed

    def test_somebody_elses_entry_in_front_means_no_target(self) -> None:
        ahead = b"linux /bascule/a/linux\nsort-key arch\n"
        folder = disk(**{"bascule-a.conf": made(A, 1), "arch.conf": ahead})
        assert SystemdBootEntries(folder).read().target is None

    def test_a_folder_that_cannot_be_read_is_an_error(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(_self: FolderSim, name: str) -> list[str]:
            raise BootFolderError(f"{name}: Input/output error")

        monkeypatch.setattr(FolderSim, "names", broken)
        with pytest.raises(BootFolderError):
            SystemdBootEntries(disk()).read()

    def test_an_empty_mount_point_is_no_loader_that_remembers_nothing(self) -> None:
        for files in ({}, {f"{ENTRIES}/debian.conf": b"linux /vmlinuz\n"}):
            with pytest.raises(BootFolderError, match="not mounted"):
                SystemdBootEntries(FolderSim(files)).read()

    def test_one_template_or_one_entry_tells_the_partition(self) -> None:
        for name in (template_of(B), f"{ENTRIES}/bascule-b+0-3.conf"):
            state = SystemdBootEntries(FolderSim({name: b""})).read()
            assert not any(state.slots[slot].armed for slot in Slot)


class TestRefused:
    def refuse(self, folder: FolderSim, slot: Slot = B) -> BootControlError:
        with pytest.raises(BootControlError) as refused:
            SystemdBootEntries(folder, booted=A).arm(slot, tries=1)
        assert not folder.cuts
        return refused.value

    def test_without_a_template_nothing_is_armed(self) -> None:
        folder = disk(**{"bascule-a.conf": made(A, 1)})
        del folder.files[template_of(B)]
        assert str(self.refuse(folder)) == "loader/bascule/b.conf: it is not there"

    def test_a_kernel_that_is_not_there_is_not_armed(self) -> None:
        folder = disk(**{"bascule-a.conf": made(A, 1)})
        del folder.files["bascule/b/linux"]
        refused = self.refuse(folder)
        assert isinstance(refused, LoaderTemplateError)
        assert "it starts bascule/b/linux, which is not there" in str(refused)

    def test_with_a_default_the_loader_would_not_give_a_trial_up(self) -> None:
        config = ("loader/loader.conf", b"timeout 0\ndefault bascule*\n")
        folder = disk(config, **{"bascule-a.conf": made(A, 1)})
        refused = self.refuse(folder)
        assert isinstance(refused, LoaderDefaultError)
        assert str(refused) == "loader/loader.conf says `default bascule*`"

    def test_a_slot_behind_somebody_elses_entry_is_not_armed(self) -> None:
        ahead = b"linux /bascule/a/linux\nsort-key arch\n"
        refused = self.refuse(disk(**{"bascule-a.conf": made(A, 1), "arch.conf": ahead}))
        assert isinstance(refused, LoaderForeignError)
        assert str(refused) == "slot b is not armed: the loader would start arch.conf"

    def test_more_tries_than_one_digit(self) -> None:
        with pytest.raises(BootControlError, match="10 tries for slot b are not in 1 to 9"):
            SystemdBootEntries(disk()).arm(B, tries=10)

    def test_a_used_up_slot_is_nothing_to_fall_back_to(self) -> None:
        folder = disk(**{"bascule-a+0-1.conf": made(A, 1), "bascule-b.conf": made(B, 2)})
        control = SystemdBootEntries(folder, booted=A)
        with pytest.raises(BootControlError, match="nothing bootable would be left"):
            control.disarm(B)
        with pytest.raises(BootControlError, match="slot a would not boot"):
            control.reject(B)
        assert not folder.cuts


class TestWhatComesBeforeTheSlots:
    def test_nothing_does_by_itself(self) -> None:
        assert obstacle(disk(**{"bascule-a.conf": made(A, 1)})) is None
        assert obstacle(disk()) is None

    def test_a_default_does(self) -> None:
        found = obstacle(disk((CONFIG, b"default other*\n"), **{"bascule-a.conf": made(A, 1)}))
        assert isinstance(found, LoaderDefaultError)
        assert str(found) == "loader/loader.conf says `default other*`"

    def test_another_systems_entry_does_when_it_is_the_first(self) -> None:
        other = b"title other\nlinux /bascule/a/linux\n"
        entries = {"bascule-a.conf": made(A, 1), "zz.conf": b"sort-key a\n" + other}
        found = obstacle(disk(**entries))
        assert isinstance(found, LoaderForeignError)
        assert "zz.conf" in str(found)
        later = {"bascule-a.conf": made(A, 1), "zz.conf": b"sort-key z\n" + other}
        assert obstacle(disk(**later)) is None
