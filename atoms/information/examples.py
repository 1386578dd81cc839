"""The five problems of the paper, with their parameters free: each a variable, what is known of it, and a title.

Source: Delsol et al. 2024, An information theoretic condition for perfect reconstruction (arXiv 2306.15540).
"""

from __future__ import annotations

import itertools
import math
import reprlib
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from atoms.errors import AtomsError, printable
from atoms.information.labels import as_array
from atoms.information.reconstruction import Problem
from atoms.information.variable import SampleSpace
from atoms.memory import require_memory

_SOURCE = "Delsol et al. 2024 (arXiv 2306.15540)"
_LARGEST = 2**40
Part = Literal["sign", "magnitude", "square"]


def sign_and_magnitude(
    values: list[int | float], probabilities: list[float] | None = None, parts: list[Part] | None = None
) -> Problem:
    """A number from its sign and its absolute value.

    Where the distribution is symmetric and leaves out 0, sign and absolute value are independent, and the condition
    holds with equality. An atom at 0 makes them redundant. Without the sign, from |X| and X² say, the condition may
    hold and X is lost all the same.

    Args:
        values: Values of X, each once.
        probabilities: Theirs; equal if left out.
        parts: What is known of X: ``sign``, ``magnitude``, ``square``; the first two if left out.

    Raises:
        AtomsError: If values repeat or are not finite, or the probabilities are none.

    Example:
        >>> from atoms.information import entropy
        >>> problem = sign_and_magnitude([-2, -1, 1, 2])
        >>> [entropy(part) for part in (problem.x, *problem.components)]
        [2.0, 1.0, 1.0]
    """
    points = as_array(values)
    numbers = points.dtype.kind in "iuf" and points.ndim == 1 and len(points) and bool(np.isfinite(points).all())
    if not numbers or len(np.unique(points)) < len(points):
        raise AtomsError(f"values is {printable(reprlib.repr(values))}: give finite numbers, each once")
    names = ["sign", "magnitude"] if parts is None else list(parts)
    functions = {"sign": np.sign, "magnitude": np.abs, "square": np.square}
    if not names or not set(names) <= functions.keys():
        raise AtomsError(f"parts is {names}: give some of {', '.join(functions)}")
    space = SampleSpace.uniform(points) if probabilities is None else SampleSpace.of(probabilities, points)
    symbols = {"sign": "sign X", "magnitude": "|X|", "square": "X²"}
    return Problem(
        space.variable(lambda x: x),
        tuple(space.variable(functions[name], symbols[name]) for name in names),
        f"a number from {' and '.join(symbols[name] for name in names)}",
        _SOURCE,
    )


def linear_combinations(matrix: list[list[int]], q: int) -> Problem:
    """A word of k letters over F_q, all words equally probable, from n linear combinations of its letters.

    The condition says n ≥ k (for combinations that are not zero). It does not suffice: they must have rank k.

    Args:
        matrix: (k, n) coefficients; column i gives the i-th combination.
        q: Size of the field, a prime.

    Raises:
        AtomsError: If q is no prime, the matrix has no entries, or there are more words than memory holds.

    Example:
        >>> from atoms.information import perfect_reconstruction
        >>> dependent = linear_combinations([[1, 0, 1], [0, 1, 1], [0, 0, 0]], q=2)
        >>> found = perfect_reconstruction(dependent.x, dependent.components)
        >>> found.verdict.value, found.joint
        ('not perfect', 2.0)
    """
    if not isinstance(q, (int, np.integer)) or q < 2:
        raise AtomsError(f"q is {q}: give a prime; fields of prime powers are not built in")
    rows, q = [list(row) for row in matrix], int(q)
    if not rows or not rows[0] or len({len(row) for row in rows}) > 1:
        raise AtomsError(f"matrix has rows of lengths {[len(row) for row in rows]}: give k rows of n coefficients")
    if np.asarray(rows).dtype.kind not in "iub":
        raise AtomsError(f"matrix holds {np.asarray(rows).dtype}: give whole numbers")
    coefficients = np.asarray(rows, np.int64) % q
    k, n = coefficients.shape
    require_memory(8 * q**k * (k + n + 4), f"all {q}^{k} words and their {n} combinations", "make k or q smaller")
    if not _is_prime(q):
        raise AtomsError(f"q is {q}: give a prime; fields of prime powers are not built in")
    words = np.stack(np.unravel_index(np.arange(q**k), (q,) * k), 1)
    space = SampleSpace.uniform(q**k)
    return Problem(
        space.variable(words, "word"),
        tuple(
            space.variable(words @ coefficients[:, i] % q, _combination(coefficients[:, i].tolist())) for i in range(n)
        ),
        f"a word of {k} letters over F_{q} from {n} linear combinations",
        _SOURCE,
    )


