"""FAT of 16 and 32 bits, twice: a driver that tells which sectors it changes, and a reader.

The driver does what Linux does with each call on a file: which sectors become dirty (both FATs,
FSInfo, folders with their long names, data), and which of them a flush of a file, of a folder or of
the file system makes durable. It promises less than Linux, never more: a flushed file has its data
on the disk, not its chain; that takes the flush of the file system. In which order dirty sectors
land is not its business: `block.py` tries them.

The reader is the firmware's: it believes the first FAT, ends a chain where that ends it, and gives
what bytes there are.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

SECTOR: Final = 512
ENTRY: Final = 32
_END: Final = {16: 0xFFFF, 32: 0x0FFFFFFF}  # also what an entry's bits are masked with
_CODE: Final = {16: "H", 32: "I"}
_LONG: Final = 0x0F
_FOLDER: Final = 0x10
_FILE: Final = 0x20
_GONE: Final = 0xE5
_LETTERS: Final = 13  # of a long name, in one entry


@dataclass(frozen=True, slots=True)
class Dirty:
    """A sector that a call changed.

    Attributes:
        sector: counted from the partition's start.
        data: what it holds now.
        owner: "data NAME", "folder NAME" or "map"; a flush names owners.
    """

    sector: int
    data: bytes
    owner: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Where the parts of a file system are, in sectors.

    Attributes:
        bits: of an entry of the FAT.
        reserved: before the first FAT.
        fat: of one FAT; there are two.
        fixed: of the root folder of FAT16, behind the FATs; 0 for FAT32.
        per_cluster: of a cluster.
        root: the cluster of the root folder; 0 where it is none.
        info: FSInfo; 0 where there is none.
        clusters: how many there are.
    """

    bits: int
    reserved: int
    fat: int
    fixed: int
    per_cluster: int
    root: int
    info: int
    clusters: int

    @classmethod
    def of(cls, image: bytes | bytearray) -> Shape:
        """Read the boot sector."""
        sector, per_cluster, reserved, fats, slots, small = struct.unpack_from("<HBHBHH", image, 11)
        (fat,) = struct.unpack_from("<H", image, 22)
        (large,) = struct.unpack_from("<I", image, 32)
        bits, root, info = (16, 0, 0) if fat else (32, 0, 0)
        if bits == 32:
            fat, _flags, _version, root, info = struct.unpack_from("<IHHIH", image, 36)
        assert (sector, fats) == (SECTOR, 2), "sectors of 512 bytes, and two FATs"
        fixed = slots * ENTRY // SECTOR
        data = (small or large) - reserved - 2 * fat - fixed
        return cls(
            bits=bits,
            reserved=reserved,
            fat=fat,
            fixed=fixed,
            per_cluster=per_cluster,
            root=root,
            info=info,
            clusters=data // per_cluster,
        )

    @property
    def bytes_per_cluster(self) -> int:
        """Bytes of a cluster."""
        return self.per_cluster * SECTOR

    @property
    def fixed_root(self) -> range:
        """Where the entries of the root folder of FAT16 are."""
        begin = (self.reserved + 2 * self.fat) * SECTOR
        return range(begin, begin + self.fixed * SECTOR, ENTRY)

    def at(self, cluster: int) -> int:
        """Return where a cluster begins, in bytes."""
        first = self.reserved + 2 * self.fat + self.fixed + (cluster - 2) * self.per_cluster
        return first * SECTOR


