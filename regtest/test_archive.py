"""How a bitcoind is fetched: whose archive is asked, and what is refused. No network, no lightningd."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from wattline.core.errors import RetryError, StopError
from wattline.regtest.archive import Source, Suite, SuiteLacksPackageError, distribution_sources
from wattline.regtest.cache import cache_directory, exclusive

OS_RELEASE = 'ID=debian\nVERSION_CODENAME=bookworm\nNAME="Debian GNU/Linux"\n'

needs_apt = pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt: not a Debian")


def etc(tmp_path: Path, os_release: str = OS_RELEASE, **files: str) -> Path:
    parts = tmp_path / "apt" / "sources.list.d"
    parts.mkdir(parents=True)
    (tmp_path / "os-release").write_text(os_release)
    for name, text in files.items():
        (parts / name.replace("_", ".")).write_text(text)
    return tmp_path


@needs_apt
def test_the_archive_of_the_own_suite_is_found_in_deb822_sources(tmp_path: Path) -> None:
    text = """# the main one
Types: deb deb-src
URIs: http://archive.test/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /keys/debian.gpg

Types: deb
URIs: http://archive.test/security
Suites: bookworm-security
Components: main

Enabled: no
Types: deb
URIs: http://off.test/debian
Suites: bookworm
Components: main
"""
    found = distribution_sources(etc(tmp_path, debian_sources=text))
    assert found == [Source("http://archive.test/debian", "/keys/debian.gpg")]


@needs_apt
def test_the_archive_of_the_own_suite_is_found_in_one_line_sources(tmp_path: Path) -> None:
    text = """deb [arch=amd64] http://other.test/apt vendor main
# deb http://commented.test/debian bookworm main
deb [arch=amd64 signed-by=/keys/debian.gpg] http://archive.test/debian bookworm main contrib # comment
deb-src http://source.test/debian bookworm main
"""
    found = distribution_sources(etc(tmp_path, debian_list=text, ignored_disabled="deb http://x.test/ bookworm main"))
    assert found == [Source("http://archive.test/debian", "/keys/debian.gpg")]


@needs_apt
def test_an_apt_without_an_archive_of_the_own_suite_is_named_as_the_reason(tmp_path: Path) -> None:
    with pytest.raises(StopError, match="names no archive"):
        distribution_sources(etc(tmp_path, vendor_list="deb http://other.test/apt vendor main\n"))


def test_a_system_that_is_not_debian_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StopError, match="not a Debian"):
        distribution_sources(etc(tmp_path, os_release="ID=fedora\n"))


@pytest.fixture
def local_archive(tmp_path: Path) -> Path:
    """An archive on disk with an index that nobody signed."""
    suite = tmp_path / "archive" / "dists" / "testing"
    index = suite / "main" / f"binary-{architecture()}"
    index.mkdir(parents=True)
    (index / "Packages").write_text("")
    (suite / "Release").write_text("Origin: Debian\nSuite: testing\nComponents: main\n")
    return tmp_path / "archive"


def architecture() -> str:
    if shutil.which("dpkg") is None:
        return "amd64"
    return subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout.strip()


@needs_apt
def test_an_index_that_nobody_signed_is_refused(local_archive: Path, tmp_path: Path) -> None:
    suite = Suite(Source(f"file:{local_archive}", None), "testing", tmp_path / "state")
    with pytest.raises(StopError) as caught:
        suite.refresh()
    assert caught.value.code == "archive_untrusted"


@needs_apt
def test_a_suite_that_the_archive_does_not_have_is_told_apart(local_archive: Path, tmp_path: Path) -> None:
    with pytest.raises(SuiteLacksPackageError, match="no suite nosuch"):
        Suite(Source(f"file:{local_archive}", None), "nosuch", tmp_path / "state").refresh()


@needs_apt
def test_an_archive_that_does_not_answer_may_be_tried_again(tmp_path: Path) -> None:
    suite = Suite(Source("http://127.0.0.1:9/debian", None), "testing", tmp_path / "state", retries=0)
    with pytest.raises(RetryError, match="did not deliver"):
        suite.refresh()


def test_an_address_that_could_smuggle_in_other_fields_is_refused() -> None:
    with pytest.raises(StopError, match="not the address"):
        Source("http://archive.test/debian\nTrusted: yes", None)


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WATTLINE_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path


def test_a_checkout_keeps_its_cache_inside_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATTLINE_CACHE", raising=False)
    root = Path(__file__).resolve().parents[1]
    assert cache_directory() == root / ".cache" / "wattline"


def test_a_cache_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StopError, match="WATTLINE_CACHE"), exclusive(tmp_path / "file" / "cache", "bitcoind"):
        pass
