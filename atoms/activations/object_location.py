"""A prefix of an object store: ``s3://``, ``gs://``, and ``http(s)://`` to read from."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

from atoms.activations.location import Location
from atoms.errors import AtomsError

try:
    import obstore
    from obstore.exceptions import (
        AlreadyExistsError,
        BaseError,
        PermissionDeniedError,
        PreconditionError,
        UnauthenticatedError,
    )
    from obstore.store import from_url
except ImportError as error:  # pragma: no cover
    raise AtomsError("data.store is a URL, which needs the extra `remote`: pip install 'atoms[remote]'") from error

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

FIRST_RETRIES, RETRIES = 2, 9  # a wrong endpoint is said within seconds; a network that fails for a minute is outlived
REQUEST_SECONDS, CONNECT_SECONDS = 300, 10  # a shard is 128 MiB, and the network may be slow


class _Client:
    """The connection to one bucket or host, opened on first use."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.reached = False
        self._stores: dict[int, Any] = {}

    @property
    def store(self) -> Any:
        """What obstore talks to."""
        retries = RETRIES if self.reached else FIRST_RETRIES
        if retries not in self._stores:
            options: ClientConfig = {
                "timeout": timedelta(seconds=REQUEST_SECONDS),
                "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
            }
            # What is given here hides what the environment says of the same kind.
            if self.base.startswith("http://") or _endpoint().startswith("http://") or _is_set("AWS_ALLOW_HTTP"):
                options["allow_http"] = True
            if _is_set("AWS_ALLOW_INVALID_CERTIFICATES"):
                options["allow_invalid_certificates"] = True
            retrying: RetryConfig = {
                "max_retries": retries,
                "backoff": {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=15), "base": 2},
                "retry_timeout": timedelta(minutes=3),
            }
            self._stores[retries] = from_url(self.base, client_options=options, retry_config=retrying)
        return self._stores[retries]


