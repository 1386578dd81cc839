"""What a store is made of, as one digest."""

import hashlib
import json
from typing import Any


def digest_of(identity: dict[str, Any]) -> str:
    """Hexadecimal sha256 of plain values, independent of the order of keys."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
