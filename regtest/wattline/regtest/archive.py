"""Packages of a newer Debian suite, unpacked into a directory without installing anything.

The system's own apt does the work with private lists and caches: it takes the archive's address, proxy and keyring from
the system's configuration and checks the signature of the suite's index, the index's hash and every package's hash.
Nothing outside the given directory is written, and the system's package lists are not touched.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wattline.core.errors import RetryError, StopError, WattlineError

DOWNLOAD_TIMEOUT_S = 600
_RELEASE_NAMES = frozenset({"stable", "testing", "unstable", "sid"})
# Hooks of the host (refreshing desktop catalogues, cleaning the system's cache) have no business with private lists.
_HOOKS = re.compile(r"^(APT::Update::(Pre|Post)|DPkg::(Pre|Post)|AptCli::Hooks|Dir\b|RootDir\b)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Source:
    """One archive that the system is configured to trust: where it is and which key signs it."""

    uri: str
    signed_by: str | None
    """Path of a keyring, or an embedded key, as apt's ``Signed-By``; None means apt's global keyrings."""

    def __post_init__(self) -> None:
        if not re.match(r"^[a-z][a-z0-9+.-]*:\S+$", self.uri):
            raise StopError("apt_source_invalid", f"not the address of an archive: {self.uri!r}")

    def stanza(self, suite: str) -> str:
        """This archive's ``suite`` as a deb822 source of which apt fetches the package index only."""
        lines = ["Types: deb", f"URIs: {self.uri}", f"Suites: {suite}", "Components: main", "Targets: Packages"]
        if self.signed_by is not None:
            lines.append("Signed-By: " + self.signed_by.replace("\n", "\n "))
        return "\n".join(lines) + "\n"


class SuiteLacksPackageError(StopError):
    """The suite's verified index does not offer the package."""


def distribution_sources(etc: Path = Path("/etc")) -> list[Source]:
    """The archives from which the running Debian itself comes, in the order in which apt reads them.

    Raises StopError when this is not a Debian or its apt names no such archive.
    """
    release = _os_release(etc / "os-release")
    if release.get("ID") != "debian" or shutil.which("apt-get") is None:
        raise StopError("not_debian", "this system is not a Debian, so no package can be fetched with its apt")
    suites = _RELEASE_NAMES | {release.get("VERSION_CODENAME", "stable")}
    found: list[Source] = []
    for path in [etc / "apt" / "sources.list", *sorted((etc / "apt" / "sources.list.d").glob("*"))]:
        if path.suffix not in {".list", ".sources"} or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        entries = _one_line_entries(text) if path.suffix == ".list" else _deb822_entries(text)
        for uri, entry_suites, components, signed_by in entries:
            source = Source(uri, signed_by)
            if suites & set(entry_suites) and "main" in components and source not in found:
                found.append(source)
    if not found:
        raise StopError("apt_source_missing", f"{etc}/apt names no archive of this Debian's own suite with `main`")
    return found


