"""Settings in three steps: fragments as written, merged by key, checked into one frozen value.

Vendor, admin and runtime folders are read in the order of `FOLDERS`; in each first
`bascule.toml`, then `bascule.toml.d/*.toml` by name; a later value wins, tables merge. With
`--config FILE` only FILE and `FILE.d/*.toml` are read. A `Settings` that exists is valid. Each
setting has its heading in docs/operating-a-node.md, held by a test.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, get_args

import msgspec

from partitions import efi_firmware, marks, systemd_boot_firmware
from partitions.boot.detection import AUTO
from partitions.slots import PartRef
from updater.errors import SettingsError, SettingsMissingError, WindowInvalidError

FOLDERS: Final = (Path("/usr/lib/bascule"), Path("/etc/bascule"), Path("/run/bascule"))
FILE_NAME: Final = "bascule.toml"
RATE_MIN_KIB: Final = 8  # per second; slower, and a mirror could not be told from one that stalls
SETTINGS_MAX_BYTES: Final = 256 * 1024  # a settings file is written by a person

Mebibytes = Annotated[int, msgspec.Meta(ge=0, le=1024 * 1024)]  # 0: no limit, or none at all
Seconds = Annotated[float, msgspec.Meta(gt=0, le=31 * 86400)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
# What `PartRef.parse` reads but a bare label, which would take each slip for a label.
_REFERENCE: Final = re.compile(r"(PARTLABEL|PARTUUID)=[^\n]{1,72}|FILE=/.+")

# A unit's full name: no pattern, no option; systemd allows these characters and 255 of them.
_UNIT_NAME: Final = re.compile(
    r"[A-Za-z0-9:_.\\@-]{1,240}\.(service|socket|target|mount|timer|path|device|swap|slice|scope|automount)"
)

# What a value must be, by the key whose form a pattern of msgspec's holds.
_FORMS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "metrics.textfile": "an absolute path that ends in .prom",
        "download.metered_file": "an absolute path, or empty",
        "bus.address": "system, none, unix:path=… or unix:abstract=…",
    }
)
_NAME_FORM: Final = "a name of at most 64 letters, digits and ._-, a letter or digit first"

TextFile = Annotated[str, msgspec.Meta(pattern=r"^(/[^\n]+\.prom)?\Z")]  # what node_exporter reads


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the settings: unknown keys are refused."""


class NodeSettings(_Section, frozen=True):
    """`[node]`: the machine itself."""

    machine: Literal["linux", "model"] = "linux"
    state_folder: str = "/var/lib/bascule"
    run_folder: str = "/run/bascule"
    machine_id_file: str = "/etc/machine-id"
    alias: Annotated[str, msgspec.Meta(max_length=64)] = ""
    reboot_command: Annotated[list[str], msgspec.Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: ["systemctl", "reboot"]
    )


class SlotsSettings(_Section, frozen=True):
    """`[slots]`: the disk, its loader, and which partitions and files make slot A and slot B."""

    disk: str = ""
    boot_control: Literal[
        "auto", "gptprio", "grubenv", "systemd-boot", "efi", "uboot", "custom"
    ] = AUTO
    grubenv: str = ""
    boot_folder: str = "/boot"
    efivars: str = "/sys/firmware/efi/efivars"
    uboot_config: str = "/etc/fw_env.config"
    custom_command: list[str] = []
    tries: Annotated[int, msgspec.Meta(ge=1, le=15)] = 1
    a: dict[str, str] = {}
    b: dict[str, str] = {}


class ServerSettings(_Section, frozen=True):
    """`[server]`: who says when. Without a URL the node follows its channel by itself."""

    omaha_url: str = ""
    channel: Name = "stable"
    group: Name = "default"
    poll_interval_secs: Seconds = 2700  # 45 minutes
    poll_jitter_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.1
    first_check_secs: Seconds = 420  # 7 minutes
    timeout_secs: Seconds = 30
    ca_file: str = ""


class TrustSettings(_Section, frozen=True):
    """`[trust]`: who says what."""

    mode: Literal["tuf", "payload-key"] = "tuf"
    metadata_url: str = ""
    root_file: str = ""  # empty: /usr/lib/bascule/root.json of the booted slot
    payload_keys: list[str] = []
    max_holdback_days: Annotated[int, msgspec.Meta(ge=1, le=365)] = 14


