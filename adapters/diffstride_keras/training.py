"""Keeping the output sizes of a model's compiled functions up to date with its strides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import keras

from diffstride_core.arguments import integer
from diffstride_core.plan import Plan
from diffstride_keras.layers import DiffStride2d, StrideBounds

_Compiled: TypeAlias = tuple[frozenset[Plan], ...]
"""The plans with which functions were traced, for each layer of a model."""

_STEPS = ("train_step", "test_step")
_FUNCTIONS = ("train_function", "test_function", "predict_function")


def stride_variables(model: keras.layers.Layer) -> list[keras.Variable]:
    """Return the strides of all `DiffStride2d` layers of a model.

    Parameters
    ----------
    model : keras.Model or keras.layers.Layer
        A model that makes its layers when it is built must have been built.

    Returns
    -------
    list of keras.Variable
        The variables, in the order of ``model.variables``.

    Examples
    --------
    Weight decay would pull strides out of their bounds:

    >>> import keras
    >>> from diffstride_keras import DiffStride2d, stride_variables
    >>> model = keras.Sequential([keras.layers.Conv2D(4, 3), DiffStride2d()])
    >>> optimizer = keras.optimizers.AdamW(weight_decay=0.01)
    >>> optimizer.exclude_from_weight_decay(var_list=stride_variables(model))
    """
    return [variable for variable in model.variables if _is_stride(variable)]


def replan(model: keras.layers.Layer) -> None:
    """Update the output sizes of a model's compiled functions to its strides.

    Call it after something other than an optimiser, for example ``set_weights`` or
    ``load_weights``, has changed strides of a model that has trained, evaluated or predicted
    before. The function reads the strides and discards what Keras has compiled for the model.
    During training, `UpdateSizes` does this when needed. Outside compiled functions, sizes follow
    the strides without it.

    Parameters
    ----------
    model : keras.Model or keras.layers.Layer

    Raises
    ------
    ValueError
        If a stride is NaN or infinite. The message names the layer.
    """
    layers = _layers(model)
    for layer in layers:
        layer.replan()
    if isinstance(model, keras.Model):
        _use(model, {}, (frozenset(),) * len(layers))


class UpdateSizes(keras.callbacks.Callback):  # type: ignore[misc]
    """Callback that keeps the output sizes of compiled functions up to date during training.

    Pass it to ``fit`` as the last callback, so that it sees what other callbacks restore. With JAX,
    Keras compiles the training step, and the sizes in it stay fixed without this callback. The
    callback reads the strides after each batch. When an output size has changed, Keras compiles the
    model's functions again. Functions for sizes seen before in this training are reused.

    With PyTorch the callback is needed only for models compiled with ``jit_compile=True``.

    Parameters
    ----------
    update_freq : int
        Number of batches from one reading to the next, at least 1. A larger number compiles less
        often. In between, sizes stay, and the window follows the strides. The callback also reads
        the strides after the last batch of an epoch, for the validation.

    Raises
    ------
    TypeError, ValueError
        If `update_freq` is not a positive int.
    ValueError
        During training, if a stride is NaN or infinite. The message names the layer.

    Examples
    --------
    >>> import keras
    >>> import numpy as np
    >>> from diffstride_keras import DiffStride2d, UpdateSizes
    >>> pooling = keras.layers.GlobalAveragePooling2D()
    >>> model = keras.Sequential([keras.Input((32, 32, 1)), DiffStride2d(), pooling])
    >>> model.compile("adam", "mse")
    >>> x, y = np.ones((8, 32, 32, 1)), np.zeros((8, 1))
    >>> history = model.fit(x, y, verbose=0, callbacks=[UpdateSizes()])
    """

    def __init__(self, update_freq: int = 1) -> None:
        super().__init__()
        self._update_freq = integer("update_freq", update_freq)
        if self._update_freq < 1:
            raise ValueError(f"update_freq must be at least 1, got {update_freq}")
        self._batches = 0
        self._kept: dict[_Compiled, Mapping[str, Any]] = {}

    def on_train_begin(self, logs: Any = None) -> None:
        """Read the strides, which may have changed since the last training."""
        self._kept, self._batches = {}, 0
        self._update()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Update the sizes."""
        self._batches += 1
        is_last = batch + 1 == self.params.get("steps")
        if is_last or self._batches % self._update_freq == 0:
            self._update()

    def on_train_end(self, logs: Any = None) -> None:
        """Update the sizes to strides that another callback has restored."""
        self._update()
        self._kept = {}

    def _update(self) -> None:
        model = self.model  # this also copies JAX's training state back into the variables
        layers = _layers(model)
        for layer in layers:
            layer.replan()
        compiled = tuple(layer.compiled for layer in layers)
        if not _serves(compiled, layers):
            self._kept[compiled] = {name: getattr(model, name) for name in _FUNCTIONS}
            _use(model, *self._serving(layers))

    def _serving(self, layers: Sequence[DiffStride2d]) -> tuple[Mapping[str, Any], _Compiled]:
        """Return functions that were compiled for the layers' sizes, if any, and the plans used."""
        for compiled, functions in self._kept.items():
            if _serves(compiled, layers):
                return functions, compiled
        return {}, (frozenset(),) * len(layers)


def _serves(compiled: _Compiled, layers: Sequence[DiffStride2d]) -> bool:
    """Return whether functions compiled with these plans have the layers' present sizes."""
    return all(
        layer.plans.holds(plan)
        for layer, plans in zip(layers, compiled, strict=True)
        for plan in plans
    )


def _use(model: keras.Model, functions: Mapping[str, Any], compiled: _Compiled) -> None:
    """Give a model compiled functions. Keras will compile those that are missing.

    Parameters
    ----------
    model : keras.Model
    functions : mapping of str to callable or None
    compiled : tuple of frozenset of Plan
        The plans with which they were traced, for each of the model's layers.
    """
    # JAX recognises a traced function by equality. Any two references to the same method are equal,
    # two partial objects never are.
    for name in _STEPS:
        setattr(model, name, partial(getattr(model, name)))
    is_training = model.train_function is not None
    for name in _FUNCTIONS:
        setattr(model, name, functions.get(name))
    if is_training:
        model.make_train_function()  # does nothing if there is one
    for layer, plans in zip(_layers(model), compiled, strict=True):
        layer.compiled = plans


def _is_stride(variable: keras.Variable) -> bool:
    return isinstance(variable.constraint, StrideBounds)


def _layers(model: keras.layers.Layer) -> list[DiffStride2d]:
    return [variable.constraint.layer for variable in stride_variables(model)]
