"""A stock machine on the real `bascule-server`: a whole update, and every way it goes wrong."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.sim.desk import OURS, SimNode
from tests.sim.desk_process import done, facts, process
from tests.sim.samples import EXT2_SHA256, KERNEL_SHA256, KEY, OTHER_KEY, unpack
from tests.sim.stock_engine import APP_ID, EngineDiedError, StockEngine
from updater.omaha import decode_response, encode_request

pytestmark = pytest.mark.e2e

PRODUCT = APP_ID.strip("{}")
MACHINE = "3d1219c7c4c5404aaa1f6d2a48adfda4"


@dataclass(frozen=True, slots=True)
class Site:
    """A served desk whose group `stable` follows its channel, and the samples."""

    url: str
    folder: Path
    samples: Path

    def publish(self, version: str, *files: str) -> None:
        """Add payloads of a version and make it current."""
        for file in files:
            done(
                "release", "add", self.folder, self.samples / file,
                "--version", version, "--public-key", self.samples / KEY,
            )  # fmt: skip
        done("channel", "promote", self.folder, "stable", version)

    def shown(self) -> Any:  # noqa: ANN401  # JSON
        """Return what the server tells of the machine; `node show` takes half a second for it."""
        return self.api(f"nodes/{MACHINE}")

    def api(self, path: str) -> Any:  # noqa: ANN401  # JSON
        return requests.get(f"{self.url}/api/{path}", timeout=30).json()

    def dashboard(self) -> str:
        return requests.get(self.url, timeout=30).text


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("samples"))


@pytest.fixture(scope="module")
def laid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A desk made by commands once; never to be changed."""
    folder = tmp_path_factory.mktemp("laid") / "desk"
    done("init", folder, "--product", PRODUCT, "--board", "amd64-usr", "--channel", "stable")
    done("group", "create", folder, "stable", "--channel", "stable")
    return folder


@pytest.fixture
def site(laid: Path, samples: Path, tmp_path: Path) -> Iterator[Site]:
    folder = shutil.copytree(laid, tmp_path / "desk")
    with process(folder) as (url, _):
        yield Site(url, folder, samples)


@pytest.fixture
def engine(site: Site, tmp_path: Path) -> StockEngine:
    disk = tmp_path / "disk"
    (disk / "running").mkdir(parents=True)
    (disk / "running/usr").write_bytes(b"version 1.0.0")
    return StockEngine(
        f"{site.url}/v1/update/", disk, "1.0.0", key=site.samples / KEY, alias="rack1-node7"
    )


def test_a_stock_machine_walks_through_a_whole_update(site: Site, engine: StockEngine) -> None:
    assert engine.tick() == "no update"
    assert site.shown()["node"]["waits_for"] == "no-release"
    assert facts("node", "show", site.folder, MACHINE) == site.shown()
    site.publish("2.0.0", "v2-full-signed.crau", "full-signed.crau")
    assert site.shown()["node"]["state"] == "idle"

    engine.cuts = [1_000_000, 3_000_000]
    assert engine.tick(by_person=True) == "need-reboot"
    size = (site.samples / "full-signed.crau").stat().st_size
    assert engine.fetched == [
        (200, ""),
        (206, f"bytes 1000000-{size - 1}/{size}"),
        (206, f"bytes 3000000-{size - 1}/{size}"),
    ]
    assert engine.said == [(3, 2, None), (3, 2, None), (13, 1, None), (14, 1, None), (3, 1, None)]
    shown = site.shown()
    assert (shown["node"]["state"], shown["node"]["version"]) == ("armed", "1.0.0")
    assert [grant["phase"] for grant in shown["grants"]] == ["installed"]

    for _ in range(3):  # waits for its reboot
        assert engine.tick() == "need-reboot"
    assert site.shown()["node"]["state"] == "armed"
    (group,) = [group for group in site.api("groups")["items"] if group["name"] == "stable"]
    assert (group["under_way"], group["on_current"]) == (1, 0)

    engine.reboot()
    assert hashlib.sha256(engine.part("usr")).hexdigest() == EXT2_SHA256
    assert engine.tick() == "no update"
    shown = site.shown()
    assert (shown["node"]["state"], shown["node"]["version"]) == ("idle", "2.0.0")
    assert (shown["node"]["error_code"], shown["node"]["waits_for"]) == ("", "current")
    assert [grant["phase"] for grant in shown["grants"]] == ["complete"]
    told = [(event["type"], event["result"]) for event in reversed(shown["events"])]
    assert told == [(13, 1), (14, 1), (3, 1), (3, 2)]
    (group,) = [group for group in site.api("groups")["items"] if group["name"] == "stable"]
    assert (group["under_way"], group["on_current"]) == (0, 1)
    assert engine.tick() == "no update"  # with an empty previous version from now on
    assert "update complete 2.0.0" in " ".join(site.dashboard().split())


