"""A bitcoind for regtest: the one on PATH, else Debian's ``bitcoin-knots`` of a newer suite, kept in a cache.

The cached one comes with the C library and loader of its own suite and is run through small wrapper scripts, so it
works on an older Debian and changes nothing on it. ``python -m wattline.regtest.bitcoind`` provides it and prints its
path.
"""

from __future__ import annotations

import os
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from wattline.core.errors import RetryError, StopError, WattlineError
from wattline.core.ownership import check_folder
from wattline.regtest.archive import Suite, distribution_sources, unpack
from wattline.regtest.cache import cache_directory, exclusive

PACKAGE = "bitcoin-knots"
SUITES = ("testing", "unstable", "stable")
"""Tried in this order: the names stay valid when Debian releases, and the package is in testing."""
PROGRAMS = ("bitcoind", "bitcoin-cli")
_PT_INTERP = 3


@dataclass(frozen=True, slots=True)
class BitcoindPrograms:
    """The two programs that lightningd and the harness need."""

    daemon: Path
    cli: Path

    def __post_init__(self) -> None:
        for program in (self.daemon, self.cli):
            if not os.access(program, os.X_OK):
                raise StopError("bitcoind_missing", f"{program}: not a program that can be run")

    @property
    def directory(self) -> Path:
        """What to put on PATH so that lightningd's ``bcli`` finds ``bitcoin-cli``."""
        return self.cli.parent


def installed_bitcoind() -> BitcoindPrograms | None:
    """What is on PATH, else what an earlier run left in the cache, else None. Reads only."""
    daemon, cli = (shutil.which(name) for name in PROGRAMS)
    if daemon is not None and cli is not None:
        return BitcoindPrograms(Path(daemon).absolute(), Path(cli).absolute())
    return _cached(cache_directory() / "bitcoind")


def find_bitcoind() -> BitcoindPrograms:
    """A bitcoind that runs here; fetched into the cache when there is none (about 20 MB, once).

    Raises RetryError when the archive does not answer, StopError when this system cannot provide one.
    """
    found = installed_bitcoind()
    if found is not None:
        return found
    cache = cache_directory()
    with exclusive(cache, "bitcoind"):
        return _cached(cache / "bitcoind") or _provide(cache)


def _cached(home: Path) -> BitcoindPrograms | None:
    try:
        check_folder(home.parent)
    except OSError:
        # There is none, or anybody may have put there what would be run.
        return None
    daemon, cli = (home / "bin" / name for name in PROGRAMS)
    return BitcoindPrograms(daemon, cli) if daemon.exists() and cli.exists() else None


def _provide(cache: Path) -> BitcoindPrograms:
    """Fetch, unpack and try in a temporary directory beside the final one, then rename: never half a bitcoind."""
    with tempfile.TemporaryDirectory(prefix="bitcoind-", dir=cache) as name:
        work = Path(name)
        home = work / "home"
        suite, packages = _fetch(work)
        unpack(packages, home / "root")
        _write_wrappers(home)
        version = _try(home)
        names = "\n".join(package.name for package in packages)
        (home / "PROVENANCE").write_text(
            f"{version}\nfrom Debian {suite}, verified by apt:\n{names}\n", encoding="utf-8"
        )
        final = cache / "bitcoind"
        if final.exists():
            shutil.rmtree(final)
        home.rename(final)
    return BitcoindPrograms(final / "bin" / "bitcoind", final / "bin" / "bitcoin-cli")


def _fetch(work: Path) -> tuple[str, list[Path]]:
    """The package and its libraries from the first trusted suite that offers it; the suite's name and the files."""
    reasons: list[str] = []
    passing: RetryError | None = None
    for source in distribution_sources():
        for name in SUITES:
            state = work / "apt"
            try:
                suite = Suite(source, name, state)
                suite.refresh()
                return name, suite.download(suite.closure(PACKAGE), work / "packages")
            except StopError as error:
                reasons.append(error.message)
            except RetryError as error:
                passing = error
                reasons.append(error.message)
            finally:
                shutil.rmtree(state, ignore_errors=True)
    hint = "no bitcoind on PATH and none can be fetched; install Bitcoin Core or Knots. " + "; ".join(reasons)
    if passing is not None:
        raise RetryError("bitcoind_unreachable", hint) from passing
    raise StopError("bitcoind_unavailable", hint)


