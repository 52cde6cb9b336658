"""Builds a node out of its settings: the one place where clocks, chance and devices are chosen."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from partitions.boot import Places, open_boot_control
from partitions.errors import BootFileSharedError
from partitions.slots import PartRef, Slot, SlotLayout, files_of
from updater.errors import SettingsError
from updater.machine import Machine
from updater.node import Node
from updater.progress import ProgressFile
from updater.state import Store

if TYPE_CHECKING:
    import requests

    from updater.permit.contract import PermitKeeper
    from updater.permit.settings import EtcdSettings
    from updater.settings import PermitSettings, Settings
    from updater.steering import Steering
    from updater.trust.refresh import TrustClient

SYSTEM_CA_FILE: Final = Path("/etc/ssl/certs/ca-certificates.crt")


def slot_layout(settings: Settings) -> SlotLayout:
    """Return which partitions and files make slot A and slot B.

    Raises:
        SettingsError: a reference is no label, no UUID and no path, or two are one file.
    """
    named = {Slot.A: settings.slots.a, Slot.B: settings.slots.b}
    try:
        layout = {
            slot: {part: PartRef.parse(text) for part, text in parts.items()}
            for slot, parts in named.items()
        }
        files_of(layout)
    except (ValueError, BootFileSharedError) as error:
        raise SettingsError(f"[slots]: {error}") from error
    return layout


def places(settings: Settings, layout: SlotLayout) -> Places:
    """Return where the slots and the loader's memory are."""
    slots = settings.slots
    return Places(
        disk=Path(slots.disk),
        layout=layout,
        grubenv=_path(slots.grubenv),
        boot_folder=Path(slots.boot_folder),
        uboot_config=Path(slots.uboot_config),
        custom_command=tuple(slots.custom_command),
    )


def build(settings: Settings) -> Node:
    """Return the node that the settings describe. Nothing is opened for writing.

    Raises:
        SettingsError: a reference is malformed.
        MachineError: the booted slot cannot be told.
        PartitionsError: the disk has no usable table or lacks a partition.
    """
    layout = slot_layout(settings)
    machine = _machine(settings, layout)
    store = Store(Path(settings.node.state_folder))
    sessions = _sessions(settings)
    return Node(
        settings=settings,
        layout=layout,
        machine=machine,
        loader=open_boot_control(
            settings.slots.boot_control,
            places(settings, layout),
            booted=machine.boot().slot,
        ),
        store=store,
        clock=_now,
        chance=random.SystemRandom().random,
        trust=cache(lambda: _trust(settings, machine, store, sessions)),
        permits=cache(lambda: _permits(settings.permit, machine, store)),
        http=sessions,
        director=_director(settings, sessions),
        progress=ProgressFile(Path(settings.node.run_folder), time.monotonic),
        stop=threading.Event(),
    )


def _now() -> datetime:
    return datetime.now(UTC)


def _machine(settings: Settings, layout: SlotLayout) -> Machine:
    if settings.node.machine == "model":
        from updater.machine_model import make

        return make(settings, layout)
    from updater.machine_linux import LinuxMachine

    return LinuxMachine(
        disk=Path(settings.slots.disk),
        layout=layout,
        machine_id_file=Path(settings.node.machine_id_file),
        alias=settings.node.alias,
        reboot_command=settings.node.reboot_command,
    )


def _sessions(settings: Settings) -> Callable[[], requests.Session]:
    """Return what makes HTTP sessions of our own settings; requests is loaded at the first."""

    def session() -> requests.Session:
        from updater.trust.fetcher import open_session

        wanted = Path(settings.server.ca_file) if settings.server.ca_file else SYSTEM_CA_FILE
        return open_session(ca_file=wanted if wanted.exists() else None)

    return session


def _trust(
    settings: Settings, machine: Machine, store: Store, sessions: Callable[[], requests.Session]
) -> TrustClient:
    from updater.trust.refresh import TrustClient

    root_file = settings.trust.root_file
    try:
        root = Path(root_file).read_bytes() if root_file else machine.trusted_root()
    except OSError as error:
        raise SettingsError(f"trust.root_file {root_file}: {error.strerror}") from error
    return TrustClient(
        folder=store.folder / "trust",
        bootstrap_root=root,
        metadata_url=settings.trust.metadata_url,
        session_factory=sessions,
        clock=_now,
        clock_floor=machine.image_facts(machine.boot().slot).built,
    )


def _permits(settings: PermitSettings, machine: Machine, store: Store) -> PermitKeeper:
    from updater.permit.contract import Node as Asker

    identity = machine.identity()
    asker = Asker(id=identity.machine_id, host=identity.host)
    if settings.kind == "none":
        from updater.permit.none import NoPermits

        return NoPermits(node=asker, now=_now)
    from updater.permit.cluster import FileClusterMemory
    from updater.permit.opening import open_permits

    memory = FileClusterMemory(store.folder / "etcd-cluster.json")
    return open_permits(etcd_settings(settings), node=asker, memory=memory)


def etcd_settings(settings: PermitSettings) -> EtcdSettings:
    """Return the checked settings of the permit's etcd; nothing is connected.

    Raises:
        PermitError: an endpoint is no URL, is not safe, or a file cannot be read.
    """
    from updater.permit.settings import EtcdSettings

    return EtcdSettings(
        endpoints=tuple(settings.endpoints),
        group=settings.group,
        initial_max=settings.max,
        ca_file=_path(settings.ca_file),
        cert_file=_path(settings.cert_file),
        key_file=_path(settings.key_file),
        username=settings.username,
        password_file=_path(settings.password_file),
        insecure=settings.insecure,
    )


def _path(text: str) -> Path | None:
    return Path(text) if text else None


def _director(
    settings: Settings, sessions: Callable[[], requests.Session]
) -> Callable[[], Steering] | None:
    """Return what makes the Omaha client; its messages are loaded at the first question."""
    if not settings.server.omaha_url:
        return None

    @cache
    def steering() -> Steering:
        from updater.steering import Steering

        return Steering(
            settings.server.omaha_url,
            session=sessions,
            timeout_secs=settings.server.timeout_secs,
        )

    return steering
