"""The backend that Keras is set to, as `diffstride_backends` knows it."""

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
    # That is what becomes of Keras where nobody has chosen a backend.
    if error.name != "tensorflow":
        raise
    raise ImportError(_REFUSAL.format("'tensorflow', which is not installed")) from error

NAME: str = keras.backend.backend()
if NAME not in BACKENDS:
    raise ImportError(_REFUSAL.format(repr(NAME)))
FRAMEWORK = registry.get(NAME)

# What PyTorch compiles it compiles anew by itself where a layer's plans have changed.
KEEPS_TRACES = NAME == "jax"
