"""Which loader a machine has: one that the facts speak for, and none by guessing."""

from __future__ import annotations

from pathlib import Path

import pytest

from partitions.attributes import BootBits
from partitions.boot import KEEPERS, Places
from partitions.boot.detection import AUTO, Choice, Facts, choose_loader, detect, look
from partitions.errors import BootControlUnknownError
from partitions.slots import PartRef, Slot, SlotLayout
from partitions.uboot_env import packed
from tests.sim.gpt_disk import two_slots

A, B = Slot.A, Slot.B
LAYOUT: SlotLayout = {A: {"usr": PartRef(label="USR-A")}, B: {"usr": PartRef(label="USR-B")}}
BITS = {A: BootBits(priority=1, successful=True), B: BootBits()}
LOADER_INFO = "LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
EFI = "8be4df61-93ca-11d2-aa0d-00e098032b8c"

EVIDENCE = {
    "systemd-boot": Facts(loader_info="systemd-boot 252.30-1", templates=frozenset(Slot)),
    "efi": Facts(booted_entry="bascule-b"),
    "uboot": Facts(uboot_order="b a"),
    "gptprio": Facts(boot_bits=BITS),
    "custom": Facts(custom_command=True),
    "grubenv": Facts(grubenv=Path("/boot/grub/grubenv")),
}
NO_EVIDENCE = {
    "nothing": Facts(),
    "a loader that is not systemd-boot": Facts(loader_info="GRUB 2.12", templates=frozenset(Slot)),
    "systemd-boot with its own entries": Facts(loader_info="systemd-boot 252"),
    "systemd-boot with one template": Facts(loader_info="systemd-boot 1", templates=frozenset({A})),
    "templates alone": Facts(templates=frozenset(Slot)),
    "another entry of the firmware": Facts(booted_entry="debian"),
    "RAUC's environment": Facts(uboot_order="A B"),
    "an empty order": Facts(uboot_order=""),
    "no bits": Facts(boot_bits=dict.fromkeys(Slot, BootBits())),
}


@pytest.mark.parametrize("name", EVIDENCE)
def test_what_speaks_for_one_loader_finds_it(name: str) -> None:
    choice = detect(EVIDENCE[name])
    assert choice.name == name
    assert choice.because


@pytest.mark.parametrize("facts", NO_EVIDENCE.values(), ids=NO_EVIDENCE)
def test_what_speaks_for_none_is_an_error_that_says_what_was_looked_at(facts: Facts) -> None:
    with pytest.raises(BootControlUnknownError) as caught:
        detect(facts)
    assert all(f"{name}: " in str(caught.value) for name in EVIDENCE)
    assert caught.value.code == "boot-control-unknown"
    assert "slots.boot_control" in caught.value.hint


def test_each_loader_that_can_be_found_is_looked_for() -> None:
    assert set(KEEPERS) <= set(EVIDENCE)


@pytest.mark.parametrize("name", ["systemd-boot", "efi", "uboot"])
def test_two_loaders_that_are_spoken_for_are_an_error(name: str) -> None:
    seen = EVIDENCE[name]
    both = Facts(
        loader_info=seen.loader_info,
        templates=seen.templates,
        booted_entry=seen.booted_entry,
        uboot_order=seen.uboot_order,
        boot_bits=BITS,
    )
    with pytest.raises(BootControlUnknownError, match=f"more than one.*{name}, .*; gptprio, "):
        detect(both)


def test_what_the_settings_say_outranks_what_the_machine_shows() -> None:
    assert detect(Facts(custom_command=True, boot_bits=BITS, uboot_order="a b")).name == "custom"
    assert detect(Facts(grubenv=Path("/g"), uboot_order="a b")).name == "grubenv"


def test_boot_bits_that_are_set_contradict_a_path_that_is_merely_set() -> None:
    """A node of the release before kept its memory in them when its settings named no loader."""
    with pytest.raises(BootControlUnknownError, match=r"more than one.*grubenv, .*; gptprio, "):
        detect(Facts(grubenv=Path("/boot/grub/grubenv"), boot_bits=BITS))
    unset = dict.fromkeys(Slot, BootBits())
    assert detect(Facts(grubenv=Path("/g"), boot_bits=unset)).name == "grubenv"


IN_DOUBT = {
    "boot bits while /boot is not mounted": Facts(
        loader_info="systemd-boot 252", templates=frozenset(), boot_bits=BITS
    ),
    "a firmware entry while /boot is not mounted": Facts(
        loader_info="systemd-boot 252", booted_entry="bascule-a"
    ),
    "boot bits beside an environment that cannot be read": Facts(
        boot_bits=BITS, faults={"uboot": "/boot/uboot.env cannot be opened"}
    ),
}


