"""`bascule-image`: facts on stdout, three lines of error on stderr, documented exit statuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from images.cli import run
from images.signing import public_pem
from tests.sim.payloads import forge, image, key
from tests.sim.samples import DELTA, EXT2_SHA256, KEY, OTHER_KEY

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a key pair and two images, which is where the commands run."""
    monkeypatch.chdir(tmp_path)
    assert run(["keygen", "release"]) == 0
    Path("usr.img").write_bytes(image(300) + bytes(1_048_576))
    Path("boot.img").write_bytes(image(2))
    return tmp_path


def error_of(capture: Capture) -> list[str]:
    """Return the three lines of an error, without their labels."""
    captured = capture.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert [line.split(": ")[0] for line in lines] == ["error", "hint", "code"], captured.err
    return [line.split(": ", 1)[1] for line in lines]


def test_keygen_says_where_the_keys_are(tmp_path: Path, capsys: Capture) -> None:
    assert run(["keygen", str(tmp_path / "k"), "--bits", "4096"]) == 0

    assert f"public key:  {tmp_path / 'k.pub.pem'}" in capsys.readouterr().out


def test_what_is_built_is_inspected_verified_and_applied(folder: Path, capsys: Capture) -> None:
    build = ["build", "--partition", "usr=usr.img", "--partition", "boot=boot.img"]
    assert run([*build, "--output", "v.crau", "--key", "release.key.pem"]) == 0
    assert run(["inspect", "v.crau"]) == 0
    assert run(["verify", "v.crau", "--public-key", "release.pub.pem"]) == 0
    applied = ["apply", "v.crau", "--output", "usr=u", "--output", "boot=b"]
    assert run([*applied, "--public-key", "release.pub.pem"]) == 0

    assert (folder / "u").read_bytes() == (folder / "usr.img").read_bytes()
    assert (folder / "b").read_bytes() == (folder / "boot.img").read_bytes()
    out = capsys.readouterr().out
    assert "part boot: 8192 bytes" in out
    assert "verified: True" in out


def test_verify_makes_the_images_unless_told_not_to(folder: Path, capsys: Capture) -> None:
    payload = forge(image(2), image(1, seed=2))
    payload.manifest.partitions[0].new_partition_info.hash = bytes(32)
    (folder / "v.crau").write_bytes(payload.bytes())
    (folder / "key.pub.pem").write_bytes(public_pem(key().public_key()))
    verify = ["verify", "v.crau", "--public-key", "key.pub.pem"]
    capsys.readouterr()

    assert run(verify) == 1
    assert error_of(capsys)[2] == "manifest-contradiction"
    assert run([*verify, "--no-images"]) == 0
    assert "images: not made: --no-images" in capsys.readouterr().out


def test_verify_makes_what_a_delta_makes_of_its_source(
    samples: Path, old_ext2: Path, tmp_path: Path, capsys: Capture
) -> None:
    delta = Path(shutil.copy(samples / DELTA, tmp_path))
    verify = ["verify", str(delta), "--public-key", str(samples / KEY), "--json"]

    assert run(verify) == 0
    assert json.loads(capsys.readouterr().out)["images"] == "not made: a delta needs --source"
    assert run([*verify, "--source", f"usr={old_ext2}"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == "made"
    (tmp_path / "other").write_bytes(image(2))
    assert run([*verify, "--source", f"usr={tmp_path / 'other'}"]) == 1
    assert error_of(capsys)[2] == "source-mismatch"


def test_json_prints_the_same_facts_for_machines(folder: Path, capsys: Capture) -> None:
    capsys.readouterr()
    build = ["build", "--partition", "usr=usr.img", "--output", "v.crau", "--json"]
    assert run([*build, "--key", "release.key.pem"]) == 0
    built = json.loads(capsys.readouterr().out)
    assert run(["inspect", "v.crau", "--json"]) == 0
    inspected = json.loads(capsys.readouterr().out)
    assert run(["verify", "v.crau", "--public-key", "release.pub.pem", "--json"]) == 0
    verified = json.loads(capsys.readouterr().out)
    assert run(["apply", "v.crau", "--output", "usr=u", "--json"]) == 0
    applied = json.loads(capsys.readouterr().out)

    assert built["parts"] == inspected["parts"] == verified["parts"] == applied["parts"]
    assert built["size"] == inspected["size"] == (folder / "v.crau").stat().st_size
    assert inspected["signatures"] == 1
    assert (verified["verified"], applied["verified"]) == (True, False)


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        ([], {"REPLACE", "TARGET_ZSTD", "ZERO"}),
        (["--compat"], {"REPLACE", "REPLACE_XZ", "REPLACE_BZ"}),
        (["--compression", "xz"], {"REPLACE", "REPLACE_XZ", "ZERO"}),
        (["--compression", "bz2"], {"REPLACE", "REPLACE_BZ", "ZERO"}),
        (["--compression", "none"], {"REPLACE", "ZERO"}),
        (["--compat", "--compression", "none"], {"REPLACE"}),
    ],
    ids=lambda words: " ".join(sorted(words)),  # a set has no order, and workers must agree
)
def test_compression_decides_which_operations_there_are(
    folder: Path, capsys: Capture, options: Sequence[str], kinds: set[str]
) -> None:
    (folder / "usr.img").write_bytes(image(256) + b"a" * 1_048_576 + bytes(1_048_576))
    capsys.readouterr()
    args = ["build", "--partition", "usr=usr.img", "--output", "v.crau", "--json"]

    assert run([*args, *options]) == 0

    found = json.loads(capsys.readouterr().out)["parts"][0]["operations"]
    assert found.keys() <= kinds
    assert "REPLACE" in found


