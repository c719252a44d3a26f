"""The backend that Keras is set to, as known to `diffstride_backends`."""

from __future__ import annotations

from diffstride_backends import registry

BACKENDS = ("jax", "torch")

_REFUSAL = (
    f"diffstride_keras needs one of Keras's backends {' and '.join(map(repr, BACKENDS))}, "
    "got {}: set the environment variable KERAS_BACKEND before anything imports Keras"
)

try:
    import keras
except ModuleNotFoundError as error:
    # Keras falls back to TensorFlow if no backend was chosen.
    if error.name != "tensorflow":
        raise
    raise ImportError(_REFUSAL.format("'tensorflow', which is not installed")) from error

NAME: str = keras.backend.backend()
if NAME not in BACKENDS:
    raise ImportError(_REFUSAL.format(repr(NAME)))
FRAMEWORK = registry.get(NAME)

# PyTorch recompiles by itself when a layer's plans have changed.
KEEPS_TRACES = NAME == "jax"
