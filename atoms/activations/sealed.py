"""Small JSON files that carry their own checksum, and the digests of all other files."""

import hashlib
import json
from typing import Any

_KEY = "sha256"


class DamagedFileError(Exception):
    """A file whose bytes are not those that were written."""


def seal(content: dict[str, Any]) -> bytes:
    """Write plain values as JSON with the checksum of everything else under ``sha256``."""
    digest = hashlib.sha256(_dump(content)).hexdigest()
    return _dump({**content, _KEY: digest})


def unseal(data: bytes) -> dict[str, Any]:
    """Read what :func:`seal` wrote; every byte counts, spaces too.

    Raises:
        DamagedFileError: The bytes are not those that were written.
    """
    try:
        content: dict[str, Any] = json.loads(data)
        if not isinstance(content, dict) or content.pop(_KEY, None) is None or seal(content) != data:
            raise DamagedFileError("its checksum is wrong")
    except ValueError as error:  # what is no UTF-8 is one too
        raise DamagedFileError("it is no JSON") from error
    return content


def sha256_of(data: Any) -> str:
    """Digest of some bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _dump(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1, sort_keys=True).encode()
