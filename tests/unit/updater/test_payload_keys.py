"""Payload keys, where a release names a payload of format 1, which is signed as a whole."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from images.errors import PayloadSignatureError
from images.format_1 import build_format_1
from images.signing import keygen, load_private_key, load_public_keys
from tests.unit.updater.test_pipeline import (
    MIB,
    Bench,
    Release,
    bench,
    no_thread_is_left_behind,
    write_parts,
)
from updater.install import verify_slot, write_slot
from updater.plan import Plan

__all__ = ["bench", "no_thread_is_left_behind"]  # fixtures


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    folder = tmp_path_factory.mktemp("format-1")
    chance = random.Random(13)
    root, boot = chance.randbytes(3 * MIB), chance.randbytes(MIB)
    write_parts(folder, root, boot)
    keygen(folder / "other")
    build_format_1(
        [("usr", folder / "root"), ("kernel", folder / "boot")],
        folder / "payload.crau",
        keys=[load_private_key(folder / "key.key.pem")],
    )
    data = (folder / "payload.crau").read_bytes()
    return Release(folder=folder, data=data, root=root, boot=boot)


def plan_of(bench: Bench, key: str | None) -> Plan:
    plan = bench.plan()
    return replace(
        plan,
        keys=None if key is None else load_public_keys(bench.release.folder / f"{key}.pub.pem"),
        regions={"usr": plan.regions["root"], "kernel": plan.regions["boot"]},
    )


@pytest.mark.parametrize("next_operation", [0, 2])
def test_another_key_is_refused_also_after_an_interruption(
    bench: Bench, next_operation: int
) -> None:
    with pytest.raises(PayloadSignatureError):
        write_slot(
            plan_of(bench, "other"),
            bench.download(),
            bench.journal(next_operation),
            bench.shell(),
        )


@pytest.mark.parametrize("key", ["key", None])
def test_the_right_key_or_none_installs(bench: Bench, key: str | None) -> None:
    written = write_slot(plan_of(bench, key), bench.download(), bench.journal(), bench.shell())
    assert verify_slot(written).version == "2.0.0"
    assert bench.content() == (bench.release.root, bench.release.boot)


def test_without_keys_it_goes_on_where_it_was(bench: Bench) -> None:
    plan = plan_of(bench, None)
    write_slot(plan, bench.download(), bench.journal(), bench.shell())
    write_slot(plan, bench.download(), bench.journal(2), bench.shell())
    asked = bench.mirror.requests[-1]
    assert int(asked.removeprefix("bytes=").removesuffix("-")) > 2 * MIB
