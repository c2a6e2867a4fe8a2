"""Debian's archive through a private apt: lists and packages go into a temporary folder; no root, nothing installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llama_scale.errors import DataError

_HELPER = Path("/usr/lib/apt/apt-helper")
_DEBIAN_SOURCES = Path("/etc/apt/sources.list.d/debian.sources")
_TIMEOUT_S = 300
_FIELD = re.compile(r"^Description-[A-Za-z_@]+: (.*)((?:\n .*)*)", re.MULTILINE)
_NAMED = re.compile(r"^(Package|Source|Section|Description-md5): (\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """A package's description in one language.

    Args:
        package: Name of the package.
        md5: Digest of the English description, which its translations share.
        synopsis: One line.
        lines: The long description as it is folded in the file.
    """

    package: str
    md5: str
    synopsis: str
    lines: tuple[str, ...]


class Apt:
    """A private apt in a folder; see :func:`private_apt`."""

    def __init__(self, folder: Path, config: Path) -> None:
        self._folder = folder
        self._config = config

    def update(self) -> str:
        """Fetch the archive's lists and return what apt said."""
        return _run("apt-get", "-q", "-c", str(self._config), "update")

    def descriptions(self, language: str) -> list[Description]:
        """Return the packages' descriptions in a language, in the order of the archive; none if it has no list."""
        found = []
        for text in self._texts(f"*_Translation-{language.replace('_', '%5f')}"):
            for block in text.split("\n\n"):
                description, named = _FIELD.search(block), dict(_NAMED.findall(block))
                if description and "Package" in named:
                    found.append(
                        Description(
                            package=named["Package"],
                            md5=named.get("Description-md5", ""),
                            synopsis=description[1].strip(),
                            lines=tuple(description[2].split("\n")[1:]),
                        )
                    )
        return found

    def packages(self) -> dict[str, tuple[str, str]]:
        """Return package -> (source package, section)."""
        found: dict[str, tuple[str, str]] = {}
        for text in self._texts("*_Packages"):
            for block in text.split("\n\n"):
                named: dict[str, str] = dict(_NAMED.findall(block))
                if "Package" in named:
                    name = named["Package"]
                    found.setdefault(name, (named.get("Source", name), named.get("Section", "")))
        return found

    def unpack(self, package: str) -> Path:
        """Fetch a package and return the folder that its files are unpacked into.

        Raises:
            DataError: There is no such package, or no network.
        """
        place = self._folder / "packages" / package
        place.mkdir(parents=True)
        _run("apt-get", "-q", "-c", str(self._config), "download", package, folder=place)
        files = sorted(place.glob("*.deb"))
        if not files:
            raise DataError(f"apt fetched no file of the package {package}")
        _run("dpkg-deb", "-x", str(files[0]), str(place / "files"))
        return place / "files"

    def _texts(self, pattern: str) -> Iterator[str]:
        # A list may be packed; its name then ends in .lz4, .xz, ...
        for path in sorted({*self._lists.glob(pattern), *self._lists.glob(f"{pattern}.*")}):
            yield _run(str(_HELPER), "cat-file", str(path))

    @property
    def _lists(self) -> Path:
        return self._folder / "lists"


@contextmanager
def private_apt(languages: Sequence[str] = ("en",)) -> Iterator[Apt]:
    """Make an apt of one's own with fresh lists, and remove it at the end.

    Args:
        languages: Languages of descriptions to fetch, by their names in the archive, e.g. ``de`` or ``pt_BR``.

    Raises:
        DataError: There is no apt, or no network.
    """
    if shutil.which("apt-get") is None or not _HELPER.exists():
        raise DataError("this recipe needs apt-get, which only Debian and its relatives have; give text by --input")
    with tempfile.TemporaryDirectory(prefix="llama-scale-apt-") as name:
        folder = Path(name)
        (folder / "lists" / "partial").mkdir(parents=True)
        (folder / "cache" / "archives" / "partial").mkdir(parents=True)
        config = folder / "apt.conf"
        config.write_text("\n".join(_configuration(folder, languages)) + "\n")
        apt = Apt(folder, config)
        said = apt.update()
        if not any(path.is_file() for path in (folder / "lists").glob("*_*")):
            # apt-get update succeeds without a network: it warns and keeps old lists, and here there are none.
            raise DataError(f"apt could not fetch package descriptions; is there a network? It said: {said[-500:]}")
        yield apt


def _configuration(folder: Path, languages: Sequence[str]) -> list[str]:
    lines = [
        "#clear Acquire::Languages;",  # an image may have set it to "none", and later entries would be ignored
        "Acquire::Languages { " + " ".join(f'"{language}";' for language in languages) + " };",
        f'Dir::State::lists "{folder}/lists";',
        f'Dir::Cache "{folder}/cache";',
        'Debug::NoLocking "true";',
        'APT::Sandbox::User "";',  # the temporary folder belongs to the caller alone
        'Acquire::Retries "2";',
        'Acquire::http::Timeout "20";',
    ]
    if _DEBIAN_SOURCES.exists():  # leave third parties' archives out
        lines += [f'Dir::Etc::sourcelist "{_DEBIAN_SOURCES}";', 'Dir::Etc::sourceparts "/dev/null";']
    return lines


def _run(*command: str, folder: Path | None = None) -> str:
    """Run a command and return its stdout (its stderr if it said nothing there)."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=_TIMEOUT_S, env=environment, check=False, cwd=folder
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{' '.join(command[:1])} took longer than {_TIMEOUT_S} s; is the network slow?") from error
    except OSError as error:
        raise DataError(f"cannot start {command[0]}: {error.strerror}") from error
    output, talk = done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
    if done.returncode != 0:
        raise DataError(f"{command[0]} failed with status {done.returncode}: {' '.join(talk.split())[-500:]}")
    return output or talk
