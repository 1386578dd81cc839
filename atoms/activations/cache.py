"""A bounded cache on the local disk for what was read from afar."""

import contextlib
import hashlib
import os
import sys
import threading
from pathlib import Path
from typing import Any
from uuid import uuid4

from atoms.activations.files import PARTIAL
from atoms.errors import AtomsError

GIB = 2**30
_SLACK = 32  # the limit may be passed by a 32nd of it before old entries are looked for


def default_folder() -> Path:
    """``$ATOMS_CACHE``, else ``atoms`` in the user's cache directory."""
    if set_by_user := os.environ.get("ATOMS_CACHE"):
        return Path(set_by_user)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "atoms"


class ChunkCache:
    """Files named by a digest of what they hold a part of; the least recently used go first.

    Entries appear whole, and any number of processes may share a folder. What comes out is not checked here: the
    reader holds it against its checksums, and fetches anew what does not fit.

    Args:
        folder: Where the files lie; made when the first is kept.
        limit_bytes: Most bytes kept.

    Raises:
        AtomsError: The limit is not positive.
    """

    def __init__(self, folder: str | os.PathLike[str], limit_bytes: int) -> None:
        if limit_bytes < 1:
            raise AtomsError(f"data.cache_gib leaves {limit_bytes} bytes: give more, or 0 for no cache")
        self.folder, self.limit = Path(folder) / "chunks", limit_bytes
        self._lock = threading.Lock()
        self._unseen = limit_bytes  # bytes added since the folder was last looked through; at first it never was
        self._broken = False

    def read_into(self, key: str, offset: int, *buffers: memoryview) -> bool:
        """Fill buffers with what lies at ``offset`` of an entry; False if there is none, or it is too short."""
        path = self._path(key)
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(offset)
                for buffer in buffers:
                    done = 0
                    while done < len(buffer):
                        count = file.readinto(buffer[done:])
                        if not count:
                            return False
                        done += count
            os.utime(path)  # used just now
        except OSError:  # none, or swept away by another process meanwhile
            return False
        return True

    def keep(self, key: str, content: Any) -> None:
        """Keep an entry; a disk that is full or cannot be written only costs the cache."""
        if self._broken:
            return
        path = self._path(key)
        partial = path.with_name(f"{path.name}.{uuid4().hex}{PARTIAL}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._make_room(len(content))
            partial.write_bytes(content)
            os.replace(partial, path)
        except OSError as error:
            self._broken = True
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            print(
                f"note     data.cache_dir {self.folder.parent} cannot be written ({error.strerror}): "
                "chunks are fetched again every time",
                file=sys.stderr,
            )

    def _path(self, key: str) -> Path:
        digest = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / digest[:2] / digest

    def _make_room(self, size: int) -> None:
        """Delete the least recently used until ``size`` more fit; looks through the folder only now and then."""
        with self._lock:
            self._unseen += size
            if self._unseen < self.limit // _SLACK:
                return
            self._unseen = size
            entries = []
            for folder, _, names in os.walk(self.folder):
                for name in names:
                    with contextlib.suppress(OSError):
                        stat = os.stat(os.path.join(folder, name))
                        entries.append((stat.st_mtime, stat.st_size, os.path.join(folder, name)))
            held = sum(entry[1] for entry in entries)
            room = self.limit - self.limit // _SLACK - size
            for _, taken, name in sorted(entries):
                if held <= room:
                    break
                with contextlib.suppress(OSError):
                    os.unlink(name)
                    held -= taken
