"""The model of systemd-boot. That `bootctl` orders entries alike is in tests/e2e/partitions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from partitions.boot_folder import BootFolder
from partitions.errors import NothingBootableError
from partitions.slots import Slot
from partitions.systemd_boot_firmware import (
    ENTRIES,
    EntryName,
    LoaderEntry,
    boot,
    compare_versions,
    entries,
    exists,
    files_of,
    kernel_path,
)

A, B = Slot.A, Slot.B


def entry(slot: str, version: int, *more: str) -> bytes:
    lines = (f"linux /bascule/{slot}/linux", "sort-key bascule", f"version {version}", *more)
    return "".join(f"{line}\n" for line in lines).encode()


def order(files: Mapping[str, bytes]) -> list[str]:
    return [found.name.file for found in entries(files, lambda _path: True)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for slot in "ab":
        (tmp_path / f"bascule/{slot}").mkdir(parents=True)
        (tmp_path / f"bascule/{slot}/linux").write_bytes(b"kernel")
    (tmp_path / ENTRIES).mkdir(parents=True)
    return tmp_path


def put(root: Path, **files: bytes) -> None:
    for name, content in files.items():
        (root / ENTRIES / name).write_bytes(content)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in (root / ENTRIES).iterdir())


class TestNames:
    @pytest.mark.parametrize(
        ("file", "stem", "left", "done"),
        [
            ("bascule-b.conf", "bascule-b", None, 0),
            ("bascule-b+3.conf", "bascule-b", 3, 0),
            ("bascule-b+2-1.conf", "bascule-b", 2, 1),
            ("bascule-b+0-3.conf", "bascule-b", 0, 3),
            ("bascule-b+03-01.conf", "bascule-b", 3, 1),
            ("x+1+2.conf", "x+1", 2, 0),
            ("x+.conf", "x+", None, 0),
            ("x+2-.conf", "x+2-", None, 0),
            ("x+2-1-1.conf", "x+2-1-1", None, 0),
            ("x+2147483648.conf", "x+2147483648", None, 0),
            ("x+2.CONF", "x+2", None, 0),
        ],
    )
    def test_counters_stand_before_the_suffix(
        self, file: str, stem: str, left: int | None, done: int
    ) -> None:
        assert EntryName.parse(file) == EntryName(file, stem, left, done)

    @pytest.mark.parametrize(
        "file", ["bascule-a", ".bascule-a.conf", "auto-a.conf", "BASCUL~1.CON", "a.conf.bak"]
    )
    def test_other_files_are_not_opened(self, file: str) -> None:
        assert EntryName.parse(file) is None

    @pytest.mark.parametrize(
        ("file", "slot"),
        [
            ("bascule-a.conf", A),
            ("bascule-b+2-1.conf", B),
            ("BASCULE-B.CONF", B),
            ("bascule-c.conf", None),
            ("my-bascule-a.conf", None),
            ("bascule-a-old.conf", None),
        ],
    )
    def test_the_stem_says_whose_it_is(self, file: str, slot: Slot | None) -> None:
        name = EntryName.parse(file)
        assert name
        assert name.slot is slot

    def test_a_try_goes_from_one_number_to_the_other(self) -> None:
        series = ["bascule-b+3.conf"]
        for _ in range(4):
            name = EntryName.parse(series[-1])
            assert name
            series.append(name.next)
        assert series[1:] == [f"bascule-b+{n}.conf" for n in ("2-1", "1-2", "0-3", "0-4")]

    def test_without_a_counter_nothing_is_counted(self) -> None:
        assert EntryName("bascule-b.conf", "bascule-b").next == "bascule-b.conf"


class TestContent:
    def read(self, content: bytes) -> LoaderEntry | None:
        return LoaderEntry.parse(EntryName("x.conf", "x"), content)

    def test_keys_and_values_are_split_at_blanks_and_tabs(self) -> None:
        text = b'# note\n\n  linux \t //bascule//a/linux\t\nversion "7"\r\nsort-key\tbascule\n'
        found = self.read(text)
        assert found
        assert (found.kernel, found.version, found.sort_key) == ("bascule/a/linux", "7", "bascule")

    @pytest.mark.parametrize(
        "content",
        [b"", b"\n\n", b"version 3\n", b"linux\n", b"#linux /a\n", b"\0linux /a\n", b"linux /../a"],
    )
    def test_what_names_no_kernel_is_no_entry(self, content: bytes) -> None:
        assert self.read(content) is None

    def test_bytes_that_are_no_text_do_no_harm(self) -> None:
        assert self.read(bytes(range(1, 256)) * 2) is None

    def test_a_path_may_have_either_slash(self) -> None:
        assert kernel_path("\\EFI\\x/./y.efi") == "EFI/x/y.efi"


class TestVersions:
    @pytest.mark.parametrize(
        ("older", "newer"),
        [
            ("1", "2"),
            ("9", "10"),
            ("", "1"),
            ("1~rc1", "1"),
            ("1", "1.1"),
            ("1-2", "1.2"),
            ("1a", "1b"),
            ("1.1", "1a"),
            ("a", "1"),
            ("a", "0"),
            ("1^", "1.1"),
            ("a.conf", "b.conf"),
        ],
    )
    def test_newer_is_newer_both_ways(self, older: str, newer: str) -> None:
        assert compare_versions(newer, older) == 1
        assert compare_versions(older, newer) == -1

    @pytest.mark.parametrize(("one", "two"), [("", ""), ("1", "001"), ("a+b", "a_b")])
    def test_equal_is_equal(self, one: str, two: str) -> None:
        assert compare_versions(one, two) == 0


class TestOrder:
    def test_of_entries_with_boots_left_the_higher_version_is_first(self) -> None:
        files = {
            "bascule-a.conf": entry("a", 9),
            "bascule-b+3.conf": entry("b", 10),
            "bascule-b+0-3.conf": entry("b", 11),
        }
        assert order(files) == ["bascule-b+3.conf", "bascule-a.conf", "bascule-b+0-3.conf"]

    def test_entries_without_a_sort_key_come_behind(self) -> None:
        files = {"z.conf": b"linux /z\nversion 99\n", "bascule-a.conf": entry("a", 1)}
        assert order(files) == ["bascule-a.conf", "z.conf"]

    def test_another_sort_key_goes_by_the_alphabet(self) -> None:
        files = {
            "x.conf": b"linux /x\nsort-key arch\n",
            "bascule-a.conf": entry("a", 1),
            "y.conf": b"linux /y\nsort-key debian\n",
        }
        assert order(files) == ["x.conf", "bascule-a.conf", "y.conf"]

    def test_the_machine_id_comes_before_the_version(self) -> None:
        files = {
            "bascule-a.conf": entry("a", 9, "machine-id 2"),
            "bascule-b.conf": entry("b", 1, "machine-id 1"),
        }
        assert order(files) == ["bascule-b.conf", "bascule-a.conf"]

    def test_of_equal_versions_the_later_name_is_first(self) -> None:
        files = {"bascule-a.conf": entry("a", 1), "bascule-b.conf": entry("b", 1)}
        assert order(files) == ["bascule-b.conf", "bascule-a.conf"]

    def test_an_entry_whose_kernel_is_not_there_is_passed_over(self, root: Path) -> None:
        put(root, **{"bascule-a.conf": entry("a", 1), "bascule-b.conf": entry("b", 2)})
        (root / "bascule/b/linux").unlink()
        assert boot(root) is A

    def test_a_kernel_is_found_whatever_its_capitals(self, root: Path) -> None:
        folder = BootFolder(root)
        assert exists(folder, "bascule/a/LINUX")
        assert not exists(folder, "bascule/a/linux.efi")
        (root / "top").touch()
        assert exists(folder, "top")


class TestBooting:
    def test_tries_are_counted_until_the_other_one_is_better(self, root: Path) -> None:
        put(root, **{"bascule-a.conf": entry("a", 1), "bascule-b+2.conf": entry("b", 2)})
        assert [boot(root) for _ in range(4)] == [B, B, A, A]
        assert names(root) == ["bascule-a.conf", "bascule-b+0-2.conf"]

    def test_when_no_boots_are_left_anywhere_the_first_is_tried_on_and_on(self, root: Path) -> None:
        put(root, **{"bascule-a+0-1.conf": entry("a", 1), "bascule-b+0-3.conf": entry("b", 2)})
        assert [boot(root) for _ in range(2)] == [B, B]
        assert names(root) == ["bascule-a+0-1.conf", "bascule-b+0-5.conf"]

    def test_a_name_that_is_taken_is_not_taken_away(self, root: Path) -> None:
        put(root, **{"bascule-b+2.conf": entry("b", 1), "bascule-b+1-1.conf": b""})
        assert [boot(root) for _ in range(3)] == [B, B, B]
        assert names(root) == ["bascule-b+1-1.conf", "bascule-b+2.conf"]

    def test_without_entries_nothing_boots(self, root: Path) -> None:
        with pytest.raises(NothingBootableError, match="no entry that starts a kernel"):
            boot(root)

    def test_an_entry_of_no_slot_is_counted_and_told(self, root: Path) -> None:
        put(root, **{"rescue+2.conf": entry("a", 1)})
        with pytest.raises(NothingBootableError, match=r"starts rescue\+2\.conf, which is of no"):
            boot(root)
        assert names(root) == ["rescue+1-1.conf"]

    def test_a_file_that_cannot_be_read_is_passed_over(self, root: Path) -> None:
        put(root, **{"huge.conf": bytes(70_000), "bascule-a.conf": entry("a", 1)})
        assert files_of(BootFolder(root))["huge.conf"] == b""
        assert boot(root) is A
