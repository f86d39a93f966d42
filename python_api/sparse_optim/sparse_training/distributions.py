"""How many weights of each layer live: uniform, Erdos-Renyi (ER) and its kernel form (ERK)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from .._bitmask import live_count
from .._support import check_number

DISTRIBUTIONS = ("uniform", "er", "erk")


def check_distribution(distribution: str, names: Sequence[str] = DISTRIBUTIONS) -> str:
    """Return ``distribution``; ValueError if it is none of the names."""
    if distribution not in names:
        raise ValueError(f"distribution must be one of {names}, got {distribution!r}")
    return distribution


def apportion(
    total: int, shares: Sequence[int], capacities: Sequence[int], names: Sequence[str]
) -> list[int]:
    """Split an integer in proportion to shares, none above its capacity, exactly.

    What a full place cannot take is passed on to the others by their shares; where all that have a
    share are full, to the rest by capacity. Fractions go to the largest remainders, equal ones in
    the order of the names, so the result does not depend on the order of the places.

    Args:
        total: what is split, at most the sum of the capacities.
        shares: integers >= 0.
        capacities: largest part of each place, >= 0.
        names: one per place.

    Returns:
        The parts, whose sum is ``total``.

    Example:
        >>> apportion(10, [3, 1, 1], [4, 9, 9], ["a", "b", "c"])
        [4, 3, 3]
    """
    parts = [0] * len(shares)
    weight = list(shares)
    places = [i for i, share in enumerate(weight) if share > 0]
    while total > 0:
        if not places:  # every place that had a share is full
            weight = [c - p for c, p in zip(capacities, parts, strict=True)]
            places = [i for i, room in enumerate(weight) if room > 0]
        whole = sum(weight[i] for i in places)
        full = [i for i in places if total * weight[i] > capacities[i] * whole]
        if not full:
            break
        for i in full:
            parts[i] = capacities[i]
            total -= capacities[i]
        places = [i for i in places if i not in full]
    if total > 0:
        remainders = {}
        for i in places:
            parts[i], remainders[i] = divmod(total * weight[i], whole)
        ranked = sorted(places, key=lambda i: (-remainders[i], names[i]))
        for i in ranked[: total - sum(parts[i] for i in places)]:
            parts[i] += 1
    return parts


def dense_names(
    names: Iterable[str], dense_layers: Iterable[str] = (), first_dense: bool = False
) -> set[str]:
    """Return the weights that stay dense: those named, by weight or by module, and the first.

    Args:
        names: of all weights, in the order of the model.
        dense_layers: names of weights ("0.weight") or of their modules ("0").
        first_dense: the first weight too.

    Raises:
        ValueError: ``dense_layers`` names no layer.

    Example:
        >>> sorted(dense_names(["0.weight", "2.weight", "4.weight"], ["4"], first_dense=True))
        ['0.weight', '4.weight']
    """
    names = list(names)
    if isinstance(dense_layers, str):
        raise ValueError(f"dense_layers must be a list of names, got {dense_layers!r}")
    dense = set(names[:1]) if first_dense else set()
    for wanted in dense_layers:
        found = [n for n in names if wanted in (n, n.rpartition(".")[0])]
        if not found:
            raise ValueError(f"dense_layers: the model has no maskable layer {wanted!r}")
        dense.update(found)
    return dense


def layer_counts(
    shapes: Mapping[str, Sequence[int]],
    sparsity: float,
    distribution: str = "erk",
    *,
    dense_layers: Iterable[str] = (),
    first_dense: bool | None = None,
) -> dict[str, int]:
    """Number of live weights of every layer.

    uniform: k(N_l, s) in each layer. ER: density ``eps (n_in + n_out) / (n_in n_out)``. ERK:
    density ``eps sum(dims) / prod(dims)``, kernel dimensions included. eps is such that the counts
    add up to k(N, s); layers whose density would pass 1 are dense and eps is solved again for the
    others. Exact integers throughout: nothing depends on the order of the layers, and the total is
    k(N, s) exactly (``live_count``). Dense layers are not counted in N.

    Args:
        shapes: shape of each weight by name, ``[n_out, n_in, *kernel]``.
        sparsity: s in [0, 1], fraction of zeros.
        distribution: "uniform", "er" or "erk".
        dense_layers: names of weights or modules that stay dense.
        first_dense: the first layer stays dense; default: for "uniform", as published.

    Returns:
        Live weights by name, dense layers included.

    Raises:
        ValueError: the sparsity is out of range, there is no such distribution or layer, or a
            weight has fewer than two dimensions.

    Source: SET, 10.1038/s41467-018-04316-3 (ER); RigL, arXiv 1911.11134 (ERK).

    Example:
        >>> shapes = {"a": (64, 32, 3, 3), "b": (128, 64, 3, 3), "c": (10, 128)}
        >>> layer_counts(shapes, 0.9)
        {'a': 2742, 'b': 5322, 'c': 1280}
        >>> layer_counts(shapes, 0.9, "uniform", dense_layers=["c"])
        {'a': 18432, 'b': 7373, 'c': 1280}
    """
    check_number("sparsity", sparsity, 0.0, 1.0)
    check_distribution(distribution)
    if first_dense is None:
        first_dense = distribution == "uniform"
    dense = dense_names(shapes, dense_layers, first_dense)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    names = [name for name in shapes if name not in dense]
    if distribution == "uniform":
        own = {name: live_count(sizes[name], sparsity) for name in names}
    else:
        total = live_count(sum(sizes[name] for name in names), sparsity)
        shares = [_share(name, shapes[name], distribution) for name in names]
        parts = apportion(total, shares, [sizes[name] for name in names], names)
        own = dict(zip(names, parts, strict=True))
    return {name: own.get(name, sizes[name]) for name in shapes}


def _share(name: str, shape: Sequence[int], distribution: str) -> int:
    """density * numel / eps."""
    if len(shape) < 2:
        raise ValueError(f"shapes: {name!r} has fewer than two dimensions")
    if distribution == "erk":
        return sum(shape)
    return (shape[0] + shape[1]) * math.prod(shape[2:])