def _combination(coefficients: list[int]) -> str:
    terms = [f"{'' if c == 1 else c}w{i + 1}" for i, c in enumerate(coefficients) if c]
    return "+".join(terms) or "0"


def prime_signature(
    numbers: list[int], probabilities: list[float] | None = None, primes: list[int] | None = None
) -> Problem:
    """A positive integer from the exponents of its prime factors.

    The condition holds with equality where exponents are independent, as of 2^a 3^b with a and b independent.

    Args:
        numbers: Values of X, each once.
        probabilities: Theirs; equal if left out.
        primes: Whose exponents are known; all that divide one of the numbers if left out.

    Raises:
        AtomsError: If numbers repeat or are not positive, if what is to be a prime is none, or if no prime divides any.

    Example:
        >>> from atoms.information import redundancy
        >>> problem = prime_signature([2**a * 3**b for a in range(6) for b in range(6)])
        >>> [part.name for part in problem.components], round(redundancy(*problem.components), 3)
        (['v2', 'v3'], 0.0)
    """
    if not len(numbers):
        raise AtomsError("numbers is empty: give positive integers, each once")
    for number in numbers:
        if not isinstance(number, (int, np.integer)) or number < 1:
            raise AtomsError(f"numbers holds {number}: give positive integers, each once")
    numbers = [int(number) for number in numbers]
    if len(set(numbers)) < len(numbers):
        (twice, _), *_ = Counter(numbers).most_common(1)
        raise AtomsError(f"numbers holds {twice} twice: give positive integers, each once")
    if max(numbers) > _LARGEST:
        raise AtomsError(f"numbers holds {max(numbers)}: give integers up to 2^40, whose factors are found in time")
    factors = _primes_of(numbers) if primes is None else list(primes)
    for p in factors:
        if not 1 < p <= _LARGEST or not _is_prime(p):
            raise AtomsError(f"primes holds {p}, which is none up to 2^40: leave it out")
    if not factors:
        said = "no prime divides any of the numbers" if primes is None else "primes is empty"
        raise AtomsError(f"{said}: give {'a number above 1' if primes is None else 'at least one, or leave it out'}")
    values = np.asarray(numbers, np.int64)
    space = SampleSpace.uniform(values) if probabilities is None else SampleSpace.of(probabilities, values)
    components = tuple(space.variable(lambda x, p=p: _valuation(x, p), f"v{p}") for p in factors)
    known = "its prime signature" if primes is None else f"its exponents of {', '.join(map(str, factors))}"
    return Problem(space.variable(lambda x: x), components, f"an integer up to {max(numbers)} from {known}", _SOURCE)


def integers_up_to(limit: int, primes: list[int] | None = None) -> Problem:
    """An integer from 1 to `limit`, all equally probable, from the exponents of its prime factors.

    Args:
        limit: The largest.
        primes: Whose exponents are known; all up to `limit` if left out.

    Raises:
        AtomsError: If the limit is below 2 or too large for memory, or as `prime_signature`.
    """
    if limit < 2:
        raise AtomsError(f"limit is {limit}: give at least 2")
    count = 1.26 * limit / math.log(limit) if primes is None else len(primes)  # Rosser and Schoenfeld 1962
    require_memory(limit * (200 + 16 * count), f"integers up to {limit:,}", "lower limit, or give a few primes")
    return prime_signature(list(range(1, limit + 1)), None, primes)


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