class Fat:
    """The driver. `image` is what the page cache holds; `changed` what became dirty since taken."""

    def __init__(self, image: bytes) -> None:
        self.image = bytearray(image)
        self.shape = Shape.of(image)
        self._dirty: list[Dirty] = []
        self._orphans: list[tuple[str, list[int]]] = []
        self._clock = 0
        self._next = 2
        self._end = _END[self.shape.bits]
        self._code = f"<{_CODE[self.shape.bits]}"
        self._width = self.shape.bits // 8

    def changed(self) -> list[Dirty]:
        """Return the sectors that became dirty since the last time, in the order of that.

        A folder's sector comes once for each of its changes, since it may be written in between.
        """
        taken, self._dirty = self._dirty, []
        last = {one.sector: at for at, one in enumerate(taken)}
        return [
            one
            for at, one in enumerate(taken)
            if last[one.sector] == at or one.owner.startswith("folder ")
        ]

    def create(self, name: str) -> None:
        """Make an empty file."""
        self._enter(name, _short(attribute=_FILE, cluster=0, size=0, clock=self._tick()))

    def mkdir(self, name: str) -> None:
        """Make an empty folder."""
        (cluster,) = self._claim(1)
        parent = self._folder(_parent(name))
        up = 0 if parent == self.shape.root else parent  # the root is 0 to its children
        clock = self._tick()
        content = _dots(b".", cluster, clock) + _dots(b"..", up, clock)
        content += bytes(self.shape.bytes_per_cluster - len(content))
        self._put(self.shape.at(cluster), content, f"folder {name}")
        self._enter(name, _short(attribute=_FOLDER, cluster=cluster, size=0, clock=clock))

    def write(self, name: str, offset: int, data: bytes) -> None:
        """Write into a file; it grows as far as needed."""
        size = self.size(name)
        if offset + len(data) > size:
            self.resize(name, offset + len(data))
        unit = self.shape.bytes_per_cluster
        chain = self._chain(self._found(name)[2])
        at = offset
        while at < offset + len(data):
            end = min(offset + len(data), at - at % unit + unit)
            place = self.shape.at(chain[at // unit]) + at % unit
            self._put(place, data[at - offset : end - offset], f"data {name}")
            at = end
        self._touch(name)

    def resize(self, name: str, size: int) -> None:
        """Cut a file, or make it longer by zeros."""
        at, _, first = self._found(name)
        unit = self.shape.bytes_per_cluster
        chain = self._chain(first)
        wanted = -(-size // unit)
        if wanted > len(chain):
            more = self._claim(wanted - len(chain))
            if chain:
                self._link(chain[-1], more[0])
            for cluster in more:
                self._put(self.shape.at(cluster), bytes(unit), f"data {name}")
            chain += more
        elif wanted < len(chain):
            if wanted:
                self._link(chain[wanted - 1], self._end)
            self._free(chain[wanted:])
            chain = chain[:wanted]
        entry = bytearray(self.image[at : at + ENTRY])
        _point(entry, chain[0] if chain else 0, size)
        self._put(at, bytes(entry), _folder_owner(name))
        self._touch(name)

    def remove(self, name: str) -> None:
        """Take a file's name away; its clusters are free after `release`."""
        at, slots, first = self._found(name)
        self._leave(name, at, slots)
        self._orphans.append((name, self._chain(first)))

    def remove_folder(self, name: str) -> None:
        """Remove an empty folder."""
        self.remove(name)
        self.release(name)

    def release(self, name: str) -> None:
        """Give back the clusters of a file of that name that was removed."""
        place = next(at for at, (orphan, _) in enumerate(self._orphans) if orphan == name)
        self._free(self._orphans.pop(place)[1])

    def rename(self, old: str, new: str) -> None:
        """Give a file another name; one of that name is replaced and waits for `release`."""
        at, slots, first = self._found(old)
        entry = bytearray(self.image[at : at + ENTRY])
        if self.exists(new):
            there, _, lost = self._found(new)
            target = bytearray(self.image[there : there + ENTRY])
            _point(target, first, self.size(old))
            self._put(there, bytes(target), _folder_owner(new))
            self._leave(old, at, slots)
            self._orphans.append((new, self._chain(lost)))
            return
        self._enter(new, entry)
        self._leave(old, at, slots)

    def exists(self, name: str) -> bool:
        """Tell whether there is a file or folder of that name."""
        try:
            self._found(name)
        except FileNotFoundError:
            return False
        return True

    def size(self, name: str) -> int:
        """Return a file's size."""
        at = self._found(name)[0]
        return int(struct.unpack_from("<I", self.image, at + 28)[0])

    def _sector(self, at: int) -> bytes:
        return bytes(self.image[at * SECTOR : (at + 1) * SECTOR])

    def _put(self, at: int, data: bytes, owner: str) -> None:
        self.image[at : at + len(data)] = data
        for sector in range(at // SECTOR, -(-(at + len(data)) // SECTOR)):
            self._dirty.append(Dirty(sector, self._sector(sector), owner))

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def _touch(self, name: str) -> None:
        at = self._found(name)[0]
        self._put(at + 22, struct.pack("<H", self._tick() & 0xFFFF), _folder_owner(name))

    def _next_of(self, cluster: int) -> int:
        at = self.shape.reserved * SECTOR + self._width * cluster
        return int(struct.unpack_from(self._code, self.image, at)[0]) & self._end

    def _link(self, cluster: int, following: int) -> None:
        for copy in range(2):
            start = (self.shape.reserved + copy * self.shape.fat) * SECTOR
            at = start + self._width * cluster
            self._put(at, struct.pack(self._code, following), "map")

    def _chain(self, first: int) -> list[int]:
        chain: list[int] = []
        while 2 <= first < 2 + self.shape.clusters:
            chain.append(first)
            first = self._next_of(first)
        return chain

    def _claim(self, count: int) -> list[int]:
        """Take free clusters and link them, as Linux does: from behind the last one taken."""
        everywhere = range(2, 2 + self.shape.clusters)
        order = [*range(self._next, everywhere.stop), *range(2, self._next)]
        found = []
        for cluster in order:
            if not self._next_of(cluster):
                found.append(cluster)
                if len(found) == count:
                    break
        else:
            raise OSError(28, "no space left on the model's FAT")
        for cluster, following in zip(found, [*found[1:], self._end], strict=True):
            self._link(cluster, following)
        self._next = found[-1] + 1 if found[-1] + 1 < everywhere.stop else 2
        self._count(-count)
        return found

    def _free(self, chain: list[int]) -> None:
        for cluster in chain:
            self._link(cluster, 0)
        self._count(len(chain))

    def _count(self, change: int) -> None:
        if not self.shape.info:
            return
        at = self.shape.info * SECTOR + 488
        (free,) = struct.unpack_from("<I", self.image, at)
        self._put(at, struct.pack("<II", free + change, self._next), "map")

    def _folder(self, name: str) -> int:
        return self._found(name)[2] if name else self.shape.root

    def _found(self, name: str) -> tuple[int, list[int], int]:
        """Return where a name's short entry is, where all of its entries are, and its cluster."""
        folder = self._folder(_parent(name))
        wanted = name.rpartition("/")[2].lower()
        long: dict[int, str] = {}
        slots: list[int] = []
        for at in self._slots(folder):
            entry = self.image[at : at + ENTRY]
            if entry[0] in {0, _GONE}:
                long, slots = {}, []
                continue
            slots.append(at)
            if entry[11] == _LONG:
                long[entry[0] & 0x1F] = _letters(entry)
                continue
            spelt = "".join(long[number] for number in sorted(long)) or _plain(entry)
            if spelt.lower() == wanted:
                return at, slots, _cluster(entry)
            long, slots = {}, []
        raise FileNotFoundError(name)

    def _slots(self, folder: int) -> Iterator[int]:
        if not folder:
            yield from self.shape.fixed_root
        for cluster in self._chain(folder):
            start = self.shape.at(cluster)
            yield from range(start, start + self.shape.bytes_per_cluster, ENTRY)

    def _enter(self, name: str, short: bytearray) -> None:
        """Put a name into its folder, which grows when it has to."""
        folder = self._folder(_parent(name))
        owner = _folder_owner(name)
        leaf = name.rpartition("/")[2]
        taken = {bytes(self.image[at : at + 11]) for at in self._slots(folder)}
        alias = _alias(leaf, taken)
        short[:11] = alias
        entries = [*_long(leaf, alias), bytes(short)]
        while (run := self._free_run(folder, len(entries))) is None:
            (more,) = self._claim(1)
            self._put(self.shape.at(more), bytes(self.shape.bytes_per_cluster), owner)
            self._link(self._chain(folder)[-1], more)
        for at, entry in zip(run, entries, strict=True):
            self._put(at, entry, owner)

    def _free_run(self, folder: int, count: int) -> list[int] | None:
        run: list[int] = []
        for at in self._slots(folder):
            run = [*run, at] if self.image[at] in {0, _GONE} else []
            if len(run) == count:
                return run
        return None

    def _leave(self, name: str, at: int, slots: list[int]) -> None:
        assert at == slots[-1]
        for slot in slots:
            self._put(slot, bytes([_GONE]), _folder_owner(name))


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


def _folder_owner(name: str) -> str:
    return f"folder {_parent(name)}"


def _short(*, attribute: int, cluster: int, size: int, clock: int) -> bytearray:
    entry = bytearray(ENTRY)
    entry[11] = attribute
    struct.pack_into("<HH", entry, 22, clock & 0xFFFF, 0x5B7C)
    struct.pack_into("<HHH", entry, 14, 0, 0x5B7C, 0x5B7C)
    _point(entry, cluster, size)
    return entry


def _point(entry: bytearray, cluster: int, size: int) -> None:
    struct.pack_into("<H", entry, 20, cluster >> 16)
    struct.pack_into("<HI", entry, 26, cluster & 0xFFFF, size)


def _dots(name: bytes, cluster: int, clock: int) -> bytes:
    entry = _short(attribute=_FOLDER, cluster=cluster, size=0, clock=clock)
    entry[:11] = name.ljust(11)
    return bytes(entry)


def _alias(name: str, taken: set[bytes]) -> bytes:
    """Return a short name that is not taken, as `NAME~1.EXT`."""
    stem, dot, suffix = name.rpartition(".")
    if not dot:
        stem, suffix = name, ""
    plain = "".join(c if c.isalnum() else "_" for c in stem.upper())
    tail = "".join(c if c.isalnum() else "_" for c in suffix.upper())[:3].ljust(3).encode()
    number = 1
    while True:
        mark = f"~{number}"
        alias = (plain[: 8 - len(mark)] + mark).ljust(8).encode() + tail
        if alias not in taken:
            return alias
        number += 1


def _long(name: str, alias: bytes) -> list[bytes]:
    """Return the long name's entries, the last part first, as they lie in a folder."""
    total = 0
    for byte in alias:
        total = ((total & 1) << 7) + (total >> 1) + byte & 0xFF
    letters = name.encode("utf-16-le")
    count = -(-len(name) // _LETTERS)
    if len(name) % _LETTERS:
        letters += b"\0\0"
    letters = letters.ljust(count * _LETTERS * 2, b"\xff")
    entries = []
    for number in range(count, 0, -1):
        part = letters[(number - 1) * 26 : number * 26]
        order = number | (0x40 if number == count else 0)
        head = bytes([order]) + part[:10] + bytes([_LONG, 0, total])
        entries.append(head + part[10:22] + b"\0\0" + part[22:])
    return entries


def _letters(entry: bytes | bytearray) -> str:
    raw = bytes(entry[1:11] + entry[14:26] + entry[28:32])
    return raw.decode("utf-16-le", "replace").split("\0")[0].rstrip("\uffff")


def _plain(entry: bytes | bytearray) -> str:
    stem, suffix = bytes(entry[:8]).rstrip(), bytes(entry[8:11]).rstrip()
    return (stem + (b"." + suffix if suffix else b"")).decode("ascii", "replace")


def _cluster(entry: bytes | bytearray) -> int:
    high, low = struct.unpack_from("<H", entry, 20)[0], struct.unpack_from("<H", entry, 26)[0]
    return int(high << 16 | low)


# The reader.

FOLDERS_MAX: Final = 64  # a damaged tree must not go round and round


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """What a reader of a FAT sees.

    Attributes:
        files: the content of each file, as far as its chain goes.
        folders: the names of the folders.
        bones: both FATs and all folders as bytes: what a checker looks at.
    """

    files: dict[str, bytes]
    folders: tuple[str, ...]
    bones: bytes


def read_tree(image: bytes | bytearray) -> Tree:
    """Read everything that a firmware could find; nothing is believed but the first FAT."""
    return _Reader(image).tree()


class _Reader:
    def __init__(self, image: bytes | bytearray) -> None:
        self._image = image
        self._shape = shape = Shape.of(image)
        self._begin = shape.reserved * SECTOR
        count = shape.fat * SECTOR * 8 // shape.bits
        self._table = struct.unpack_from(f"<{count}{_CODE[shape.bits]}", image, self._begin)
        self._files: dict[str, bytes] = {}
        self._folders: list[str] = []
        self._bones: list[bytes] = []

    def tree(self) -> Tree:
        shape, fixed = self._shape, self._shape.fixed_root
        self._bones.append(bytes(self._image[self._begin : fixed.start]))
        raw = bytes(self._image[fixed.start : fixed.stop])
        self._walk(self._content(shape.root) if shape.bits == 32 else raw, "")
        return Tree(files=self._files, folders=tuple(self._folders), bones=b"".join(self._bones))

    def _content(self, first: int) -> bytes:
        parts, seen = [], set()
        while 2 <= first < 2 + self._shape.clusters and first not in seen:
            seen.add(first)
            at = self._shape.at(first)
            parts.append(bytes(self._image[at : at + self._shape.bytes_per_cluster]))
            first = self._table[first] & _END[self._shape.bits]
        return b"".join(parts)

    def _walk(self, raw: bytes, prefix: str) -> None:
        self._bones.append(raw)
        long = ""
        for at in range(0, len(raw), ENTRY):
            entry = raw[at : at + ENTRY]
            if entry[0] == 0:
                break
            if entry[0] == _GONE:
                long = ""
            elif entry[11] & 0x3F == _LONG:
                long = _letters(entry) + ("" if entry[0] & 0x40 else long)
            else:
                if not entry[11] & 0x08 and entry[:1] != b".":
                    self._take(entry, prefix + (long or _plain(entry)))
                long = ""

    def _take(self, entry: bytes, name: str) -> None:
        if not entry[11] & _FOLDER:
            (size,) = struct.unpack_from("<I", entry, 28)
            self._files[name] = self._content(_cluster(entry))[:size]
        elif len(self._folders) < FOLDERS_MAX:
            self._folders.append(name)
            self._walk(self._content(_cluster(entry)), f"{name}/")
