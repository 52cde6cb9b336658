"""Power may fail at any instant of a verb on systemd-boot's entries, and trials go on from there.

Design, promises 2 and 3. The loader starts what it would have started before or what it would
start after, whole; the tries end; and the next verb on the slot leaves it one file. A cut within
the loader's own rename is not examined here: that is the firmware's.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest

from partitions.boot import systemd_boot
from partitions.boot.control import BootControl
from partitions.boot.systemd_boot import (
    TRIES_MAX,
    VERSION_MAX,
    EntriesFound,
    SystemdBootEntries,
    entry_content,
    template_of,
)
from partitions.errors import BootControlError
from partitions.slots import Slot
from partitions.systemd_boot_firmware import ENTRIES, EntryName, LoaderEntry, choose, entries
from tests.sim.boot_folder import Files, FolderSim

A, B = Slot.A, Slot.B
VERBS: Mapping[str, Callable[[BootControl, Slot], None]] = {
    "disarm": lambda control, slot: control.disarm(slot),
    "arm": lambda control, slot: control.arm(slot, tries=2),
    "confirm": lambda control, slot: control.confirm(slot),
    "reject": lambda control, slot: control.reject(slot),
}
TEMPLATES = {
    slot: b"title bascule %s\nlinux /bascule/%s/linux\ninitrd /bascule/%s/initrd\noptions whole\n"
    % ((slot.value.encode(),) * 3)
    for slot in Slot
}
DISK: Files = {template_of(slot): TEMPLATES[slot] for slot in Slot} | {
    f"bascule/{slot.value}/{file}": b"" for slot in Slot for file in ("linux", "initrd")
}
HAND_MADE = b"linux /bascule/%s/linux\nsort-key bascule\noptions whole\nversion %d"

MARKS: Mapping[str, tuple[str, ...]] = {
    "disarmed": (),
    "confirmed": (".conf",),
    "one try": ("+1.conf",),
    "tries": ("+2-1.conf",),
    "same tries": ("+2.conf",),
    "used up": ("+0-2.conf",),
    "cut confirm": (".conf", "+0-1.conf"),
    "cut arm": (".conf", "+2.conf"),
    "two trials": ("+2.conf", "+1-3.conf"),
}
"""What a slot may be found as: its files, by what follows `bascule-a`."""

JUNK: Mapping[str, Callable[[Slot, int], Files]] = {
    "empty": lambda slot, _: {f"{ENTRIES}/bascule-{slot.value}.conf": b""},
    "torn": lambda slot, _: {f"{ENTRIES}/bascule-{slot.value}+2.conf": b"version 9\n"},
    "hand-made": lambda slot, version: {
        f"{ENTRIES}/bascule-{slot.value}.conf": HAND_MADE % (slot.value.encode(), version)
    },
}


def marked(slot: Slot, mark: str, version: int) -> Files:
    if mark in JUNK:
        return JUNK[mark](slot, version)
    content = entry_content(slot, TEMPLATES[slot], version=version)
    # Of two files the one that was made later has the higher version.
    other = entry_content(slot, TEMPLATES[slot], version=max(version - 2, 1))
    names = [f"{ENTRIES}/bascule-{slot.value}{end}" for end in MARKS[mark]]
    return dict(zip(names, [other, content][2 - len(names) :], strict=True))


def found_in(files: Files) -> EntriesFound:
    return _found_in(frozenset(files.items()))


@functools.lru_cache(maxsize=50_000)
def _found_in(items: frozenset[tuple[str, bytes]]) -> EntriesFound:
    files = dict(items)
    inside = {
        path.removeprefix(f"{ENTRIES}/"): data for path, data in files.items() if ENTRIES in path
    }
    return EntriesFound(inside, tuple(entries(inside, files.__contains__)))


def start(files: Files) -> tuple[LoaderEntry | None, Files]:
    """Boot once: what the loader starts, and the files that it leaves behind."""
    chosen = choose(found_in(files).seen)
    if chosen is None or f"{ENTRIES}/{chosen.name.next}" in files:
        return chosen, files
    renamed = {f"{ENTRIES}/{chosen.name.file}": f"{ENTRIES}/{chosen.name.next}"}
    return chosen, {renamed.get(path, path): data for path, data in files.items()}


class Examiner:
    """Looks at every state that a cut can leave, and counts them; from each it boots on."""

    def __init__(self) -> None:
        self.states = 0
        self.verbs: set[str] = set()
        self._booted_on: set[frozenset[tuple[str, bytes]]] = set()
        self._walked: set[object] = set()

    def examine(self, files: Files, verb: str, slot: Slot, *, freed: Sequence[bytes] = ()) -> None:
        """Cut one verb everywhere, and the same verb again where it begins after the cut."""
        sim = self._run(files, verb, slot, freed=freed)
        if sim is None:
            return
        self.verbs.add(f"{verb} {slot.value}")
        for state in sim.cuts:
            self._judge(files, state, sim.files)
            if self._is_known(verb, slot, state, sim.files):
                continue
            again = self._run(state, verb, slot, freed=freed)
            assert again, f"{verb} does not recover"
            self._check_recovered(again.files, sim.files, verb, slot)
            for later in again.cuts:
                self._judge(files, later, sim.files)
            for other in VERBS:
                mended = self._run(state, other, slot, freed=freed)
                assert mended is None or len(found_in(mended.files).names_of(slot)) < 2

    def _is_known(self, verb: str, slot: Slot, state: Files, whole: Files) -> bool:
        """Tell whether the way on from a state was walked before, to the same end."""
        key = (verb, slot, frozenset(state.items()), frozenset(whole.items()))
        known = key in self._walked
        self._walked.add(key)
        return known

    def _run(
        self, files: Files, verb: str, slot: Slot, *, freed: Sequence[bytes]
    ) -> FolderSim | None:
        sim = FolderSim(files, freed=freed)
        try:
            VERBS[verb](SystemdBootEntries(sim), slot)
        except BootControlError:
            assert not sim.cuts, "refused half-way"
            return None
        return sim

    def _judge(self, before: Files, state: Files, after: Files) -> None:
        self.states += 1
        first = choose(found_in(state).seen)
        allowed = {found_in(before).target, found_in(after).target}
        assert (first.name.slot if first else None) in allowed, "neither old nor new"
        key = frozenset(state.items())
        if key not in self._booted_on:
            self._booted_on.add(key)
            armed = {
                slot for slot in Slot for end in (before, after) if found_in(end).state(slot).armed
            }
            self._boot_on(state, armed)

    def _boot_on(self, state: Files, armed: set[Slot]) -> None:
        """Boot until no tries are left to be counted."""
        for _ in range(3 * TRIES_MAX + 1):
            chosen, after = start(state)
            if chosen is None:
                return
            slot = chosen.name.slot
            assert slot, "somebody else's entry"
            assert chosen.kernel == f"bascule/{slot.value}/linux", "another slot's kernel"
            assert b"options whole\n" in state[f"{ENTRIES}/{chosen.name.file}"], "a torn entry"
            assert slot in armed or not armed or chosen.name.left == 0, "a disarmed slot"
            if not chosen.name.left:
                return
            assert after != state, "a try that is not counted"
            state = after
        raise AssertionError("the tries never end")

    def _check_recovered(self, files: Files, whole: Files, verb: str, slot: Slot) -> None:
        found, wanted = found_in(files), found_in(whole)
        assert found.target is wanted.target
        assert found.state(slot) == wanted.state(slot)
        assert len(found.names_of(slot)) == (1 if verb in ("arm", "confirm") else 0)


OTHERS = ("disarmed", "confirmed", "tries", "used up", "cut arm", "hand-made")


def memories(slot: Slot, pairs: tuple[tuple[int, int], ...]) -> Iterator[Files]:
    """Yield what a machine may be found as: that slot in every way, the other one in some."""
    for mark, other, (own, of_other) in itertools.product([*MARKS, *JUNK], OTHERS, pairs):
        yield {**DISK, **marked(slot, mark, own), **marked(slot.other, other, of_other)}


@pytest.mark.parametrize("verb", VERBS)
def test_a_cut_at_any_instant_leaves_the_old_or_the_new_state(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    examiner = Examiner()
    for files in memories(B, ((3, 4), (4, 3))):
        examiner.examine(files, verb, B)
    for files in memories(A, ((3, 3),)):  # of equal versions the later name comes first
        examiner.examine(files, verb, A)
    assert examiner.verbs == {f"{verb} a", f"{verb} b"}
    with capsys.disabled():
        sys.stdout.write(f"\n    {examiner.states} states examined: {verb}")


NEAR_THE_END = ((VERSION_MAX - 1, VERSION_MAX), (VERSION_MAX, VERSION_MAX))


@pytest.mark.parametrize("verb", ["arm", "confirm"])
def test_numbering_anew_is_safe_at_any_instant(verb: str) -> None:
    examiner = Examiner()
    for other, (own, of_other) in itertools.product(OTHERS, NEAR_THE_END):
        for mark in ("disarmed", "confirmed", "cut arm"):
            files = {**DISK, **marked(A, mark, own), **marked(B, other, of_other)}
            examiner.examine(files, verb, A)
    assert examiner.verbs == {f"{verb} a"}


PROVEN = {**DISK, **marked(A, "confirmed", 3), **marked(B, "disarmed", 0)}


class TestTheExaminerSees:
    def test_an_old_file_that_goes_before_the_new_one_is_there(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def careless(
            self: SystemdBootEntries,
            slot: Slot,
            found: EntriesFound,
            left: int | None,
            content: bytes,
        ) -> bool:
            self._remove("armed", slot, found)
            self._folder.create(f"{ENTRIES}/{systemd_boot._file(slot, left)}", content)
            return True

        monkeypatch.setattr(SystemdBootEntries, "_settle", careless)
        with pytest.raises(AssertionError, match="neither old nor new"):
            Examiner().examine({**DISK, **marked(A, "confirmed", 3)}, "confirm", A)

    def test_names_that_the_loader_cannot_count_down(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def careless(slot: Slot, left: int | None, taken: list[EntryName]) -> str:
            files = {name.file for name in taken}
            names = (systemd_boot._file(slot, left, done) for done in itertools.count())
            return next(name for name in names if name not in files)

        monkeypatch.setattr(systemd_boot, "_fresh", careless)
        used_once = {
            **PROVEN,
            f"{ENTRIES}/bascule-b+1-1.conf": entry_content(B, TEMPLATES[B], version=4),
        }
        with pytest.raises(AssertionError, match="a try that is not counted"):
            Examiner().examine(used_once, "arm", B)

    def test_an_old_entry_that_appears_under_a_new_name(self) -> None:
        # The real folder makes a file blank before it goes, and so does the simulated one.
        not_blank = entry_content(A, TEMPLATES[A], version=9)
        with pytest.raises(AssertionError, match="another slot's kernel"):
            Examiner().examine(PROVEN, "arm", B, freed=[not_blank])
