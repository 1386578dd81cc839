"""The information lattice: variables ordered by what they tell, up to equivalence.

``X ≥ Y`` where Y is almost surely a function of X, so that variables are partitions of the sample space and more
information is a finer partition. All of it is decided by counting blocks, never by comparing entropies.

Source: Shannon 1953, The lattice theory of information; Gács and Körner 1973 for common information; Delsol et al.
2024, An information theoretic condition for perfect reconstruction (arXiv 2306.15540), sections 2.2 to 2.5.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from atoms.errors import AtomsError, printable
from atoms.information.labels import combine, dense, distinct_pairs, join_labels, weigh
from atoms.information.variable import SampleSpace, Variable, common_space, plain


def determines(x: Variable, *functions: Variable) -> bool:
    """Whether each of `functions` is almost surely a function of X: X ≥ Y, that is H(Y | X) = 0.

    Args:
        x: A variable.
        functions: Variables on its space.
    """
    common_space([x, *functions])
    return all(bool((y.labels[x.firsts][x.labels] == y.labels).all()) for y in functions)


def equivalent(x: Variable, y: Variable) -> bool:
    """Whether each is almost surely a function of the other: X ≡ Y, the same partition of the sample space."""
    return determines(x, y) and x.size == y.size


def join(*variables: Variable, name: str | None = None) -> Variable:
    """X ∨ Y ∨ …: the total information, which is all of them together.

    Args:
        variables: On one space, at least one.
        name: What to call it.
    """
    space = common_space(variables)
    labels, size = join_labels([variable.part for variable in variables])
    return Variable(
        space,
        labels,
        size,
        name or " ∨ ".join(variable.name for variable in variables),
        lambda outcome: tuple(variable.value_at(outcome) for variable in variables),
    )


def meet(*variables: Variable, name: str | None = None) -> Variable:
    """X ∧ Y ∧ …: the common information, the finest variable that is a function of each.

    Values of X and Y are the two sides of a graph with an edge for every pair that occurs; its connected components are
    the values of X ∧ Y. An empirical meet collapses with one noisy sample, which joins two components.

    Args:
        variables: On one space, at least one.
        name: What to call it.
    """
    space = common_space(variables)
    labels, size = variables[0].part
    for other in variables[1:]:
        left, right = distinct_pairs((labels, size), other.part)
        nodes = size + other.size
        graph = sparse.coo_matrix((np.ones(len(left), np.int8), (left, right + size)), shape=(nodes, nodes))
        component = connected_components(graph, directed=False)[1]
        labels, size = dense(component[labels].astype(np.int64), nodes)
    return Variable(
        space,
        labels,
        size,
        name or " ∧ ".join(variable.name for variable in variables),
        lambda outcome: int(labels[outcome]),
    )


def complement(y: Variable, x: Variable, name: str | None = None) -> Variable:
    """A complement of Y in X: a function Z of X with Y ∨ Z ≡ X and Y ∧ Z constant. There are others.

    Within each set of values of X that Y does not tell apart, values are numbered 0, 1, …: Z is that number. Every set
    has a number 0, hence nothing but constants is common to Y and Z.

    Args:
        y: A function of X.
        x: A variable.
        name: What to call it.

    Raises:
        AtomsError: If Y is no function of X; with a value of X that has two of Y.
    """
    if (clash := two_values(x, y)) is not None:
        value, these = clash
        raise AtomsError(
            f"{y.name} is no function of {x.name}: {x.name} = {printable(repr(value))} has {y.name} = "
            f"{printable(repr(these[0]))} and {printable(repr(these[1]))}; a complement is of a function of {x.name}"
        )
    block = y.labels[x.firsts]
    order = np.argsort(block, kind="stable")
    sizes = np.bincount(block, minlength=y.size)
    starts = np.cumsum(sizes) - sizes
    number = np.empty(x.size, np.int64)
    number[order] = np.arange(x.size) - np.repeat(starts, sizes)
    labels, size = dense(number[x.labels], x.size)
    return Variable(
        x.space, labels, size, name or f"{y.name} complemented in {x.name}", lambda outcome: int(labels[outcome])
    )


def bottom(space: SampleSpace) -> Variable:
    """0: the constant, a function of everything."""
    return Variable(space, np.zeros(len(space), np.int32), 1, "0", lambda outcome: 0)


def top(space: SampleSpace) -> Variable:
    """1: the outcome itself, of which everything is a function."""
    return Variable(space, np.arange(len(space)), len(space), "1", lambda outcome: plain(space.outcomes[outcome]))


def independent(*variables: Variable) -> bool:
    """Whether the variables are mutually independent: each combination of values occurs, as often as chance has it.

    Relative frequencies of samples hardly ever satisfy this, whatever was sampled.

    Args:
        variables: On one space, at least one.
    """
    space = common_space(variables)
    moving = [variable for variable in variables if variable.size > 1]
    combinations = 1
    for variable in moving:
        combinations *= variable.size
    if combinations > len(space):
        return False
    if not moving:
        return True
    keys, bound = combine([variable.part for variable in moving])
    joint = weigh((keys, bound), space.probabilities)
    product = np.ones(1)
    for variable in moving:
        product = np.multiply.outer(product, variable.probabilities).ravel()
    return bool((np.abs(joint - product) <= space.rounding * (1 + len(moving)) * product).all())


def two_values(x: Variable, y: Variable) -> tuple[object, tuple[object, object]] | None:
    """A witness that Y is no function of X: a value of X, and two values of Y that go with it.

    Args:
        x: A variable.
        y: Another on its space.

    Returns:
        None where Y is a function of X.
    """
    common_space([x, y])
    clash = np.flatnonzero(y.labels != y.labels[x.firsts][x.labels])
    if not len(clash):
        return None
    here = int(clash[0])
    first = int(x.firsts[x.labels[here]])
    return x.value_at(here), (y.value_at(first), y.value_at(here))