def test_stock_machines_and_ours_get_each_their_payload_from_one_channel(
    site: Site, engine: StockEngine
) -> None:
    site.publish("2.0.0", "v2-full-signed.crau", "full-signed.crau")
    ours = SimNode("a" * 32, agent=OURS, group="stable")
    body = encode_request(ours.request(check=True))
    answer = requests.post(f"{site.url}/v1/update", data=body, timeout=30)
    check = decode_response(answer.content).apps[0].update_check
    assert check is not None
    assert check.manifests[0].packages[0].sha256 == sha256(site.samples / "v2-full-signed.crau")
    assert engine.tick() == "need-reboot"
    engine.reboot()
    assert engine.version == check.manifests[0].version == "2.0.0"


def test_a_kernel_in_a_format_1_payload_reaches_the_machine(
    site: Site, engine: StockEngine
) -> None:
    site.publish("2.0.0", "full-signed-kernel.crau")
    assert engine.tick() == "need-reboot"
    engine.reboot()
    assert hashlib.sha256(engine.part("kernel")).hexdigest() == KERNEL_SHA256


def test_a_machine_that_died_in_a_download_goes_on_with_the_same_grant(
    site: Site, engine: StockEngine
) -> None:
    site.publish("2.0.0", "full-signed.crau")
    engine.dies_after = 2_000_000
    with pytest.raises(EngineDiedError):
        engine.tick()
    assert site.shown()["node"]["state"] == "installing"
    engine.reboot()
    engine.fetched.clear()
    assert engine.tick() == "need-reboot"
    assert [status for status, _ in engine.fetched] == [206, 206]  # manifest, then the rest
    assert [grant["phase"] for grant in site.shown()["grants"]] == ["installed"]


def delete_payload(site: Site, _: StockEngine) -> None:
    for file in (site.folder / "payloads").glob("*.crau"):
        file.unlink()


def flip_signature(site: Site, _: StockEngine) -> None:
    """The operations stay whole, so that only the hash of the whole file shows it."""
    (file,) = (site.folder / "payloads").glob("*.crau")
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.unlink()  # not through the hard link into the repository
    file.write_bytes(data)


def cut_payload(site: Site, _: StockEngine) -> None:
    (file,) = (site.folder / "payloads").glob("*.crau")
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(data[:-1])


def trust_another_key(site: Site, engine: StockEngine) -> None:
    engine.key = site.samples / OTHER_KEY


def fail_postinst(_: Site, engine: StockEngine) -> None:
    engine.postinst_fails = True


Trouble = Callable[[Site, StockEngine], None]


@pytest.mark.parametrize(
    ("trouble", "number", "name", "sentence"),
    [
        (delete_payload, 9, "DownloadTransferError", "the payload could not be downloaded"),
        (
            flip_signature,
            10,
            "PayloadHashMismatchError",
            "the payload is not the one that was offered",
        ),
        (
            cut_payload,
            11,
            "PayloadSizeMismatchError",
            "the payload has another size than was offered",
        ),
        (
            trust_another_key,
            18,
            "DownloadPayloadPubKeyVerificationError",
            "no key of the machine signed the payload",
        ),
        (
            fail_postinst,
            5,
            "PostinstallRunnerError",
            "the new image could not be mounted or its program failed",
        ),
    ],
)
def test_a_failed_attempt_is_shown_with_the_engines_name_and_frees_its_place(
    site: Site, engine: StockEngine, trouble: Trouble, number: int, name: str, sentence: str
) -> None:
    site.publish("2.0.0", "full-signed.crau")
    trouble(site, engine)
    assert engine.tick() == f"failed {number}"
    assert engine.said[-1] == (3, 0, (1 << 28) + number)
    told = f"{sentence} ({name}, {number})"
    shown = site.shown()
    assert (shown["node"]["state"], shown["node"]["version"]) == ("idle", "1.0.0")
    assert (shown["node"]["error_code"], shown["node"]["error_sentence"]) == (
        f"engine-{number}", told,
    )  # fmt: skip
    assert [(grant["phase"], grant["code"]) for grant in shown["grants"]] == [
        ("failed", f"engine-{number}")
    ]
    event = shown["events"][0]
    assert (event["code"], event["sentence"], event["error_code"]) == (
        f"engine-{number}", told, (1 << 28) + number,
    )  # fmt: skip
    assert site.api(f"nodes/{MACHINE}")["node"]["error_sentence"] == told
    assert told in site.dashboard()
    assert stops(site) == []
    assert told in done("node", "show", site.folder, "rack1-node7")


