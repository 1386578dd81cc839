"""Where a store lies, a directory or a prefix of an object store, and the few things that are done there."""

import os
import re
import shutil
from abc import ABC, abstractmethod
from pathlib import Path, PurePosixPath
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from atoms.activations.files import PARTIAL, free_bytes, write_file
from atoms.errors import AtomsError

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SCHEMES = ("s3", "gs", "http", "https")


class Location(ABC):
    """A place that holds bytes, or has places below it. Its text is what the user wrote."""

    remote: bool
    """Whether every access costs a round trip."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Location) and self.absolute == other.absolute

    def __hash__(self) -> int:
        return hash(self.absolute)

    @property
    @abstractmethod
    def name(self) -> str:
        """Last part of the path."""

    @property
    @abstractmethod
    def absolute(self) -> str:
        """What finds this place from any directory."""

    @property
    def writable(self) -> bool:
        """Whether anything can be written here at all."""
        return True

    def require_writable(self) -> None:
        """Refuse a place that can only be read.

        Raises:
            AtomsError: It is one.
        """
        if not self.writable:
            raise AtomsError(
                f"data.store={self}: plain HTTP can only be read; write to a directory, s3:// or gs:// and publish that"
            )

    @abstractmethod
    def __truediv__(self, path: str) -> Self:
        """A place below this one."""

    @abstractmethod
    def beside(self, suffix: str) -> Self:
        """The place whose name is this one's and ``suffix``."""

    @abstractmethod
    def read(self) -> bytes:
        """All bytes.

        Raises:
            FileNotFoundError: There is no such file.
        """

    @abstractmethod
    def read_into(self, offset: int, *buffers: memoryview) -> bool:
        """Fill buffers one after the other with what lies from ``offset`` on; False if the file ends before.

        Raises:
            FileNotFoundError: There is no such file.
        """

    @abstractmethod
    def size(self) -> int:
        """Number of bytes.

        Raises:
            FileNotFoundError: There is no such file.
        """

    @abstractmethod
    def exists(self) -> bool:
        """Whether there is a file here, or anything below."""

    @abstractmethod
    def stamp(self) -> tuple[bytes, float, Any]:
        """All bytes, the unix time at which they were written, and what :meth:`refresh` wants to know.

        Raises:
            FileNotFoundError: There is no such file.
        """

    @abstractmethod
    def files(self, limit: int | None = None) -> dict[str, int] | None:
        """Relative paths and sizes of all files below (about ``limit`` of them); None where they cannot be listed."""

    @abstractmethod
    def children(self) -> tuple[list[str], list[str]]:
        """Names of the folders and of the files directly below, sorted.

        Raises:
            AtomsError: They cannot be listed.
        """

    @abstractmethod
    def write(self, content: Any) -> None:
        """Write a file (anything with the buffer protocol), which appears or changes as a whole, and to stay."""

    @abstractmethod
    def create(self, content: bytes) -> bool:
        """Write a file that must not exist yet; False if it does."""

    @abstractmethod
    def refresh(self, content: bytes, version: Any) -> None:
        """Give the file a new time if it still is as :meth:`stamp` found it."""

    @abstractmethod
    def delete(self) -> None:
        """Remove the file, if it is there."""

    def free(self) -> int | None:
        """Bytes that can still be written here; None where nobody knows."""
        return None