def _primes_of(numbers: Sequence[int]) -> list[int]:
    """Primes that divide at least one of the numbers, ascending."""
    found: set[int] = set()
    for number in numbers:
        rest = number
        divisor = 2
        while divisor * divisor <= rest:
            if rest % divisor == 0:
                found.add(divisor)
                while rest % divisor == 0:
                    rest //= divisor
            divisor += 1
        if rest > 1:
            found.add(rest)
    return sorted(found)


def _valuation(numbers: NDArray[np.int64], prime: int) -> NDArray[np.int64]:
    """How often a prime divides each of the numbers."""
    rest, power = numbers.copy(), np.zeros_like(numbers)
    while (divides := rest % prime == 0).any():
        rest[divides] //= prime
        power += divides
    return power


def chinese_remainders(modulus: int, moduli: list[int]) -> Problem:
    """A number below `modulus`, all equally probable, from its remainders.

    For moduli without common factors whose product is `modulus`, remainders are independent and the condition holds
    with equality. Moduli with common factors may meet it with equality and still confuse numbers.

    Args:
        modulus: Number of values of X, 0 to `modulus` - 1.
        moduli: What X is divided by.

    Raises:
        AtomsError: If a number is less than 1, no modulus is given, or there are more values than memory holds.

    Example:
        >>> from atoms.information import independent
        >>> independent(*chinese_remainders(30, [2, 3, 5]).components)
        True
    """
    if modulus < 1 or not len(moduli) or min(moduli) < 1:
        raise AtomsError(f"modulus is {modulus} and moduli {moduli}: give positive integers, at least one modulus")
    space = SampleSpace.uniform(modulus)
    return Problem(
        space.variable(lambda x: x),
        tuple(space.variable(lambda x, m=m: x % min(m, modulus), f"X mod {m}") for m in moduli),
        f"a number below {modulus} from its remainders by {', '.join(map(str, moduli))}",
        _SOURCE,
    )


def sorting(length: int, comparisons: list[tuple[int, int]] | None = None) -> Problem:
    """The order of `length` different things, all orders equally probable, from comparisons of two of them.

    A comparison has one bit at most, so the condition says that log2(length!) of them are needed. Whether they suffice
    depends on which.

    Args:
        length: How many things are sorted.
        comparisons: Pairs of places, 0 to `length` - 1; (i, j) tells whether the i-th is less than the j-th. All pairs
            if left out.

    Raises:
        AtomsError: If there is nothing to sort, a pair is none, or there are more orders than memory holds.

    Example:
        >>> from atoms.information import perfect_reconstruction
        >>> for pairs in ([(0, 1), (1, 2)], [(0, 1), (1, 2), (0, 2)]):
        ...     problem = sorting(3, pairs)
        ...     perfect_reconstruction(problem.x, problem.components).verdict.value
        'ruled out'
        'perfect'
    """
    if length < 2:
        raise AtomsError(f"length is {length}: give at least 2")
    takes = math.factorial(min(length, 100)) * (8 * length + 100)
    require_memory(takes, f"all {length}! orders of {length} things", "lower length")
    pairs = list(itertools.combinations(range(length), 2)) if comparisons is None else [tuple(p) for p in comparisons]
    if not pairs or any(len(p) != 2 or p[0] == p[1] or not all(0 <= i < length for i in p) for p in pairs):
        raise AtomsError(f"comparisons is {pairs}: give pairs of different places from 0 to {length - 1}")
    ranks = np.array(list(itertools.permutations(range(length))), np.int8)
    space = SampleSpace.uniform(len(ranks))
    return Problem(
        space.variable(ranks, "order"),
        tuple(space.variable(ranks[:, i] < ranks[:, j], f"{i}<{j}") for i, j in pairs),
        f"the order of {length} things from {len(pairs)} comparisons",
        _SOURCE,
    )
