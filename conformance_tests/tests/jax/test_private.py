"""What JAX does not document: it does here what the project takes it to do."""

import jax
import jax.numpy as jnp
import numpy as np
from diffstride_backends.jax_private import varying_axes
from jax.sharding import Mesh, PartitionSpec


def test_what_varies_over_a_mesh_is_seen():
    seen = []

    def note(x, s):
        seen.append((varying_axes(x), varying_axes(s)))
        return x * s

    mesh = Mesh(np.array(jax.devices()[:1]), ("batch",))
    jax.shard_map(
        note,
        mesh=mesh,
        in_specs=(PartitionSpec("batch"), PartitionSpec()),
        out_specs=PartitionSpec("batch"),
    )(jnp.ones(2), jnp.ones(()))
    assert seen == [({"batch"}, frozenset())]
    assert varying_axes(jnp.ones(2)) == frozenset()