class DownloadSettings(_Section, frozen=True):
    """`[download]`: where payload bytes come from and how patiently."""

    mirrors: list[str] = []
    idle_timeout_secs: Seconds = 30
    retries: Annotated[int, msgspec.Meta(ge=0, le=100)] = 5
    retry_delay_secs: Seconds = 2
    checkpoint_mib: Annotated[int, msgspec.Meta(ge=1, le=16)] = 8
    workers: Annotated[int, msgspec.Meta(ge=1, le=64)] | None = None
    nice: Annotated[int, msgspec.Meta(ge=0, le=19)] = 5
    io_priority: Literal["normal", "low", "idle"] = "low"
    deltas: bool = True
    recode_max_mib: Mebibytes = 0
    max_mib_per_update: Mebibytes = 0
    max_mib_per_day: Mebibytes = 0
    metered: bool = False
    metered_file: Annotated[str, msgspec.Meta(pattern=r"^(/[^\n]+)?\Z")] = ""
    metered_max_mib: Mebibytes = 0
    max_kib_per_sec: Annotated[int, msgspec.Meta(ge=0, le=64 * 1024 * 1024)] = 0


class UpdatesSettings(_Section, frozen=True):
    """`[updates]`: what the daemon does without being asked."""

    automatic: bool = True
    reboot: Literal["automatic", "manual"] = "manual"
    max_attempts: Annotated[int, msgspec.Meta(ge=1, le=100)] = 5
    postinstall: Literal["none", "flatcar"] = "none"
    postinstall_timeout_secs: Seconds = 1800  # it may download extension images


class WindowSettings(_Section, frozen=True):
    """`[[reboot.windows]]`: when a reboot may begin, and for how long."""

    start: Annotated[str, msgspec.Meta(min_length=1, max_length=500)]
    length: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    timezone: Annotated[str, msgspec.Meta(max_length=64)] = ""


class RebootSettings(_Section, frozen=True):
    """`[reboot]`: when."""

    windows: Annotated[list[WindowSettings], msgspec.Meta(max_length=32)] = []


class PermitSettings(_Section, frozen=True):
    """`[permit]`: who may reboot when."""

    kind: Literal["none", "etcd"] = "none"
    group: Name = "default"
    endpoints: list[str] = []
    max: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 1
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    username: str = ""
    password_file: str = ""
    insecure: bool = False


class BusSettings(_Section, frozen=True):
    """`[bus]`: how programs talk to the service."""

    # Empty: "system" for a real machine, "none" for a model.
    address: Annotated[
        str, msgspec.Meta(pattern=r"^(|system|none|unix:(path|abstract)=[^,;\s]{1,200})\Z")
    ] = ""
    compatible: bool = True


class CheckSettings(_Section, frozen=True):
    """`[[health.checks]]`: one command that must end with status 0."""

    name: Name
    command: Annotated[list[str], msgspec.Meta(min_length=1)]
    timeout_secs: Seconds = 30


class HealthSettings(_Section, frozen=True):
    """`[health]`: when a booted slot counts as good."""

    units: Annotated[list[str], msgspec.Meta(max_length=64)] = []
    no_failed_units: bool = False
    units_timeout_secs: Seconds = 10
    ports: Annotated[list[str], msgspec.Meta(max_length=64)] = []
    ports_timeout_secs: Annotated[float, msgspec.Meta(gt=0, le=60)] = 5
    checks: list[CheckSettings] = []
    steady_secs: Annotated[float, msgspec.Meta(ge=0, le=31 * 86400)] = 0
    deadline_secs: Seconds = 300
    interval_secs: Seconds = 5


class MetricsSettings(_Section, frozen=True):
    """`[metrics]`: facts for Prometheus, as a file that node_exporter reads."""

    textfile: TextFile = ""


class Settings(_Section, frozen=True):
    """All settings of one node, merged and checked."""

    node: NodeSettings = NodeSettings()
    slots: SlotsSettings = SlotsSettings()
    server: ServerSettings = ServerSettings()
    trust: TrustSettings = TrustSettings()
    download: DownloadSettings = DownloadSettings()
    updates: UpdatesSettings = UpdatesSettings()
    reboot: RebootSettings = RebootSettings()
    permit: PermitSettings = PermitSettings()
    health: HealthSettings = HealthSettings()
    bus: BusSettings = BusSettings()
    metrics: MetricsSettings = MetricsSettings()


