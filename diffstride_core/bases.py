r"""Cosine tables: the part of an axis operator that no stride changes.

An axis operator is a sum over frequency bins of a phase-shifted cosine,

.. math:: A[m, n] = \sum_b w_b \frac{c_b}{N} \cos\left(2\pi \frac{j_b m}{M} -
          2\pi \frac{k_b n}{N}\right),

where bin b reads the input frequency :math:`k_b`, writes the output frequency :math:`j_b`, counts
:math:`c_b` times and is weighted by the window :math:`w_b`. The addition theorem splits it into
``synthesis @ diag(w, w) @ analysis``; both tables depend on the sizes alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from diffstride_core.byte_cache import ByteBoundCache

Table: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

BinRule: TypeAlias = Callable[[int, int], tuple[Integers, Integers, Table]]
"""Maps the sizes N and M to k, j and c of every bin, each of shape (K,)."""


@dataclass(frozen=True, slots=True)
class AxisBasis:
    """The key of a pair of tables, hashable so that a framework can keep its own copies.

    Attributes
    ----------
    size, output_size : int
        N and M.
    bins : BinRule
        The frequencies read and written.
    quadrature : bool
        Whether the sine takes the place of the cosine: the imaginary part of the same complex
        operator.
    """

    size: int
    output_size: int
    bins: BinRule
    quadrature: bool = False


# The cache is bounded: a long run whose strides pass many sizes must not collect tables for ever.
@ByteBoundCache
def tables(basis: AxisBasis) -> tuple[Table, Table]:
    """Return the tables of an axis operator in float64 on the host.

    Parameters
    ----------
    basis : AxisBasis

    Returns
    -------
    synthesis : ndarray, shape (M, 2K)
        Cosines, then sines, of the output.
    analysis : ndarray, shape (2K, N)
        Cosines, then sines, of the input, times c/N.
    """
    k, j, counts = basis.bins(basis.size, basis.output_size)
    cos_in, sin_in = _phases(k, basis.size)
    cos_out, sin_out = _phases(j, basis.output_size)
    pair = (sin_out, -cos_out) if basis.quadrature else (cos_out, sin_out)
    scaled = np.concatenate([counts, counts])[:, None] / basis.size
    synthesis = np.concatenate(pair).T.copy()
    return synthesis, np.concatenate([cos_in, sin_in]) * scaled


def _phases(frequencies: Integers, size: int) -> tuple[Table, Table]:
    """Return cos and sin of 2 pi k n / size, both of shape (len(frequencies), size)."""
    # Reduce in integers: k*n grows with the square of the size, and so would its rounding error.
    turns = (frequencies[:, None] * np.arange(size)) % size
    angle = 2 * math.pi * turns / size
    # The sine of half turns is exactly 0. The unpaired bin of an even size needs this: the samples
    # do not see its sine, and rounding must not let it in.
    return np.cos(angle), np.where(2 * turns % size == 0, 0.0, np.sin(angle))


def half_spectrum(size: int, output_size: int) -> tuple[Integers, Integers, Table]:
    """Return the bins of the clean resize: the frequencies 0..lo//2, lo = min(N, M)."""
    lo = min(size, output_size)
    k = np.arange(lo // 2 + 1)
    return k, k, bin_counts(np, k, lo)


def bin_counts(xp: Any, frequencies: Any, size: int) -> Any:
    """Return how often each bin k = 0, 1, ... of a real spectrum counts.

    A bin stands for itself and its mirror image, so it counts twice. The constant counts once, and
    so does the unpaired bin size/2 of an even size.

    Parameters
    ----------
    xp : module
        The array API namespace of `frequencies`.
    frequencies : array, shape (K,)
    size : int
        Size of the input or the output, whichever is shorter.

    Returns
    -------
    array, shape (K,)
    """
    once = (frequencies == 0) | (2 * frequencies == size)
    return xp.where(once, xp.ones_like(frequencies), 2.0)
