"""What JAX does not document: it does here what the project takes it to do."""

import subprocess
import sys

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


def test_importing_starts_no_device():
    # Before the first array, jax.distributed is initialised and platforms are chosen.
    modules = "diffstride_jax, diffstride_jax.nnx_modules, diffstride_jax.equinox_modules"
    code = f"import jax; jax.config.update('jax_platforms', 'none'); import {modules}"
    subprocess.run([sys.executable, "-c", code], check=True)
    failing = f"{code}; jax.devices()"
    assert subprocess.run([sys.executable, "-c", failing], capture_output=True).returncode
