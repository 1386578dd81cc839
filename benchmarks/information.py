"""How long entropies, distances and lattice operations take on many samples: ``python benchmarks/information.py``.

Prints seconds on the machine at hand, the least of three, beside one sort of the same pairs in numpy.
"""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np

from atoms.information import (
    complement,
    determines,
    entropy,
    from_samples,
    join,
    meet,
    mutual_information,
    rajski_distance,
)


def least(action: Callable[[], object], times: int = 3) -> float:
    """Seconds of the fastest of some runs."""
    found = []
    for _ in range(times):
        started = time.perf_counter()
        action()
        found.append(time.perf_counter() - started)
    return round(min(found), 3)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10**7)
    parser.add_argument("--symbols", type=int, default=10**5)
    asked = parser.parse_args()
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, asked.symbols, asked.samples) for _ in range(2))
    x, y, part = from_samples(a, b, a // 10)
    pairs = a * asked.symbols + b
    seconds = {
        "one sort of the pairs (numpy)": least(lambda: np.sort(pairs)),
        "labels of both columns": least(lambda: from_samples(a, b)),
        "H(X)": least(lambda: entropy(x)),
        "H(X, Y)": least(lambda: entropy(x, y)),
        "I(X; Y)": least(lambda: mutual_information(x, y)),
        "Rajski distance": least(lambda: rajski_distance(x, y)),
        "Y is a function of X": least(lambda: determines(x, y)),
        "meet": least(lambda: meet(x, y)),
        "join": least(lambda: join(x, y)),
        "complement": least(lambda: complement(part, x)),
    }
    print(json.dumps({"samples": asked.samples, "symbols": asked.symbols, "seconds": seconds}, indent=1))


if __name__ == "__main__":
    main()
