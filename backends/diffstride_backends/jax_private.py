"""What the project reads of JAX that JAX does not document: all of it, and why.

Seen in JAX 0.10; a test in `jax/test_private.py` fails where it has changed.
"""

from __future__ import annotations

import jax


def varying_axes(array: jax.Array) -> frozenset[str]:
    """Return the axes of a mesh over which an array varies, within `jax.shard_map`.

    No public function tells. Where a version keeps them elsewhere, none are found: JAX itself then
    refuses arrays that vary over different axes, which is safe.
    """
    manual = getattr(jax.typeof(array), "mat", None)
    return frozenset(getattr(manual, "varying", ()))