class ObjectLocation(Location):
    """An object, or all objects whose keys begin with a prefix.

    Args:
        client: The bucket or host.
        key: The key, or the prefix without a slash at its end.
        text: What the user wrote.
    """

    remote = True

    def __init__(self, client: _Client, key: str, text: str) -> None:
        super().__init__(text)
        self.client, self.key = client, key

    @classmethod
    def at(cls, base: str, key: str, text: str) -> Self:
        """Name a place; nothing is connected yet."""
        return cls(_Client(base), key, text)

    @property
    def name(self) -> str:  # noqa: D102
        return self.key.rpartition("/")[2]

    @property
    def absolute(self) -> str:  # noqa: D102
        return str(self)

    @property
    def writable(self) -> bool:  # noqa: D102
        return not self.client.base.startswith("http")

    def __truediv__(self, path: str) -> Self:
        return type(self)(self.client, f"{self.key}/{path}" if self.key else path, f"{self}/{path}")

    def beside(self, suffix: str) -> Self:  # noqa: D102
        if not self.key:
            raise AtomsError(f"data.store={self}: a whole bucket cannot be a store to write; add a prefix")
        return type(self)(self.client, self.key + suffix, f"{self}{suffix}")

    def read(self) -> bytes:  # noqa: D102
        with self._errors():
            return bytes(obstore.get(self.client.store, self.key).bytes())

    def read_into(self, offset: int, *buffers: memoryview) -> bool:  # noqa: D102
        length = sum(len(buffer) for buffer in buffers)
        try:
            with self._errors():
                content = memoryview(obstore.get_range(self.client.store, self.key, start=offset, length=length))
        except _BeyondTheEndError:
            return False
        if len(content) != length:
            return False
        for buffer in buffers:
            buffer[:] = content[: len(buffer)]
            content = content[len(buffer) :]
        return True

    def size(self) -> int:  # noqa: D102
        with self._errors():
            return int(obstore.head(self.client.store, self.key)["size"])

    def exists(self) -> bool:  # noqa: D102
        try:
            self.size()
        except FileNotFoundError:
            return bool(self.files(limit=1))
        return True

    def stamp(self) -> tuple[bytes, float, Any]:  # noqa: D102
        with self._errors():
            found = obstore.get(self.client.store, self.key)
            meta = found.meta
            version = {key: meta[key] for key in ("e_tag", "version") if meta[key] is not None}
            return bytes(found.bytes()), meta["last_modified"].timestamp(), version

    def files(self, limit: int | None = None) -> dict[str, int] | None:  # noqa: D102
        if not self.writable:
            return None  # plain HTTP has no listing
        found: dict[str, int] = {}
        with self._errors():
            for part in obstore.list(self.client.store, self._prefix, chunk_size=1000):
                found |= {entry["path"][len(self._prefix or "") :]: entry["size"] for entry in part}
                if limit is not None and len(found) >= limit:
                    break
        return found

    def children(self) -> tuple[list[str], list[str]]:  # noqa: D102
        if not self.writable:
            raise AtomsError(f"{self} cannot be listed: plain HTTP has no folders; name one store")
        with self._errors():
            found = obstore.list_with_delimiter(self.client.store, self._prefix)
        folders = [prefix.rstrip("/").rpartition("/")[2] for prefix in found["common_prefixes"]]
        return sorted(folders), sorted(entry["path"].rpartition("/")[2] for entry in found["objects"])

    def write(self, content: Any) -> None:  # noqa: D102
        self._put(content)

    def create(self, content: bytes) -> bool:  # noqa: D102
        try:
            self._put(content, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        return True

    def refresh(self, content: bytes, version: Any) -> None:  # noqa: D102
        try:
            self._put(content, mode=version, use_multipart=False)
        except (PreconditionError, FileNotFoundError):
            return  # someone else's by now

    def delete(self) -> None:  # noqa: D102
        try:
            with self._errors():
                obstore.delete(self.client.store, self.key)
        except FileNotFoundError:
            return

    @property
    def _prefix(self) -> str | None:
        return f"{self.key}/" if self.key else None

    def _put(self, content: Any, **how: Any) -> None:
        if not self.writable:
            raise AtomsError(
                f"data.store={self}: plain HTTP can only be read; write to a directory, s3:// or gs:// and publish that"
            )
        with self._errors():
            obstore.put(self.client.store, self.key, content, **how)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Say what went wrong in one line that holds no secret."""
        try:
            yield
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise AtomsError(f"data.store={self}: there is no such bucket; mend its name") from error
            self.client.reached = True
            raise
        except (AlreadyExistsError, PreconditionError):
            self.client.reached = True
            raise
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise AtomsError(
                f"data.store={self}: access denied ({_reason(error)}); check the credentials in the environment and "
                "what they allow, see docs/stores.md"
            ) from error
        except BaseError as error:
            if "416" in str(error) and "Range" in str(error):
                raise _BeyondTheEndError from error
            raise AtomsError(f"data.store={self}: {_advice(str(error))}") from error
        except ValueError as error:  # a setting in the environment that obstore does not understand
            raise AtomsError(f"data.store={self}: {_first_line(str(error))}; mend the environment") from error
        else:
            self.client.reached = True


class _BeyondTheEndError(Exception):
    """A range that begins after the last byte."""


def _endpoint() -> str:
    return next(filter(None, map(os.environ.get, ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"))), "")


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "on")


def _advice(text: str) -> str:
    if "NoSuchBucket" in text:
        return "there is no such bucket; mend its name"
    if "kind: Connect" in text:
        host = re.search(r"https?://(?:[^/@\s]*@)?([^/\s]+)", text)
        return (
            f"no connection to {host[1] if host else 'the server'}; check the endpoint in the environment and the "
            "network, then run the command again"
        )
    if "kind: Timeout" in text:
        return "the server did not answer in time; check the network, then run the command again"
    if "token request" in text or "credential" in text.lower():
        return "no credentials were found; give them in the environment, see docs/stores.md"
    return f"the server refused ({_reason(text)}); see docs/stores.md, then run the command again"


def _reason(error: object) -> str:
    """Status and error code: the rest of an answer may quote keys and signatures."""
    text = str(error)
    status = re.search(r"status code: (\d{3}[ A-Za-z]*)", text)
    code = re.search(r"<Code>(\w+)</Code>", text)
    said = [found[1].strip() for found in (status, code) if found]
    return ", ".join(said) or _first_line(text)


def _first_line(text: str) -> str:
    line = text.strip().partition("\n")[0].partition("<")[0]
    return re.sub(r"(https?://)(?:[^/@\s]*@)?([^\s?]+)\S*", r"\1\2", line).strip()