def test_a_delta_is_inspected_verified_and_applied(
    samples: Path, old_ext2: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert run(["inspect", str(samples / DELTA), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "delta"
    assert run(["verify", str(samples / DELTA), "--public-key", str(samples / KEY)]) == 0
    apply = ["apply", str(samples / DELTA), "--output", f"usr={tmp_path / 'u'}"]
    capsys.readouterr()

    assert run(apply) == 1
    assert error_of(capsys)[2] == "source-missing"
    assert list(tmp_path.iterdir()) == []
    assert run([*apply, "--source", f"usr={old_ext2}"]) == 0
    assert (tmp_path / "u").stat().st_size == 16_777_216


@pytest.mark.parametrize(
    ("file", "code"),
    [("full-signed.crau", "payload-signature"), ("v2-full-signed.crau", "metadata-signature")],
)
def test_another_key_is_a_refusal_with_status_3(
    samples: Path, tmp_path: Path, capsys: Capture, file: str, code: str
) -> None:
    arguments = ["--output", f"usr={tmp_path / 'u'}", "--public-key", str(samples / OTHER_KEY)]

    assert run(["apply", str(samples / file), *arguments]) == 3

    assert error_of(capsys)[2] == code
    assert list(tmp_path.iterdir()) == []


def test_the_sample_of_format_2_is_applied(samples: Path, tmp_path: Path, capsys: Capture) -> None:
    arguments = ["--output", f"usr={tmp_path / 'u'}", "--public-key", str(samples / KEY)]

    assert run(["apply", str(samples / "v2-full-signed.crau"), *arguments]) == 0

    assert EXT2_SHA256 in capsys.readouterr().out
    assert (tmp_path / "u").stat().st_size == 16_777_216


BUILD = ["build", "--partition", "usr=usr.img", "--output", "v.crau"]
BAD: dict[str, tuple[list[str], int, str, str]] = {
    "no such payload": (["inspect", "missing"], 1, "file-unreadable", "missing cannot be read"),
    "a folder": (["inspect", "."], 1, "file-unreadable", "not a regular file"),
    "another file": (["inspect", "usr.img"], 1, "payload-magic", "begins with"),
    "an empty file": (["inspect", "empty"], 1, "payload-truncated", "too early"),
    "no such image": (
        ["build", "--partition", "usr=missing", "--output", "v.crau"], 1, "file-unreadable",
        "missing cannot be read: No such file or directory",
    ),
    "a folder for an image": (
        ["build", "--partition", "usr=.", "--output", "v.crau"], 1, "file-unreadable",
        "not a regular file",
    ),
    "an odd image": (
        ["build", "--partition", "usr=odd", "--output", "v.crau"], 1, "image-size",
        "odd has 5 bytes",
    ),
    "an empty image": (
        ["build", "--partition", "usr=empty", "--output", "v.crau"], 1, "image-size", "0 bytes",
    ),
    "no such folder": ([*BUILD[:-1], "missing/v.crau"], 1, "file-write", "cannot be written"),
    "an output that is a folder": ([*BUILD[:-1], "."], 1, "file-write", "not a regular file"),
    "an output that is a device": ([*BUILD[:-1], "/dev/null"], 1, "file-write", "/dev/null"),
    "no such key": ([*BUILD, "--key", "missing"], 1, "key-unreadable", "No such file"),
    "a public key to sign": ([*BUILD, "--key", "release.pub.pem"], 1, "key-unreadable", "private"),
    "a folder for a key": ([*BUILD, "--key", "."], 1, "key-unreadable", "directory"),
    "a name twice": ([*BUILD, "--partition", "usr=boot.img"], 1, "part-unknown", "named twice"),
    "an odd name": (
        ["build", "--partition", "a/b=usr.img", "--output", "v.crau"], 1, "part-unknown", "'a/b'",
    ),
    "format 1 of xz": (
        [*BUILD, "--format", "1", "--compression", "xz"],
        3,
        "operation-unsupported",
        "readers of format 1 refuse xz",
    ),
    "a key that exists": (["keygen", "release"], 1, "key-exists", "exists already"),
    "a key nowhere": (["keygen", "missing/k"], 1, "file-write", "No such file"),
    "an unsigned payload": (
        ["verify", "unsigned", "--public-key", "release.pub.pem"], 3, "payload-unsigned",
        "carries no signature",
    ),
    "a private key to verify": (
        ["verify", "unsigned", "--public-key", "release.key.pem"], 1, "key-unreadable", "PEM",
    ),
    "an unknown part": (
        ["apply", "unsigned", "--output", "root=r"], 1, "part-unknown",
        "no part 'root'; it has usr",
    ),
    "an output twice": (
        ["apply", "unsigned", "--output", "usr=a", "--output", "usr=b"], 1, "part-unknown", "twice",
    ),
    "an output nowhere": (
        ["apply", "unsigned", "--output", "usr=missing/a"], 1, "file-write", "missing/a",
    ),
    "not NAME=FILE": (
        ["build", "--partition", "usr", "--output", "v"], 2, "usage", "NAME=FILE",
    ),
    "no name": (["build", "--partition", "=x", "--output", "v"], 2, "usage", "NAME=FILE"),
    "no file": (["apply", "unsigned", "--output", "usr="], 2, "usage", "NAME=FILE"),
    "no output": (["apply", "unsigned"], 2, "usage", "--output"),
    "no partition": (["build", "--output", "v"], 2, "usage", "--partition"),
    "a source for no images": (
        ["verify", "unsigned", "--public-key", "release.pub.pem", "--no-images",
         "--source", "usr=unsigned"], 2, "usage", "--no-images",
    ),
    "no key to verify": (["verify", "unsigned"], 2, "usage", "--public-key"),
    "an unknown option": (["inspect", "unsigned", "--jsn"], 2, "usage", "--jsn"),
    "an unknown command": (["bild"], 2, "usage", "bild"),
    "an unknown compression": ([*BUILD, "--compression", "lz4"], 2, "usage", "lz4"),
    "compat with zstd": ([*BUILD, "--compat", "--compression", "zstd"], 2, "usage", "zstd"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "status", "code", "words"), BAD.values(), ids=BAD.keys())
def test_bad_input_gives_a_sentence_a_hint_and_a_code(
    folder: Path, capsys: Capture, arguments: list[str], status: int, code: str, words: str
) -> None:
    payload = forge(image(2))
    payload.keys = ()
    (folder / "unsigned").write_bytes(payload.bytes())
    (folder / "odd").write_bytes(b"abcde")
    (folder / "empty").touch()
    before = sorted(folder.iterdir())
    capsys.readouterr()

    assert run(arguments) == status

    sentence, hint, found = error_of(capsys)
    assert found == code
    assert words in sentence
    assert hint.endswith((".", ")", "`")) or "--help" in hint
    assert sorted(folder.iterdir()) == before, "nothing is left behind"


def test_a_hostile_name_cannot_add_lines_or_escapes(tmp_path: Path, capsys: Capture) -> None:
    assert run(["inspect", str(tmp_path / "a\ncode: fine\x1b[2J")]) == 1

    assert "a\\ncode: fine\\x1b[2J" in error_of(capsys)[0]


def test_a_hostile_part_name_is_shown_harmlessly(tmp_path: Path, capsys: Capture) -> None:
    payload = forge(image(2), name="usr\x1b[2J")
    (tmp_path / "p").write_bytes(payload.bytes())

    assert run(["inspect", str(tmp_path / "p")]) == 1
    assert "\x1b" not in "".join(error_of(capsys))


@pytest.mark.parametrize("command", ["keygen", "build", "inspect", "verify", "apply"])
def test_every_command_has_help_with_an_example(command: str, capsys: Capture) -> None:
    assert run([command, "--help"]) == 0

    out = " ".join(capsys.readouterr().out.split())
    assert f"Example: bascule-image {command}" in out


def test_without_a_command_the_help_is_shown(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:  # rich-click ends by itself here
        run([])

    assert caught.value.code == 2
    assert "keygen" in capsys.readouterr().out


def test_commands_of_other_rooms_are_found_and_unknown_ones_not(capsys: Capture) -> None:
    assert run(["disk", "--help"]) == 0
    assert "disk" in capsys.readouterr().out


def test_keys_of_both_types_sign_one_payload(tmp_path: Path) -> None:
    (tmp_path / "usr.img").write_bytes(bytes(8192))
    for name, kind in (("a", "rsa"), ("b", "ec")):
        assert run(["keygen", str(tmp_path / name), "--type", kind]) == 0
    keys = [f"--key={tmp_path / name}.key.pem" for name in ("a", "b")]
    payload = str(tmp_path / "v.crau")

    assert (
        run(["build", "--partition", f"usr={tmp_path / 'usr.img'}", "--output", payload, *keys])
        == 0
    )
    for name in ("a", "b"):
        assert run(["verify", payload, "--public-key", f"{tmp_path / name}.pub.pem"]) == 0


def test_format_1_is_built_verified_and_applied(tmp_path: Path, capsys: Capture) -> None:
    usr, kernel = tmp_path / "usr.img", tmp_path / "vmlinuz"
    usr.write_bytes(b"u" * 8192)
    kernel.write_bytes(b"k" * 5001)
    assert run(["keygen", str(tmp_path / "k")]) == 0
    payload = str(tmp_path / "v.crau")
    build = ["build", "--format", "1", "--partition", f"usr={usr}", "--partition",
             f"kernel={kernel}", "--output", payload]  # fmt: skip

    assert run([*build, "--compat", "--key", f"{tmp_path / 'k'}.key.pem"]) == 0
    capsys.readouterr()
    assert run(["inspect", payload, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    outputs = ["--output", f"usr={tmp_path / 'u'}", "--output", f"kernel={tmp_path / 'v'}"]
    assert run(["apply", payload, *outputs, "--public-key", f"{tmp_path / 'k'}.pub.pem"]) == 0

    assert (facts["format"], [part["name"] for part in facts["parts"]]) == (1, ["usr", "kernel"])
    assert (tmp_path / "u").read_bytes() == usr.read_bytes()
    assert (tmp_path / "v").read_bytes() == kernel.read_bytes()


def test_an_elliptic_key_is_refused_for_format_1(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "usr.img").write_bytes(bytes(8192))
    run(["keygen", str(tmp_path / "k"), "--type", "ec"])
    capsys.readouterr()
    build = ["build", "--format", "1", "--partition", f"usr={tmp_path / 'usr.img'}", "--output",
             str(tmp_path / "v"), "--key", f"{tmp_path / 'k'}.key.pem"]  # fmt: skip

    assert run(build) == 1
    assert error_of(capsys)[2] == "key-unsuitable"
    assert not (tmp_path / "v").exists()


def test_with_a_source_a_delta_is_built_and_its_costs_are_told(
    tmp_path: Path, capsys: Capture
) -> None:
    old, new = image(8), image(8)[4096:] + image(1, seed=2)
    (tmp_path / "v1").write_bytes(old)
    (tmp_path / "v2").write_bytes(new)
    payload, source = str(tmp_path / "d.crau"), f"usr={tmp_path / 'v1'}"
    build = ["build", "--partition", f"usr={tmp_path / 'v2'}", "--source", source, "--output"]

    assert run([*build, payload, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert run([*build, payload]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert run(["apply", payload, "--source", source, "--output", f"usr={tmp_path / 'o'}"]) == 0

    assert (facts["kind"], facts["minor"]) == ("delta", 10)
    assert facts["costs"]["REPLACE"] == 4096
    assert facts["costs"]["SOURCE_COPY"] == 0
    assert sum(facts["costs"].values()) == Path(payload).stat().st_size == facts["size"]
    rest = facts["size"] - 4096
    assert lines[-1] == f"costs: REPLACE 4096, manifest and signatures {rest}, SOURCE_COPY 0"
    assert (tmp_path / "o").read_bytes() == new


@pytest.mark.parametrize(
    ("arguments", "status", "code", "words"),
    [
        (["--source", "boot=usr.img"], 1, "source-missing", "part usr has no old image"),
        (["--source", "usr=odd"], 1, "image-size", "odd has 5 bytes"),
        (["--source", "usr=usr.img", "--source", "usr=odd"], 1, "part-unknown", "named twice"),
        (["--source", "usr=usr.img", "--source", "b=odd"], 1, "part-unknown", "source of part 'b'"),
        (["--source", "usr=usr.img", "--format", "1"], 2, "usage", "a delta is of format 2"),
        (["--source", "usr=usr.img", "--compression", "xz"], 2, "usage", "packs each piece"),
        (["--source", "usr=usr.img", "--after", "odd"], 2, "usage", "is for full payloads"),
        (["--source", "usr=usr.img", "--level", "12"], 2, "usage", "--level is of zstd in full"),
        (["--compat", "--level", "12"], 2, "usage", "--level is of zstd in full"),
        (["--format", "1", "--level", "12"], 2, "usage", "--level is of zstd in full"),
        (["--compression", "xz", "--level", "12"], 2, "usage", "--level is of zstd in full"),
        (["--source", "usr"], 2, "usage", "NAME=FILE"),
    ],
)
def test_a_delta_that_cannot_be_built_says_why(
    arguments: list[str],
    status: int,
    code: str,
    words: str,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("usr.img").write_bytes(bytes(8192))
    Path("odd").write_bytes(b"12345")

    assert run([*BUILD, *arguments]) == status
    found = error_of(capsys)
    assert words in found[0]
    assert found[2] == code
    assert not Path("v.crau").exists()


@pytest.mark.usefixtures("folder")
def test_inspect_shows_what_nodes_at_earlier_versions_need(capsys: Capture) -> None:
    """Of the youngest of three versions: the bytes of each age, oldest first."""
    old = Path("usr.img").read_bytes()
    for number, content in enumerate((old, image(20, 2) + old, image(8, 3) + image(20, 2) + old)):
        Path("image").write_bytes(content)
        after = [f"--after=v{earlier}.crau" for earlier in reversed(range(number))]
        build = ["build", "--partition", "usr=image", "--output", f"v{number}.crau", "--json"]
        capsys.readouterr()
        assert run([*build, *after]) == 0
    built = json.loads(capsys.readouterr().out)
    assert run(["inspect", "v2.crau", "--json"]) == 0
    part = json.loads(capsys.readouterr().out)["parts"][0]
    assert built["parts"] == [part]
    assert len(part["ages"]) == 3
    assert sum(part["ages"]) == part["data_bytes"]
    assert all(part["ages"])
    assert run(["inspect", "v2.crau"]) == 0
    ages = ", ".join(map(str, part["ages"]))
    assert f"bytes by age, oldest first: {ages}; index: {part['index_bytes']} bytes" in (
        capsys.readouterr().out
    )


@pytest.mark.usefixtures("folder")
def test_a_level_is_a_size(capsys: Capture) -> None:
    text = b"".join(b"%d green bottles, %d\n" % (n * 7919 % 1009, n * n) for n in range(80_000))
    Path("text").write_bytes(text[: len(text) // 4096 * 4096])
    sizes = []
    for options in ([], ["--level", "19"], ["--level", "1"]):
        build = ["build", "--partition", "usr=text", "--output", "v.crau", "--json"]
        capsys.readouterr()
        assert run([*build, *options]) == 0
        sizes.append(json.loads(capsys.readouterr().out)["size"])
    assert sizes[0] == sizes[1] < sizes[2]