def test_a_file_system_that_the_engine_cannot_mount_is_a_failed_postinstall(
    site: Site, engine: StockEngine
) -> None:
    site.publish("2.0.0", "full-signed-squashfs.crau")
    assert engine.tick() == "failed 5"
    assert engine.said[-2:] == [(14, 1, None), (3, 0, 268435461)]
    assert site.shown()["node"]["error_code"] == "engine-5"


def test_a_machine_that_fell_back_stops_the_release_for_its_group(
    site: Site, engine: StockEngine, tmp_path: Path
) -> None:
    site.publish("2.0.0", "full-signed.crau")
    assert engine.tick() == "need-reboot"
    engine.reboot(comes_up=False)
    assert engine.tick() == "no update"
    assert engine.said[-1] == (3, 0, 44)
    told = "the new version did not come up; the machine runs the old one (RollbackError, 44)"
    shown = site.shown()
    assert (shown["node"]["state"], shown["node"]["version"]) == ("idle", "1.0.0")
    assert (shown["node"]["error_code"], shown["node"]["error_sentence"]) == ("trial-failed", told)
    assert shown["node"]["waits_for"] == "rollout-stopped"
    assert [(grant["phase"], grant["code"]) for grant in shown["grants"]] == [
        ("failed-trial", "trial-failed")
    ]
    (stop,) = stops(site)
    assert (stop["version"], stop["sentence"]) == (
        "2.0.0", "release 2.0.0 did not hold on node rack1-node7 (trial-failed)",
    )  # fmt: skip
    page = site.dashboard()
    assert told in page
    assert stop["sentence"] in page

    other = StockEngine(engine.url, tmp_path / "other", "1.0.0", machine_id="b" * 32)
    assert other.tick() == "no update"
    done("group", "resume", site.folder, "stable")
    assert engine.tick() == "no update"
    assert site.shown()["node"]["waits_for"] == "failed-here"
    other.folder.mkdir()
    assert other.tick() == "need-reboot"


def test_a_machine_that_puts_the_update_off_frees_its_place_and_says_why(
    site: Site, engine: StockEngine, tmp_path: Path
) -> None:
    site.publish("2.0.0", "full-signed.crau")
    done("group", "set", site.folder, "stable", "--concurrency", "1")
    engine.backs_off = True
    assert engine.tick() == "failed 40"
    assert engine.said[-1] == (3, 9, 268435496)
    told = (
        "the machine waits before it tries the download again (OmahaUpdateDeferredForBackoff, 40)"
    )
    shown = site.shown()
    assert (shown["node"]["state"], shown["node"]["error_code"]) == ("idle", "engine-40")
    assert shown["node"]["error_sentence"] == told
    assert [grant["phase"] for grant in shown["grants"]] == ["deferred"]
    assert f'deferred 2.0.0 <span class="bad">{told}</span>' in " ".join(site.dashboard().split())
    assert stops(site) == []
    disk = tmp_path / "other"
    disk.mkdir()
    other = StockEngine(engine.url, disk, "1.0.0", machine_id="b" * 32)
    assert other.tick() == "need-reboot"  # the one place was free


def test_a_stock_machine_is_never_given_format_2(site: Site, engine: StockEngine) -> None:
    site.publish("2.0.0", "v2-full-signed.crau")
    assert engine.tick() == "no update"
    assert site.shown()["node"]["waits_for"] == "payload-unsuitable"
    assert engine.fetched == []


def stops(site: Site) -> list[dict[str, str]]:
    return [stop for group in site.api("groups")["items"] for stop in group["stops"]]


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
