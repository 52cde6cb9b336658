"""Debian's packages: which versions are in an archive, and which are wanted."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from images.errors import FileUnreadableError, PackagesDifferError
from images.reference.packages import (
    Wanted,
    check_versions,
    fetch,
    preferences,
    read_status,
    versions_in,
)

STATUS = """\
Package: systemd
Status: install ok installed
Version: 252.39-1~deb12u1
Description: system and service manager
 Version: of nothing, this is text

Package: tzdata
Version: 2026b-0+deb12u1
"""


def archive(path: Path, files: dict[str, str]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


def packages(path: Path) -> Path:
    kernel = "linux-image-6.1.0-56-cloud-amd64 6.1.192-2\n"
    return archive(path, {"./var/lib/dpkg/status": STATUS, "./kernel/package": kernel})


def test_dpkg_names_the_version_of_each_package() -> None:
    assert read_status(STATUS) == {"systemd": "252.39-1~deb12u1", "tzdata": "2026b-0+deb12u1"}


def test_the_kernel_counts_as_a_package_though_it_is_not_installed(tmp_path: Path) -> None:
    versions = versions_in(packages(tmp_path / "packages.tar"))
    assert versions["linux-image-6.1.0-56-cloud-amd64"] == "6.1.192-2"
    assert versions["systemd"] == "252.39-1~deb12u1"


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileUnreadableError, match="names no packages"):
        versions_in(archive(tmp_path / "other.tar", {"./a": "b"}))


def test_another_version_is_refused_and_named() -> None:
    with pytest.raises(PackagesDifferError, match=r"systemd is 252\.39, wanted 252\.38"):
        check_versions({"systemd": "252.39"}, {"systemd": "252.38"})


def test_a_package_too_many_or_too_few_is_refused() -> None:
    with pytest.raises(PackagesDifferError, match="more is 1, wanted absent"):
        check_versions({"systemd": "252", "more": "1"}, {"systemd": "252"})
    with pytest.raises(PackagesDifferError, match="less is absent, wanted 1"):
        check_versions({"systemd": "252"}, {"systemd": "252", "less": "1"})


def test_a_cached_archive_is_checked_against_the_versions_wanted(tmp_path: Path) -> None:
    wanted = Wanted(mirror="", versions={"systemd": "251"})
    packages(tmp_path / f"packages-{wanted.key}.tar")
    with pytest.raises(PackagesDifferError, match="systemd"):
        fetch(wanted, tmp_path)


def test_the_cache_tells_what_was_asked_for_apart() -> None:
    asked = [
        Wanted(mirror="", versions={}),
        Wanted(mirror="http://snapshot.example/", versions={}),
        Wanted(mirror="", versions={"systemd": "252"}),
        Wanted(mirror="", versions={"systemd": "253"}),
    ]
    assert len({wanted.key for wanted in asked}) == len(asked)
    assert asked[0].key == Wanted(mirror="", versions={}).key


def test_pins_name_each_package_with_its_one_version() -> None:
    assert preferences({"udev": "252", "dbus": "1.14"}) == (
        "Package: dbus\nPin: version 1.14\nPin-Priority: 1001\n\n"
        "Package: udev\nPin: version 252\nPin-Priority: 1001\n"
    )