# Lists of tables, `[[written.so]]`.
_ROWS: Final[Mapping[str, type[_Section]]] = MappingProxyType(
    {"health.checks": CheckSettings, "reboot.windows": WindowSettings}
)


class Loaded(msgspec.Struct, frozen=True):
    """Settings with the file that each written value came from.

    Attributes:
        settings: the checked value.
        origins: dotted key to the file that had the last word; defaults are absent.
        files: the files that were read, in order.
    """

    settings: Settings
    origins: Mapping[str, Path]
    files: Sequence[Path]


def load(config: Path | None = None, *, folders: Sequence[Path] = FOLDERS) -> Loaded:
    """Read, merge and check the settings.

    Args:
        config: one file to read instead of the folders; its `FILE.d/*.toml` are read too.
        folders: vendor, admin and runtime folder, weakest first.

    Raises:
        SettingsError: a file is missing (only with `config`), unreadable, not TOML, has an
            unknown key or a value of the wrong kind; the message names file and line.
    """
    files = list(_files(config, folders))
    merged: dict[str, Any] = {}
    origins: dict[str, Path] = {}
    for file in files:
        fragment = _read(file)
        _check_keys(fragment, Settings, file, "")
        _merge(merged, fragment, origins, file, "")
    try:
        settings = msgspec.convert(merged, Settings)
    except msgspec.ValidationError as error:
        raise SettingsError(_place(str(error), origins)) from error
    _check_references(settings.slots, origins)
    _check_units(settings.health.units, origins)
    _check_whole(settings, files)
    _check_windows(settings.reboot.windows, origins)
    return Loaded(settings=settings, origins=origins, files=tuple(files))


def _files(config: Path | None, folders: Sequence[Path]) -> Iterator[Path]:
    if config is not None:
        if not config.is_file():
            raise SettingsMissingError(f"settings file {config} does not exist or is no file")
        yield config
        yield from sorted(config.with_name(config.name + ".d").glob("*.toml"))
        return
    for folder in folders:
        if (folder / FILE_NAME).is_file():
            yield folder / FILE_NAME
        yield from sorted((folder / f"{FILE_NAME}.d").glob("*.toml"))


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            data = stream.read(SETTINGS_MAX_BYTES + 1)
        if len(data) > SETTINGS_MAX_BYTES:
            raise SettingsError(f"{file} is longer than {SETTINGS_MAX_BYTES} bytes")
        return tomllib.loads(data.decode())
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} is not TOML: {error}") from error


def _check_keys(
    table: Mapping[str, Any], kind: type[_Section], file: Path, prefix: str, row: int | None = None
) -> None:
    fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
    for key, value in table.items():
        if key not in fields:
            raise SettingsError(f"{_at(file, prefix, key, row)}: unknown key {prefix + key!r}")
        wanted = fields[key]
        if isinstance(value, dict) and isinstance(wanted, type) and issubclass(wanted, _Section):
            _check_keys(value, wanted, file, f"{prefix}{key}.")
        elif isinstance(value, list) and (each := _ROWS.get(f"{prefix}{key}")) is not None:
            for number, item in enumerate(value):
                if isinstance(item, dict):
                    _check_keys(item, each, file, f"{prefix}{key}.", number)


def _at(file: Path, prefix: str, key: str, row: int | None = None) -> str:
    """Name the file, and the line on which `key` of the table `prefix` is written if it is found.

    Tables may be written as headers, dotted keys or inline; quoted keys are found too. `row`
    counts the headers `[[written.so]]` of a list of tables, from 0.
    """
    here, headers = "", 0
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        header = re.match(r"\s*\[\[?\s*([^\]]+?)\s*\]", line)
        here = f"{header.group(1)}." if header else here
        written = here if header else here + "".join(line.partition("=")[0].split())
        plain = written.replace('"', "").replace("'", "").rstrip(".") + "."
        headers += bool(header) and plain == prefix
        named = plain.startswith(f"{prefix}{key}.") and headers in {0, (row or 0) + 1}
        inline = prefix == plain and re.search(rf"[{{,]\s*\"?{re.escape(key)}\"?\s*[.=]", line)
        if named or inline:
            return f"{file}, line {number}"
    return str(file)


def _merge(
    into: dict[str, Any],
    table: Mapping[str, Any],
    origins: dict[str, Path],
    file: Path,
    prefix: str,
) -> None:
    for key, value in table.items():
        if isinstance(value, dict) and isinstance(into.get(key, {}), dict):
            _merge(into.setdefault(key, {}), value, origins, file, f"{prefix}{key}.")
        else:
            into[key] = value
            origins[prefix + key] = file


