"""Power may fail at any instant of a verb on U-Boot's environment, and of U-Boot's own counting.

Design, promises 2 and 3. U-Boot finds the state before or the state after, whole. A single copy is
one sector, which lands whole or not at all. Of two copies sectors land in any order, and may be
torn: the bytes behind a tear are the old ones or rubbish.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from partitions.boot.uboot import UbootEnvironment
from partitions.errors import BootControlError, UbootInvalidError, UbootNotAtomicError
from partitions.marks import NEVER, TRIES_MAX, Mark
from partitions.slots import Slot
from partitions.uboot_env import packed, with_values
from partitions.uboot_firmware import UbootMemory, choose, save
from partitions.uboot_store import SECTOR_BYTES, UbootEnv, Writer
from tests.sim.gpt_disk import Flush, MemoryDisk, Write, crash_images
from tests.sim.test_grubenv_power_cuts import VERBS

A, B = Slot.A, Slot.B
MARKS = [NEVER, Mark(confirmed=True), Mark(tries=2)]
MEMORIES = [
    UbootMemory(marks={A: a, B: b}).preferring(first)
    for first, a, b in itertools.product(Slot, MARKS, MARKS)
]
OTHERS = (b"arch=x86", b"board=" + b"b" * 200, b"bootcmd=run distro_bootcmd")
STALE = (b"BOOT_ORDER=b a", b"BOOT_b_LEFT=9")  # what the copy that does not count still holds
TEARS = 2  # torn states of each sector


Store = Callable[[Writer, UbootEnv], None]


@dataclass(frozen=True)
class Form:
    """How an environment lies on its disk.

    Attributes:
        offsets: of its copies.
        size: of each.
        flags: of the copy that counts; the other one has the flag before it.
        active: which copy counts.
    """

    offsets: tuple[int, ...]
    size: int
    flags: int = 0
    active: int = 0

    def disk(self, memory: UbootMemory) -> bytes:
        """Return a disk that holds this memory."""
        image = bytearray(self.offsets[-1] + self.size + SECTOR_BYTES)
        double = len(self.offsets) > 1
        for at, offset in enumerate(self.offsets):
            counts = at == self.active
            flag = self.flags if counts else (self.flags - 1) % 256
            ours = tuple(name + b"=" + value for name, value in memory.values.items())
            entries = (*(OTHERS if double else ()), *(ours if counts else STALE))
            image[offset : offset + self.size] = packed(
                entries, self.size, flag=flag if double else None
            )
        return bytes(image)

    def env(self, image: bytes) -> UbootEnv:
        """Read a disk as U-Boot does."""
        return UbootEnv.of([image[at : at + self.size] for at in self.offsets])

    def config(self, file: Path) -> str:
        """Return the lines of fw_env.config."""
        return "".join(f"{file} {at:#x} {self.size:#x}\n" for at in self.offsets)


FORMS: Mapping[str, Form] = {
    "one sector": Form(offsets=(0,), size=SECTOR_BYTES),
    "one sector within a disk": Form(offsets=(3 * SECTOR_BYTES,), size=SECTOR_BYTES),
    "two copies, the first counts": Form(offsets=(0, 2048), size=2048, flags=7),
    "two copies, the flag is at its end": Form(offsets=(512, 4096), size=2048, flags=255, active=1),
    "two copies, the flag has begun anew": Form(offsets=(0, 2048), size=2048, active=1),
}


def cuts(form: Form, old: bytes, env: UbootEnv, store: Store = Writer.store) -> Iterator[bytes]:
    """Yield each disk that a power cut leaves while an environment is written, old and new too.

    Between two flushes sectors land in any order. U-Boot's own writes land in theirs: it hands the
    sectors of a copy to the medium one after the other, and there is no cache to reorder them.
    """
    disk = MemoryDisk(bytearray(old))
    store(Writer(disk, form.offsets[env.active]), env)
    chance = random.Random(1)
    if store is save:
        for write in (step for step in disk.log if isinstance(step, Write)):
            for end in range(0, len(write.data) + 1, SECTOR_BYTES):
                yield old[: write.offset] + write.data[:end] + old[write.offset + end :]
    else:
        yield from crash_images(old, disk.log, sector_size=SECTOR_BYTES, chance=chance)
    if env.is_double:
        yield from torn(old, disk.log, chance)


def torn(old: bytes, log: list[Write | Flush], chance: random.Random) -> Iterator[bytes]:
    """Yield disks on which the sectors before one are new, that one is torn, the rest is old."""
    image = bytearray(old)
    for write in (step for step in log if isinstance(step, Write)):
        for at in range(0, len(write.data), SECTOR_BYTES):
            place = slice(write.offset + at, write.offset + at + SECTOR_BYTES)
            before, after = bytes(image[place]), write.data[at : at + SECTOR_BYTES]
            for behind in (before, chance.randbytes(SECTOR_BYTES)):
                for _ in range(TEARS):
                    cut = chance.randrange(SECTOR_BYTES)
                    image[place] = after[:cut] + behind[cut:]
                    yield bytes(image)
            image[place] = after


class Examiner:
    """Looks at every state that a cut can leave, and counts them.

    From each it boots on, and makes one more change; both are cut, too.
    """

    def __init__(self, form: Form, store: Store = Writer.store) -> None:
        self.form = form
        self.store = store
        self.states = 0
        self._went_on_from: set[bytes] = set()

    def examine(self, old: bytes, env: UbootEnv) -> None:
        """Cut the way to `env`, and the ways on from there."""
        before = self.form.env(old)
        for state in cuts(self.form, old, env, self.store):
            self._judge(state, before, env)
            if state not in self._went_on_from:
                self._went_on_from.add(state)
                self._boot_on(state)
                self._change_on(state)

    def _judge(self, state: bytes, *known: UbootEnv) -> None:
        self.states += 1
        try:
            found = UbootMemory.of(self.form.env(state).values)
        except UbootInvalidError as error:
            raise AssertionError("no copy is whole") from error
        memories = [UbootMemory.of(env.values) for env in known]
        assert found in memories, f"neither old nor new: {found.values}"

    def _boot_on(self, state: bytes) -> None:
        """Boot until nothing changes any more, cutting each time while the try is saved."""
        for _ in range(2 * TRIES_MAX + 1):
            env = self.form.env(state)
            chosen, saved = choose(env)
            assert chosen is UbootMemory.of(env.values).target
            if saved == env:
                return
            for cut in cuts(self.form, state, saved, save):
                self._judge(cut, env, saved)
            state = written(self.form, state, saved)
        raise AssertionError("the tries never end")

    def _change_on(self, state: bytes) -> None:
        """Let the node find the state and write another one."""
        env = self.form.env(state)
        other = UbootMemory().marked(A, Mark(tries=3))
        changed = env.holding(with_values(env.entries, other.values))
        for cut in cuts(self.form, state, changed, self.store):
            self._judge(cut, env, changed)


def written(form: Form, old: bytes, env: UbootEnv) -> bytes:
    disk = MemoryDisk(bytearray(old))
    Writer(disk, form.offsets[env.active]).store(env)
    return bytes(disk.image)


def changes(
    folder: Path, form: Form, memories: Sequence[UbootMemory] = MEMORIES
) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield what the keeper's verbs make of each memory, as the disk before and the disk after."""
    file, config = folder / "env", folder / "fw_env.config"
    config.write_text(form.config(file))
    for memory, verb, slot in itertools.product(memories, VERBS, Slot):
        old = form.disk(memory)
        file.write_bytes(old)
        try:
            VERBS[verb](UbootEnvironment(config), slot)
        except BootControlError:
            assert file.read_bytes() == old
            continue
        yield f"{verb} {slot.value}", old, file.read_bytes()