@pytest.mark.parametrize("facts", IN_DOUBT.values(), ids=IN_DOUBT)
def test_what_cannot_be_read_keeps_weaker_evidence_from_deciding(facts: Facts) -> None:
    with pytest.raises(BootControlUnknownError, match="left over"):
        detect(facts)


def test_an_environment_that_cannot_be_read_is_no_doubt_about_what_was_started() -> None:
    facts = Facts(booted_entry="bascule-a", faults={"uboot": "no CRC"})
    assert detect(facts).name == "efi"


def test_where_there_is_no_fw_env_config_boot_bits_decide() -> None:
    facts = Facts(boot_bits=BITS, absent={"uboot": "/etc/fw_env.config: No such file"})
    assert detect(facts).name == "gptprio"


def test_two_settings_are_an_error() -> None:
    with pytest.raises(BootControlUnknownError, match=r"custom, .*; grubenv, "):
        detect(Facts(grubenv=Path("/g"), custom_command=True))


def variable(folder: Path, name: str, value: bytes) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes((6).to_bytes(4, "little") + value)


def ucs2(text: str) -> bytes:
    return (text + "\0").encode("utf-16-le")


class TestLooking:
    @pytest.fixture
    def places(self, tmp_path: Path) -> Places:
        return Places(
            disk=tmp_path / "disk",
            layout=LAYOUT,
            boot_folder=tmp_path / "boot",
            uboot_config=tmp_path / "fw_env.config",
            efivars=tmp_path / "efivars",
        )

    def test_an_empty_machine_shows_nothing_and_says_why(self, places: Places) -> None:
        facts = look(places)
        assert facts == Facts(faults=facts.faults, absent=facts.absent)
        assert (set(facts.faults), set(facts.absent)) == ({"gptprio"}, {"uboot"})
        with pytest.raises(BootControlUnknownError) as caught:
            choose_loader(AUTO, places)
        assert f"uboot: {places.uboot_config} cannot be read: No such file" in str(caught.value)
        assert f"gptprio: {places.disk} cannot be opened" in str(caught.value)

    def test_systemd_boot_by_its_variable_and_our_templates(self, places: Places) -> None:
        variable(places.efivars, LOADER_INFO, ucs2("systemd-boot 252.30-1~deb12u2"))
        folder = places.boot_folder / "loader/bascule"
        folder.mkdir(parents=True)
        for name in ("a.conf", "b.conf"):
            assert look(places).templates != set(Slot)
            (folder / name).touch()
        choice = choose_loader(AUTO, places)
        assert choice.name == "systemd-boot"
        assert "systemd-boot 252.30-1~deb12u2 started this system" in choice.because

    @pytest.mark.parametrize("number", [0x1, 0xAB0])
    def test_an_entry_of_the_firmware_by_its_description(self, places: Places, number: int) -> None:
        option = (1).to_bytes(4, "little") + (4).to_bytes(2, "little")
        rest = bytes.fromhex("7fff0400") + b"bascule-b"
        variable(places.efivars, f"BootCurrent-{EFI}", number.to_bytes(2, "little"))
        assert look(places).booted_entry is None
        variable(places.efivars, f"Boot{number:04X}-{EFI}", option + ucs2("bascule-a") + rest)
        assert choose_loader(AUTO, places).name == "efi"
        variable(places.efivars, f"Boot{number:04X}-{EFI}", option + ucs2("debian") + rest)
        assert look(places).booted_entry == "debian"

    def test_u_boot_by_its_environment(self, places: Places, tmp_path: Path) -> None:
        env = tmp_path / "uboot.env"
        env.write_bytes(packed((b"BOOT_ORDER=a b",), 512, flag=None))
        places.uboot_config.write_text(f"{env} 0 0x200\n")
        assert choose_loader(AUTO, places).name == "uboot"
        env.write_bytes(bytes(512))
        with pytest.raises(BootControlUnknownError, match=r"uboot: .*CRC"):
            choose_loader(AUTO, places)
        places.disk.write_bytes(two_slots(sector_size=512, a=BITS[A], b=BITS[B]).image)
        with pytest.raises(BootControlUnknownError, match=r"gptprio may be .* CRC"):
            choose_loader(AUTO, places)

    def test_gpt_bits_on_the_slots_partitions(self, places: Places) -> None:
        places.disk.write_bytes(two_slots(sector_size=512, a=BITS[A], b=BITS[B]).image)
        assert look(places).boot_bits == BITS
        assert choose_loader(AUTO, places).name == "gptprio"

    def test_a_loader_that_is_named_is_not_looked_for(self, places: Places) -> None:
        wanted = Choice(name="efi", because="slots.boot_control names it")
        assert choose_loader("efi", places) == wanted