class LocalLocation(Location, os.PathLike[str]):
    """A file or directory of this machine.

    Args:
        path: Where.
        text: What the user wrote, if that is not the path.
    """

    remote = False

    def __init__(self, path: Path, text: str | None = None) -> None:
        super().__init__(str(path) if text is None else text)
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:  # noqa: D102
        return self.path.name

    @property
    def absolute(self) -> str:  # noqa: D102
        return str(self.path.resolve())

    def __truediv__(self, path: str) -> Self:
        return type(self)(self.path / path, f"{self}/{path}")

    def beside(self, suffix: str) -> Self:  # noqa: D102
        return type(self)(self.path.with_name(self.path.name + suffix), f"{self}{suffix}")

    def read(self) -> bytes:  # noqa: D102
        return self.path.read_bytes()

    def read_into(self, offset: int, *buffers: memoryview) -> bool:  # noqa: D102
        with self.path.open("rb", buffering=0) as file:
            file.seek(offset)
            for buffer in buffers:
                done = 0
                while done < len(buffer):  # one read may return less than asked
                    count = file.readinto(buffer[done:])
                    if not count:
                        return False
                    done += count
        return True

    def size(self) -> int:  # noqa: D102
        return self.path.stat().st_size

    def exists(self) -> bool:  # noqa: D102
        return self.path.exists()

    def stamp(self) -> tuple[bytes, float, Any]:  # noqa: D102
        modified = self.path.stat().st_mtime
        return self.path.read_bytes(), modified, None

    def files(self, limit: int | None = None) -> dict[str, int] | None:  # noqa: D102
        found: dict[str, int] = {}
        for folder, _, names in os.walk(self.path):
            for name in names:
                if limit is not None and len(found) >= limit:
                    return found
                file = Path(folder, name)
                try:
                    found[file.relative_to(self.path).as_posix()] = file.stat().st_size
                except FileNotFoundError:  # gone since it was listed, or a link to nowhere
                    continue
        return found

    def children(self) -> tuple[list[str], list[str]]:  # noqa: D102
        try:
            entries = sorted(os.scandir(self.path), key=lambda entry: entry.name)
        except OSError as error:
            raise AtomsError(f"{self} cannot be listed ({error.strerror}): name a directory") from error
        folders = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        return folders, [entry.name for entry in entries if entry.is_file()]

    def write(self, content: Any) -> None:  # noqa: D102
        write_file(self.path, content)

    def create(self, content: bytes) -> bool:  # noqa: D102
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
        except OSError:  # a full disk; an empty lock would keep everybody out for a minute
            self.path.unlink(missing_ok=True)
            raise
        return True

    def refresh(self, content: bytes, version: Any) -> None:  # noqa: D102
        os.utime(self.path)

    def delete(self) -> None:  # noqa: D102
        self.path.unlink(missing_ok=True)

    def free(self) -> int | None:  # noqa: D102
        return free_bytes(self.path)

    def sweep(self) -> None:
        """Remove what a kill left unfinished below and beside this directory."""
        for partial in self.path.rglob(f"*{PARTIAL}"):
            partial.unlink(missing_ok=True)
        for left in self.path.parent.glob(f"{self.path.name}.*{PARTIAL}"):
            if left.is_dir():
                shutil.rmtree(left)


Where = str | os.PathLike[str] | Location
"""How a user or a caller may name a place."""


def locate(where: Where) -> Location:
    """Understand a path or a URL: ``s3://bucket/prefix``, ``gs://…``, ``http(s)://…``, ``file://…``.

    Credentials, endpoint and region come from the environment, never from the URL.

    Raises:
        AtomsError: The URL has a scheme or parts that are not understood.
    """
    if isinstance(where, Location):
        return where
    text = os.fspath(where)
    found = _URL.match(text)
    if found is None:
        if re.match(r"(s3|gs|https?|file):", text):
            raise AtomsError(f"data.store={text}: a URL needs two slashes after the colon; add them")
        return LocalLocation(Path(text))
    scheme = found[1].lower()
    if scheme not in (*_SCHEMES, "file"):
        raise AtomsError(
            f"data.store={scheme}://…: unknown kind of store; use a path, file://, s3://, gs://, http:// or https://"
        )
    parts = urlsplit(text)
    shown = f"{scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise AtomsError(
            f"data.store={shown}: the URL carries more than a place (a password, ? or #); give credentials and "
            "endpoints in the environment, see docs/stores.md"
        )
    if scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise AtomsError(f"data.store={text}: a file URL names an absolute path of this machine, file:///path")
        return LocalLocation(Path(unquote(parts.path)), text.rstrip("/"))
    if not parts.netloc:
        raise AtomsError(f"data.store={text}: names no {'bucket' if scheme in ('s3', 'gs') else 'host'}; add it")
    from atoms.activations.object_location import ObjectLocation  # the library is an extra

    key = PurePosixPath(parts.path.lstrip("/")).as_posix()
    return ObjectLocation.at(f"{scheme}://{parts.netloc}", "" if key == "." else key, text.rstrip("/"))