@pytest.mark.parametrize("name", FORMS)
def test_a_cut_at_any_instant_leaves_the_old_or_the_new_state(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    form = FORMS[name]
    examiner = Examiner(form)
    verbs = set()
    for verb, old, new in changes(tmp_path, form):
        verbs.add(verb)
        if new == old:
            continue
        env = form.env(new)
        assert written(form, old, env) == new, "it wrote something else, too"
        examiner.examine(old, env)
    assert len(verbs) == 2 * len(VERBS)
    with capsys.disabled():
        sys.stdout.write(f"\n    {examiner.states} states examined: {name}")


@pytest.mark.parametrize("name", [name for name in FORMS if name.startswith("two")])
def test_the_copy_that_counts_is_never_written(tmp_path: Path, name: str) -> None:
    form = FORMS[name]
    for _, old, new in changes(tmp_path, form):
        at = form.offsets[form.active]
        assert old[at : at + form.size] == new[at : at + form.size]


@pytest.mark.parametrize(
    "form",
    [
        Form(offsets=(0,), size=1024),
        Form(offsets=(0,), size=SECTOR_BYTES + 1),
        Form(offsets=(256,), size=SECTOR_BYTES),
    ],
    ids=["two sectors", "one byte more", "across"],
)
def test_a_single_copy_that_could_be_torn_is_read_but_not_written(
    tmp_path: Path, form: Form
) -> None:
    file, config = tmp_path / "env", tmp_path / "fw_env.config"
    config.write_text(form.config(file))
    old = form.disk(UbootMemory(marks={A: Mark(confirmed=True), B: NEVER}))
    file.write_bytes(old)
    control = UbootEnvironment(config)
    assert control.read().target is A
    for verb in VERBS.values():
        with pytest.raises(UbootNotAtomicError):
            verb(control, B)
    assert file.read_bytes() == old


def test_the_examiner_sees_what_writing_the_copy_that_counts_would_do() -> None:
    form = FORMS["two copies, the first counts"]
    memory = UbootMemory(marks={A: Mark(confirmed=True), B: NEVER})
    old = form.disk(memory)
    env = form.env(old)
    armed = memory.marked(B, Mark(tries=1)).preferring(B)
    entries = with_values(env.entries, armed.values)
    careless = UbootEnv((packed(entries, form.size, flag=9), env.copies[1]), active=0)
    with pytest.raises(AssertionError, match="neither old nor new"):
        Examiner(form).examine(old, careless)


def test_the_examiner_sees_what_the_first_sector_first_would_do() -> None:
    def careless(writer: Writer, env: UbootEnv) -> None:
        copy = env.copies[env.active]
        for begin, end in ((0, SECTOR_BYTES), (SECTOR_BYTES, len(copy))):
            writer.file.pwrite(writer.offset + begin, copy[begin:end])
        writer.file.sync()

    form = FORMS["two copies, the first counts"]
    memory = UbootMemory(marks={A: Mark(confirmed=True), B: NEVER})
    old = form.disk(memory)
    armed = memory.marked(B, Mark(tries=1)).preferring(B)
    env = form.env(old)
    with pytest.raises(AssertionError, match="neither old nor new"):
        Examiner(form, careless).examine(old, env.holding(with_values(env.entries, armed.values)))


def test_the_examiner_sees_what_a_single_copy_of_two_sectors_would_do() -> None:
    form = Form(offsets=(0,), size=1024)
    memory = UbootMemory(marks={A: Mark(confirmed=True), B: NEVER})
    old = form.disk(memory)
    armed = memory.marked(B, Mark(tries=1)).preferring(B)
    far = tuple(name + b"=" + value for name, value in armed.values.items())
    longer = form.env(old).holding((b"x=" + b"x" * 500, *far))
    with pytest.raises(AssertionError, match="no copy is whole"):
        Examiner(form).examine(old, longer)