def _place(message: str, origins: Mapping[str, Path]) -> str:
    """Put file and line before msgspec's sentence, which names only the path in the value."""
    found = re.search(r"at `\$\.([^`]+)`", message)
    dotted = re.sub(r"\[.*?\]", "", found.group(1)) if found else ""
    row = re.search(r"\[(\d+)\]\.", found.group(1)) if found else None
    above = dotted.rpartition(".")[0]
    below = next((key for key in origins if key.startswith(f"{dotted}.")), "")
    file = origins.get(dotted) or origins.get(above) or origins.get(below)
    if file is None:
        return f"settings: {message}"
    number = int(row.group(1)) if row else None
    place = _at(file, f"{above}." if above else "", dotted.removeprefix(f"{above}."), number)
    if "matching regex" in message:
        return f"{place}: {dotted} must be {_FORMS.get(dotted, _NAME_FORM)}"
    choices = ", ".join(_choices(dotted)) if "enum value" in message else ""
    said = message.split(" - at ", maxsplit=1)[0]
    return f"{place}: {dotted}: {said}{f'; there are: {choices}' if choices else ''}"


def _choices(dotted: str) -> Sequence[str]:
    """Return the words that a setting may be."""
    table, _, key = dotted.partition(".")
    kinds = {field.name: field.type for field in msgspec.structs.fields(Settings)}
    return next(
        get_args(field.type) for field in msgspec.structs.fields(kinds[table]) if field.name == key
    )


def _check_references(slots: SlotsSettings, origins: Mapping[str, Path]) -> None:
    """Refuse a part of a slot that is named in no known way, or as another part is."""
    owners: dict[str, str] = {}
    for slot, parts in (("a", slots.a), ("b", slots.b)):
        for part, text in parts.items():
            key = f"slots.{slot}.{part}"
            file = origins.get(key) or origins[f"slots.{slot}"]
            place = _at(file, f"slots.{slot}.", part)
            if not _REFERENCE.fullmatch(text):
                raise SettingsError(
                    f"{place}: {key}: {text!r} must be PARTLABEL=…, PARTUUID=… or "
                    "FILE=/absolute/path"
                )
            try:
                words = PartRef.parse(text).words
            except ValueError as error:
                raise SettingsError(f"{place}: {key}: {text!r}: {error}") from error
            # FAT knows no small and large letters; labels do.
            owner = owners.setdefault(words.lower() if text.startswith("FILE=") else words, key)
            if owner != key:
                raise SettingsError(f"{place}: {key}: {text!r} is what {owner} names already")


def _check_units(units: Sequence[str], origins: Mapping[str, Path]) -> None:
    """Refuse what is no full name of a unit."""
    for unit in units:
        if not _UNIT_NAME.fullmatch(unit):
            place = _at(origins["health.units"], "health.", "units")
            raise SettingsError(
                f"{place}: health.units: {unit!r} must be a unit's full name, such as sshd.service"
            )


def _check_whole(settings: Settings, files: Sequence[Path]) -> None:
    """Refuse what each value allows alone but the whole does not."""
    where = files[-1] if files else FOLDERS[1] / FILE_NAME
    _check_slots(settings.slots, where)
    rate = settings.download.max_kib_per_sec
    if 0 < rate < RATE_MIN_KIB:
        raise SettingsError(
            f"{where}: download.max_kib_per_sec is {rate}; give {RATE_MIN_KIB} or more, or 0 for"
            " no limit"
        )
    if settings.node.machine == "model":
        _check_model(settings.slots, where)
    if settings.permit.kind == "etcd" and not settings.permit.endpoints:
        raise SettingsError(f"{where}: permit.kind is etcd but permit.endpoints is empty")
    if settings.updates.postinstall == "flatcar" and "usr" not in settings.slots.a:
        raise SettingsError(f"{where}: updates.postinstall is flatcar but [slots] have no part usr")
    _check_trust(settings, where)
    _check_health(settings.health, where)
    for url in (settings.server.omaha_url, *settings.download.mirrors):
        if url and not re.match(r"https?://[^@\s]+$", url):
            raise SettingsError(
                f"{where}: {url!r} is no http or https URL without user information"
            )


