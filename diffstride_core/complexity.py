r"""The complexity penalty: how much resolution a stack of layers leaves to compute on.

.. math:: J(S^{(1)}, \dots, S^{(D)}) = \sum_{l=1}^{D} \prod_{l'=1}^{l} \prod_a \frac{1}{S_a^{(l')}}

with a over the resized axes of a layer.
"""

from __future__ import annotations

from typing import TypeAlias

from diffstride_core.operation import Operation
from diffstride_core.ops import Array, ArrayOps, Factors
from diffstride_core.plan import Bounds
from diffstride_core.window import gather_stride_gradients, spread_strides, straight_through

LayerBounds: TypeAlias = tuple[tuple[Bounds, ...], ...]
"""The bounds of the stride of each resized axis, per layer."""


def evaluate(ops: ArrayOps, bounds: LayerBounds, factors: Factors, *strides: Array) -> Array:
    """Return the penalty J.

    Parameters
    ----------
    ops : ArrayOps
    bounds : tuple of tuple of Bounds
        Per layer and resized axis. Strides outside them are clipped, with a straight-through
        gradient.
    factors : tuple
        Empty.
    *strides : array, shape (), (1,) or (d,)
        Per layer, in the order of the network. A stride shared by d axes counts d times.

    Returns
    -------
    array, shape ()
        Computed in the precise dtype, returned in the dtype of the strides.
    """
    products = _products(_used(ops, bounds, strides))
    total = sum(products[1:], start=products[0])
    return ops.xp.astype(total, ops.xp.result_type(*strides), copy=False)


def pull_back(
    ops: ArrayOps,
    bounds: LayerBounds,
    factors: Factors,
    stride_factors: None,
    g: Array,
    *strides: Array,
    needs: tuple[bool, ...],
) -> tuple[Array | None, ...]:
    """Return the gradients of J in the strides times the cotangent `g`.

    dJ/dS_b(r) = -1/S_b(r) sum_{l >= r} prod_{l' <= l} 1/prod_a S_a(l'), for axis b of layer r.
    """
    used = _used(ops, bounds, strides)
    products = _products(used)
    g = ops.xp.astype(g, ops.precise_dtype(g), copy=False)
    gradients: list[Array | None] = [None] * len(strides)
    tail = 0.0
    for layer in reversed(range(len(strides))):
        tail = products[layer] + tail
        if needs[layer]:
            per_axis = ops.xp.stack([-g * tail / stride for stride in used[layer]])
            gradients[layer] = gather_stride_gradients(ops, per_axis, strides[layer])
    return tuple(gradients)


def _used(ops: ArrayOps, bounds: LayerBounds, strides: tuple[Array, ...]) -> list[list[Array]]:
    """Return the bounded stride of every layer and axis in the precise dtype."""
    return [
        [
            straight_through(ops, stride, bound)
            for stride, bound in zip(
                spread_strides(ops, layer, len(of_layer)), of_layer, strict=True
            )
        ]
        for layer, of_layer in zip(strides, bounds, strict=True)
    ]


def _products(used: list[list[Array]]) -> list[Array]:
    """Return the fraction of the input's samples that is left after each layer."""
    shares: list[Array] = []
    for layer in used:
        share = 1.0 / layer[0]
        for stride in layer[1:]:
            share = share / stride
        shares.append(share if not shares else shares[-1] * share)
    return shares


COMPLEXITY = Operation(evaluate, pull_back)