def _write_wrappers(home: Path) -> None:
    """Scripts that run each program with the loader and libraries that came with it, wherever ``home`` is moved to."""
    root = home / "root"
    (home / "bin").mkdir()
    libraries = sorted({path.parent.relative_to(home).as_posix() for path in (root / "usr" / "lib").rglob("*.so.*")})
    search = ":".join(f'"$home"/{shlex.quote(path)}' for path in libraries)
    for name in PROGRAMS:
        program = root / "usr" / "bin" / name
        if not program.is_file():
            raise StopError("package_changed", f"Debian's {PACKAGE} has no usr/bin/{name}")
        wanted = _loader_name(program)
        loaders = [path for path in root.rglob(wanted) if path.is_file()]
        if not loaders:
            raise StopError("package_changed", f"the packages hold no loader {wanted} for {name}")
        loader = loaders[0].relative_to(home).as_posix()
        script = home / "bin" / name
        script.write_text(
            "#!/bin/sh\n"
            # lightningd runs bitcoin-cli several times a second: no process is started unless $0 is a link.
            'self=$0; [ ! -L "$self" ] || self=$(readlink -f "$self")\n'
            "home=${self%/*}/..\n"
            f'exec "$home"/{shlex.quote(loader)} --library-path {search} --argv0 {name} '
            f'"$home"/{shlex.quote(program.relative_to(home).as_posix())} "$@"\n',
            encoding="ascii",
        )
        script.chmod(0o755)


def _loader_name(program: Path) -> str:
    """The file name of the program's interpreter (ELF specification, PT_INTERP), such as ``ld-linux-x86-64.so.2``."""
    data = program.read_bytes()
    if data[:4] != b"\x7fELF" or data[5] != 1:
        raise StopError("package_changed", f"{program.name} is not a little-endian ELF program")
    wide = data[4] == 2
    table, entry, count = (32, 54, 56) if wide else (28, 42, 44)
    (start,) = struct.unpack_from("<Q" if wide else "<I", data, table)
    (size,) = struct.unpack_from("<H", data, entry)
    (entries,) = struct.unpack_from("<H", data, count)
    for index in range(entries):
        header = start + index * size
        if struct.unpack_from("<I", data, header)[0] != _PT_INTERP:
            continue
        (offset,) = struct.unpack_from("<Q" if wide else "<I", data, header + (8 if wide else 4))
        (length,) = struct.unpack_from("<Q" if wide else "<I", data, header + (32 if wide else 16))
        return Path(data[offset : offset + length].rstrip(b"\0").decode("ascii")).name
    raise StopError("package_changed", f"{program.name} names no loader")


def _try(home: Path) -> str:
    """The first line of ``bitcoind -version``; proves that loader, libraries and kernel fit. Raises StopError."""
    first = ""
    # Knots makes its data directory even to print its version; without this it would be the person's ~/.bitcoin.
    with tempfile.TemporaryDirectory(prefix="version-", dir=home.parent) as data:
        for name in reversed(PROGRAMS):
            command = [str(home / "bin" / name), f"-datadir={data}", "-version"]
            result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            if result.returncode != 0:
                reason = result.stderr.strip()[:400]
                raise StopError("bitcoind_unusable", f"the fetched {name} does not run here: {reason}")
            first = result.stdout.splitlines()[0]
    return first


def main() -> int:
    """Print the path of bitcoind; exit status 0, or 1 with the reason on stderr."""
    try:
        sys.stdout.write(f"{find_bitcoind().daemon}\n")
    except WattlineError as error:
        sys.stderr.write(f"{error.code}: {error.message}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
