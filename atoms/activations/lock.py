"""One writer per store: an exclusive lock that outlives neither its process nor its machine."""

import contextlib
import json
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from atoms.activations.location import Location, Where, locate
from atoms.errors import AtomsError

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Args:
        host: name of the machine.
        namespace: the machine's process ids are only comparable within it (containers have their own).
        pid: process id.
        process: start of the process, so that a reused pid is not mistaken for it; empty where unknown.
        started: unix time at which the lock was taken.
        token: unique per lock taken.
        heartbeat: unix time of the last sign of life.
    """

    host: str
    namespace: str
    pid: int
    process: str
    started: float
    token: str
    heartbeat: float

    @classmethod
    def me(cls) -> Self:
        """Describe this process, with a fresh token."""
        now = time.time()
        return cls(socket.gethostname(), _namespace(), os.getpid(), _process(os.getpid()), now, uuid4().hex, now)

    @property
    def age(self) -> float:
        """Seconds since the last sign of life."""
        return max(0.0, time.time() - self.heartbeat)

    @property
    def alive(self) -> bool:
        """Whether the holder still runs; a process elsewhere counts as dead after a minute of silence."""
        if (self.host, self.namespace) != (socket.gethostname(), _namespace()):
            return self.age <= STALE_SECONDS
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True  # it exists and belongs to someone else, whose /proc may be hidden
        return _process(self.pid) == self.process


def lock_path(path: Where) -> Location:
    """Return the lock file of a store: beside it, so that the store may not exist yet."""
    return locate(path).beside(".lock")


def holder(path: Where) -> Holder | None:
    """Return the live holder of a store's lock, or None."""
    place = locate(path)
    if not place.writable:
        return None
    found = _read(lock_path(place))
    return found[0] if found is not None and found[0].alive else None


def sweep_lock(path: Where) -> None:
    """Remove the lock of a writer that was killed when its store was whole, and nobody has to write it again."""
    lock = lock_path(path)
    if lock.writable and _read(lock) is not None and holder(path) is None:
        # Whoever is killed, or cannot write here, leaves a lock that hinders nobody.
        with contextlib.suppress(AtomsError), StoreLock(path):
            pass


class StoreLock:
    """Context manager that holds the lock of a store being written. Only one rank of a job takes it.

    A lock whose process is dead is taken over, and so is one on another machine without a heartbeat for a minute.

    Args:
        path: the store (the lock lies beside it).

    Raises:
        AtomsError: on entering, if another writer holds the lock or it cannot be created.
    """

    def __init__(self, path: Where) -> None:
        self.store = locate(path)
        self.path = lock_path(path)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._me: Holder | None = None

    def __enter__(self) -> Self:
        if self._me is not None:
            raise RuntimeError("this lock is already held")
        me = Holder.me()
        try:
            self._acquire(self.path, me)
        except OSError as error:
            raise AtomsError(
                f"data.store={self.store}: cannot create the lock {self.path} ({error.strerror}); "
                "choose a directory you may write to"
            ) from error
        self._me = me
        self._stop.clear()
        self._thread = threading.Thread(target=self._beat, args=(me,), name="store-lock", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._me is not None
        assert self._thread is not None
        self._stop.set()
        self._thread.join()
        # A disk that has become read-only, a network that has gone: our process will be seen to be dead.
        with contextlib.suppress(OSError, AtomsError):
            found = _read(self.path)
            if found is not None and found[0].token == self._me.token:
                self.path.delete()
        self._me = self._thread = None

    def _acquire(self, path: Location, me: Holder) -> None:
        """Create ``path`` with our record, or take it over from the dead.

        Several takers may find the same dead holder. Only the one that creates the file named after the dead
        holder's token may replace that holder's record, and it looks again after it has won: a winner before it may
        have finished meanwhile. That file is itself a lock whose holder may die, hence the recursion.
        """
        record = json.dumps(asdict(me)).encode()
        while not path.create(record):
            read = _read(path)
            if read is None:
                continue  # released between the two calls
            found = read[0]
            if found.alive:
                raise AtomsError(
                    f"data.store={self.store}: being written by process {found.pid} on {found.host} (last sign of life "
                    f"{found.age:.0f} s ago, lock {self.path}); wait for it or stop it, then run the command again"
                )
            claim = self.path.beside(f".{found.token}")
            self._acquire(claim, me)
            try:
                current = _read(path)
                if current is not None and current[0].token == found.token:
                    path.write(record)
                    return
            finally:
                claim.delete()

    def _beat(self, me: Holder) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError, AtomsError):  # a network may fail for a while; the next beat will do
                found = _read(self.path)
                if found is not None and found[0].token == me.token:
                    self.path.refresh(*found[1:])


def _read(path: Location) -> tuple[Holder, bytes, Any] | None:
    """The holder of a lock, the bytes of its record, and their version."""
    try:
        content, heartbeat, version = path.stamp()
    except FileNotFoundError:
        return None
    try:
        return Holder(**(json.loads(content) | {"heartbeat": heartbeat})), content, version
    except (ValueError, TypeError):
        # created a moment ago and not yet filled, or left empty by a crash: only its age can tell
        unknown = Holder("an unknown host", "", 0, "", heartbeat, f"unreadable-{heartbeat:.6f}", heartbeat)
        return unknown, content, version


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _process(pid: int) -> str:
    """Return what tells a process from a later one with the same pid; "dead" for a zombie, "" without /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        # the name in parentheses may hold anything; the state is the first field after it, the start the twentieth
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "dead" if fields[0] in "ZX" else f"{boot}:{fields[19]}"