class Suite:
    """One suite of a trusted archive, seen through the system's apt with private lists under ``state``.

    ``retries`` is how often apt repeats a download that failed, waiting longer each time.
    """

    def __init__(self, source: Source, name: str, state: Path, retries: int = 3) -> None:
        self.name = name
        self._state = state
        for part in ("lists/partial", "cache/archives/partial", "empty"):
            (state / part).mkdir(parents=True, exist_ok=True)
        (state / "archive.sources").write_text(source.stanza(name), encoding="utf-8")
        (state / "apt.conf").write_text(_private_configuration(state, retries), encoding="utf-8")

    def refresh(self) -> None:
        """Fetch and verify the suite's index. Raises RetryError when the archive does not answer, StopError when its
        signature or hashes are not those of the system's keyring."""
        self._apt("apt-get", "update", "-o", "APT::Update::Error-Mode=any")

    def closure(self, package: str) -> list[str]:
        """``package`` and all *libraries* it needs, recursively; its services (systemd, debconf) are left out because
        the programs are only run, not installed. Raises SuiteLacksPackageError."""
        seen: dict[str, None] = {}
        waiting = [package]
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            record = self._record(name)
            if record is None:
                if name == package:
                    raise SuiteLacksPackageError("package_missing", f"Debian's {self.name} offers no package {package}")
                continue
            if name != package and record.get("Section", "") not in {"libs", "oldlibs"}:
                continue
            seen[name] = None
            depends = ",".join(record[key] for key in ("Pre-Depends", "Depends") if key in record)
            for alternatives in filter(None, (part.strip() for part in depends.split(","))):
                waiting.append(re.split(r"[\s(:|]", alternatives, maxsplit=1)[0])
        return list(seen)

    def download(self, packages: Sequence[str], target: Path) -> list[Path]:
        """The verified ``.deb`` files of ``packages``, fetched into ``target``."""
        target.mkdir(parents=True, exist_ok=True)
        self._apt("apt-get", "download", *packages, cwd=target)
        files = sorted(target.glob("*.deb"))
        if len(files) != len(packages):
            raise RetryError("download_incomplete", f"{len(files)} of {len(packages)} packages came from the archive")
        return files

    def _record(self, package: str) -> dict[str, str] | None:
        result = self._run(["apt-cache", "show", "--no-all-versions", package])
        if result.returncode != 0 or not result.stdout.strip():
            return None
        return next(_stanzas(result.stdout))

    def _apt(self, *command: str, cwd: Path | None = None) -> None:
        result = self._run([command[0], "-q", "-y", *command[1:]], cwd)
        if result.returncode != 0:
            raise _apt_error(self.name, result.stderr)

    def _run(self, command: list[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "APT_CONFIG": str(self._state / "apt.conf"), "LC_ALL": "C"}
        try:
            return subprocess.run(
                command,
                cwd=cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=DOWNLOAD_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise RetryError("archive_slow", f"{command[0]} took more than {DOWNLOAD_TIMEOUT_S} s") from error
        except OSError as error:
            raise StopError("apt_missing", f"{command[0]} cannot be run: {error}") from error


def unpack(packages: Sequence[Path], root: Path) -> None:
    """Unpack the files of ``.deb`` packages under ``root``; no script of theirs is run."""
    root.mkdir(parents=True, exist_ok=True)
    for package in packages:
        result = subprocess.run(
            ["dpkg-deb", "-x", str(package), str(root)], capture_output=True, text=True, errors="replace", check=False
        )
        if result.returncode != 0:
            raise StopError("package_broken", f"{package.name} cannot be unpacked: {result.stderr.strip()}")


def _private_configuration(state: Path, retries: int) -> str:
    """The system's apt configuration (proxies, timeouts, certificates) with its directories and hooks replaced."""
    try:
        dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise StopError("apt_missing", f"apt-config cannot be run: {error}") from error
    kept = [line for line in dump.splitlines() if not _HOOKS.match(line)]
    directories: Mapping[str, str] = {
        "Dir::State::lists": f"{state}/lists",
        "Dir::State::status": "/dev/null",
        "Dir::State::extended_states": "/dev/null",
        "Dir::Cache": f"{state}/cache",
        "Dir::Log": f"{state}/cache",
        "Dir::Etc::sourcelist": f"{state}/archive.sources",
        "Dir::Etc::sourceparts": f"{state}/empty",
        "Dir::Etc::main": "/dev/null",
        "Dir::Etc::parts": f"{state}/empty",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": f"{state}/empty",
        # apt drops its rights to a user who cannot write our directory; only indexes and packages are read with it.
        "APT::Sandbox::User": "",
        # What is not signed by a key of the system is refused, whatever the host allows for itself.
        "APT::Get::AllowUnauthenticated": "false",
        "Acquire::AllowInsecureRepositories": "false",
        "Acquire::AllowWeakRepositories": "false",
        "Acquire::Retries": str(retries),
    }
    return "\n".join([*kept, *(f'{key} "{value}";' for key, value in directories.items())]) + "\n"


def _apt_error(suite: str, text: str) -> WattlineError:
    lines = [line for line in text.splitlines() if line.startswith(("E:", "W:"))]
    detail = " ".join(lines)[:600] or "apt gave no reason"
    untrusted = re.search(r"NO_PUBKEY|BADSIG|EXPKEYSIG|not signed|signature|Hash Sum|GPG error|sqv", detail)
    unreachable = re.search(r"resolve|connect|unreachable|timed out|Timeout|Undetermined", detail)
    if untrusted and not unreachable:
        return StopError(
            "archive_untrusted", f"Debian's {suite} could not be verified with the system's keys: {detail}"
        )
    if re.search(r"404|does not have a Release file", detail):
        return SuiteLacksPackageError("suite_missing", f"the archive has no suite {suite}: {detail}")
    return RetryError("archive_unreachable", f"Debian's archive did not deliver {suite}: {detail}")


def _os_release(path: Path) -> dict[str, str]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip().strip("\"'") for key, _, value in pairs}


def _stanzas(text: str) -> Iterator[dict[str, str]]:
    """The paragraphs of a deb822 text; continuation lines keep their line breaks."""
    for block in re.split(r"\n[ \t]*\n", text):
        fields: dict[str, str] = {}
        key = ""
        for line in block.splitlines():
            if line.startswith("#"):
                continue
            if line[:1] in {" ", "\t"} and key:
                fields[key] += "\n" + line.strip()
            elif ":" in line:
                key, _, value = line.partition(":")
                fields[key] = value.strip()
        if fields:
            yield fields


def _deb822_entries(text: str) -> Iterator[tuple[str, list[str], list[str], str | None]]:
    for fields in _stanzas(text):
        if "deb" not in fields.get("Types", "").split() or fields.get("Enabled", "yes").lower() in {"no", "false"}:
            continue
        for uri in fields.get("URIs", "").split():
            yield uri, fields.get("Suites", "").split(), fields.get("Components", "").split(), fields.get("Signed-By")


def _one_line_entries(text: str) -> Iterator[tuple[str, list[str], list[str], str | None]]:
    for line in text.splitlines():
        match = re.match(r"^\s*deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+([^#]+)", line)
        if match is None:
            continue
        options = dict(option.split("=", 1) for option in (match[1] or "").split() if "=" in option)
        yield match[2], [match[3]], match[4].split(), options.get("signed-by")
