"""All undocumented parts of JAX that the project uses, and why.

They are those of JAX 0.10. A test in `jax/test_private.py` fails if they have changed.
"""

from __future__ import annotations

import jax


def varying_axes(array: jax.Array) -> frozenset[str]:
    """Return the axes of a mesh over which an array varies, within `jax.shard_map`.

    No public function returns them. If a version keeps them elsewhere, none are found. This is
    safe: JAX itself then refuses arrays that vary over different axes.
    """
    manual = getattr(jax.typeof(array), "mat", None)
    return frozenset(getattr(manual, "varying", ()))