def _check_trust(settings: Settings, where: Path) -> None:
    """Refuse settings by which nothing, or anything, could be trusted."""
    trust = settings.trust
    if trust.mode == "payload-key":
        if not trust.payload_keys:
            raise SettingsError(
                f"{where}: trust.mode is payload-key but trust.payload_keys is empty: "
                "nothing could be trusted"
            )
        if not settings.server.omaha_url:
            raise SettingsError(f"{where}: trust.mode is payload-key but server.omaha_url is empty")
        return
    if not trust.metadata_url:
        raise SettingsError(f"{where}: trust.metadata_url is not set: nothing could be trusted")
    if not re.match(r"(https?://[^@\s/]|file:///)[^@\s]*$", trust.metadata_url):
        raise SettingsError(
            f"{where}: trust.metadata_url {trust.metadata_url!r} is no http, https or "
            "file URL without user information"
        )


def _check_health(health: HealthSettings, where: Path) -> None:
    """Refuse an address that cannot be connected to, and a trial that could never end well."""
    from updater.health_ports import AddressError, read_address

    for port in health.ports:
        try:
            read_address(port)
        except AddressError as error:
            raise SettingsError(f"{where}: health.ports: {port!r}: {error}") from error
    if health.steady_secs >= health.deadline_secs:
        raise SettingsError(
            f"{where}: health.steady_secs is {health.steady_secs:g}, which leaves no room within "
            f"health.deadline_secs ({health.deadline_secs:g})"
        )


def _check_slots(slots: SlotsSettings, where: Path) -> None:
    if not slots.disk:
        raise SettingsError(f"{where}: slots.disk is not set: no disk, no slots")
    if not slots.a or slots.a.keys() != slots.b.keys():
        raise SettingsError(f"{where}: slots.a and slots.b must name the same parts, at least one")
    name = "grubenv" if slots.boot_control == AUTO and slots.grubenv else slots.boot_control
    if name == "grubenv":
        _check_grubenv(slots, where)
    if name == "custom" and not slots.custom_command:
        raise SettingsError(
            f"{where}: slots.boot_control is custom but slots.custom_command is empty"
        )
    if name in _TRIES_MAX:
        counter, most = _TRIES_MAX[name]
        if slots.tries > most:
            raise SettingsError(f"{where}: slots.tries is {slots.tries}, {counter} to {most}")


def _check_model(slots: SlotsSettings, where: Path) -> None:
    """Refuse a model whose firmware would change what this machine itself boots from."""
    own = SlotsSettings()
    places = {
        "systemd-boot": ("boot_folder", slots.boot_folder, own.boot_folder),
        "efi": ("efivars", slots.efivars, own.efivars),
        "uboot": ("uboot_config", slots.uboot_config, own.uboot_config),
    }
    name, path, machines_own = places.get(slots.boot_control, ("", "", None))
    if path == machines_own:
        raise SettingsError(
            f"{where}: node.machine is model but slots.{name} is this machine's own {path}"
        )


def _check_grubenv(slots: SlotsSettings, where: Path) -> None:
    if not slots.grubenv:
        raise SettingsError(f"{where}: slots.boot_control is grubenv but slots.grubenv is not set")
    if not Path(slots.grubenv).is_absolute():
        raise SettingsError(f"{where}: slots.grubenv {slots.grubenv!r} is no absolute path")


_TRIES_MAX: Final = {
    "grubenv": ("GRUB's environment counts", marks.TRIES_MAX),
    "uboot": ("U-Boot's environment counts", marks.TRIES_MAX),
    "systemd-boot": ("an entry of systemd-boot counts", systemd_boot_firmware.TRIES_MAX),
    "efi": ("the firmware's BootNext counts", efi_firmware.TRIES_MAX),
}


def _check_windows(rows: Sequence[WindowSettings], origins: Mapping[str, Path]) -> None:
    """Refuse a window that does not hold, where it is written.

    An image that lacks all time zones must still run the service, to be replaced by a better
    one: there the gate is closed and says why.

    Raises:
        WindowInvalidError: with file and line.
    """
    if not rows:
        return
    from updater.windows import read_window
    from updater.zones import ZonesMissingError

    for number, row in enumerate(rows):
        try:
            read_window(row, local=UTC)
        except ZonesMissingError:
            return
        except WindowInvalidError as error:
            place = _at(origins["reboot.windows"], "reboot.windows.", "start", number)
            raise WindowInvalidError(f"{place}: {error}") from error
