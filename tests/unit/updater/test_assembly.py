"""Where a node looks for its loader: on this machine, or for a model never there."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from partitions.boot.detection import AUTO, Facts, look
from updater.assembly import NOWHERE, places
from updater.settings import NodeSettings, Settings

DEFAULTS = {
    "boot_folder": "/boot",
    "uboot_config": "/etc/fw_env.config",
    "efivars": "/sys/firmware/efi/efivars",
}


@pytest.mark.parametrize("key", DEFAULTS)
def test_a_model_does_not_look_at_what_this_machine_boots_from(key: str) -> None:
    model = Settings(node=NodeSettings(machine="model"))
    assert getattr(places(model, {}), key) == NOWHERE
    slots = msgspec.structs.replace(model.slots, **{key: "/tmp/model"})
    named = Settings(node=model.node, slots=slots)
    assert getattr(places(named, {}), key) == Path("/tmp/model")
    assert getattr(places(Settings(), {}), key) == Path(DEFAULTS[key])


def test_nothing_is_found_nowhere() -> None:
    settings = Settings(node=NodeSettings(machine="model"))
    assert settings.slots.boot_control == AUTO
    facts = look(places(settings, {}))
    assert facts == Facts(faults=facts.faults, absent=facts.absent)
