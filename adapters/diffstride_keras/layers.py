"""DiffStride as a Keras layer, with the argument names of the authors' TensorFlow layer."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from diffstride_core.arguments import initial_strides, option
from diffstride_core.conventions import DEFAULT_CONVENTION
from diffstride_core.plan import Plan
from diffstride_core.plan_cache import PlanCache
from diffstride_core.settings import make_settings
from diffstride_keras.framework import FRAMEWORK, KEEPS_TRACES

DATA_FORMATS = ("channels_first", "channels_last")

# Names of arguments in the checks that all frameworks share, and the names of this layer.
_NAMES = {
    "smoothness": "smoothness_factor",
    "shared": "shared_stride",
    "limits": "(lower_limit_stride, upper_limit_stride)",
}


@contextmanager
def _named_as_here() -> Iterator[None]:
    """Replace the names of arguments in error messages with the names that this layer uses."""
    try:
        yield
    except (TypeError, ValueError) as error:
        message = re.sub(rf"\b({'|'.join(_NAMES)})\b", lambda m: _NAMES[m[0]], str(error))
        raise type(error)(message) from None


class StrideBounds(keras.constraints.Constraint):  # type: ignore[misc]
    """Constraint that moves a layer's strides back within their bounds after each optimiser step.

    Parameters
    ----------
    layer : DiffStride2d
        The layer that has the strides.
    """

    def __init__(self, layer: DiffStride2d) -> None:
        self.layer = layer

    def __call__(self, strides: Any) -> Any:
        """Return strides within the layer's bounds."""
        return self.layer.bounded(strides)


@keras.saving.register_keras_serializable(package="diffstride")
class DiffStride2d(keras.layers.Layer):  # type: ignore[misc]
    """Downsampling layer for height and width with learnt strides.

    The arguments have the names, the order and the meaning of the authors' TensorFlow layer. To get
    the numbers of that layer too, set ``convention="tensorflow"``.

    Parameters
    ----------
    strides : float or sequence of float
        Initial strides, at least 1: of height and width, or one for both.
    smoothness_factor : float, optional
        Width of the window's ramp. In the convention "nominal" it is a fraction of the band that
        the output holds, at most 1; the default is 0.25. In "paper" and "tensorflow" it is a number
        of frequencies; the default is 4.0.
    cropping : bool
        Whether to crop the spectrum. If False, the window is applied, but the output is as large
        as the input.
    trainable : bool
        Whether the strides are learnt.
    shared_stride : bool
        Whether height and width share one learnt stride.
    lower_limit_stride, upper_limit_stride : float, optional
        Limits on the strides, in addition to the built-in bounds.
    data_format : {"channels_last", "channels_first"}, optional
        Order of the input's axes. By default, ``keras.config.image_data_format()``.
    convention : {"nominal", "paper", "tensorflow"}
        Which window belongs to a stride.
    multiple_of : int
        Raise output sizes to a multiple of this number, but not above the input's size. Must be 1
        in the convention "tensorflow".
    strides_regularizer : keras.regularizers.Regularizer, optional
        Regulariser of the strides, in any form that Keras accepts.
    **kwargs
        Arguments of `keras.layers.Layer`: ``name``, ``dtype``.

    Attributes
    ----------
    strides : keras.Variable, shape (2,) or (1,)
        The stride parameters. They are float32 under every dtype policy except "float64". A call
        uses bounded values and leaves the variable alone. After each step of an optimiser, the
        constraint of the variable moves it back within its bounds: the limits, and the built-in
        bounds of the input sizes that the layer has seen since the last step.
    plans : PlanCache
        The output sizes for the strides as they were last read.
    compiled : frozenset of Plan
        The plans that compiled functions use. Only JAX's backend keeps compiled functions.

    Raises
    ------
    TypeError, ValueError
        If an argument is not allowed. The message names it, its value, and what is allowed.

    Notes
    -----
    The output has the dtype of the input, which Keras casts to the layer's compute dtype.

    Outside compiled functions, the output size follows the strides. In compiled functions, which
    `keras.Model.fit` uses with JAX, it follows the strides as they were last read: when the layer
    was made or loaded, or by `UpdateSizes` or `replan`. Until they are read again, the window still
    follows the strides, within that size.

    Examples
    --------
    >>> import numpy as np
    >>> from diffstride_keras import DiffStride2d
    >>> layer = DiffStride2d((2.0, 3.0))
    >>> tuple(layer(np.ones((8, 32, 32, 3), np.float32)).shape)
    (8, 16, 11, 3)
    >>> layer.compute_output_shape((None, 32, 32, 3))
    (None, 16, 11, 3)
    """

    def __init__(
        self,
        strides: float | Sequence[float] = (2.0, 2.0),
        smoothness_factor: float | None = None,
        cropping: bool = True,
        trainable: bool = True,
        shared_stride: bool = False,
        lower_limit_stride: float | None = None,
        upper_limit_stride: float | None = None,
        data_format: str | None = None,
        *,
        convention: str = DEFAULT_CONVENTION,
        multiple_of: int = 1,
        strides_regularizer: Any = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(trainable, bool):
            raise TypeError(f"trainable must be True or False, got {trainable!r}")
        if data_format is None:
            data_format = keras.config.image_data_format()
        option("data_format", data_format, DATA_FORMATS)
        with _named_as_here():
            settings = make_settings(
                axes=(-2, -1) if data_format == "channels_first" else (-3, -2),
                smoothness=smoothness_factor,
                limits=(lower_limit_stride, upper_limit_stride),
                cropping=cropping,
                multiple_of=multiple_of,
                convention=convention,
            )
            values = initial_strides(strides, 2, shared_stride, "strides")
        super().__init__(trainable=trainable, **kwargs)
        self.data_format = data_format
        self.input_spec = keras.layers.InputSpec(ndim=4)
        self.plans = PlanCache(settings, len(values), values)
        self._initial = values
        self.compiled: frozenset[Plan] = frozenset()
        self.strides = self.add_weight(
            shape=(len(values),),
            initializer=keras.initializers.Constant(np.array(values)),
            # Half precision has too few digits for a stride.
            dtype="float64" if self.variable_dtype == "float64" else "float32",
            autocast=False,
            regularizer=strides_regularizer,
            constraint=StrideBounds(self),
            name="strides",
        )
        self.built = True  # for every input shape

    def call(self, inputs: Any) -> Any:
        """Downsample a batch.

        Parameters
        ----------
        inputs : tensor, shape (B, H, W, C), or (B, C, H, W) for "channels_first"

        Returns
        -------
        tensor
            Output with the dtype of the input, and another height and width.
        """
        backend, strides = FRAMEWORK.backend, self.strides.value
        backend.check_input(inputs)
        backend.check_strides(strides, inputs)
        values = backend.host_values(strides)
        plan = self.plans.plan_of(tuple(inputs.shape), values)
        if values is None and KEEPS_TRACES:
            self.compiled |= {plan}
        return FRAMEWORK.functional.resample(plan, inputs, strides)

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """Return the output's shape for the present strides.

        Parameters
        ----------
        input_shape : sequence of int or None
            Shape of the input, with None for unknown sizes.
        """
        shape, settings = list(input_shape), self.plans.settings
        if not settings.cropping:
            return tuple(shape)
        sizes: Sequence[int | None] = (None, None)
        if all(shape[axis] is not None for axis in settings.axes):
            values = FRAMEWORK.backend.host_values(self.strides.value)
            # A copy, since asking for a shape must not count as seeing an input.
            sizes = copy.copy(self.plans).plan_of(shape, values).output_sizes  # type: ignore[arg-type]
        for axis, size in zip(settings.axes, sizes, strict=True):
            shape[axis] = size
        return tuple(shape)

    def replan(self) -> None:
        """Read the strides and update the sizes for functions compiled from now on; see `replan`.

        Raises
        ------
        ValueError
            If a stride is traced, NaN or infinite.
        """
        self.plans = self.plans.refreshed(self._read())

    def bounded(self, strides: Any) -> Any:
        """Return strides moved within the bounds; concrete ones update the output sizes.

        Parameters
        ----------
        strides : keras.Variable or tensor, shape (2,) or (1,)
        """
        bounds = self.plans.bounds_to_project()
        strides = keras.ops.convert_to_tensor(strides)
        dtype = keras.backend.standardize_dtype(strides.dtype)
        least = np.array([max(bound.floor, bound.lower) for bound in bounds], dtype)
        most = np.array([bound.upper for bound in bounds], dtype)
        strides = keras.ops.minimum(keras.ops.maximum(strides, least), most)
        values = FRAMEWORK.backend.host_values(strides)
        if values is not None:
            self.compiled = frozenset()
            self.plans = self.plans.refreshed(self._finite(values))
        return strides

    def get_config(self) -> dict[str, Any]:
        """Return the layer's arguments, with the initial strides."""
        settings = self.plans.settings
        lower, upper = settings.limits or (None, None)
        return {
            **super().get_config(),
            "strides": list(self._initial),
            "smoothness_factor": settings.smoothness,
            "cropping": settings.cropping,
            "shared_stride": len(self._initial) < 2,
            "lower_limit_stride": lower,
            "upper_limit_stride": upper,
            "data_format": self.data_format,
            "convention": settings.convention.name,
            "multiple_of": settings.multiple_of,
            "strides_regularizer": keras.regularizers.serialize(self.strides.regularizer),
        }

    def load_own_variables(self, store: Any) -> None:
        """Load the strides from a file, and read them."""
        super().load_own_variables(store)
        self.replan()

    def save_own_variables(self, store: Any) -> None:
        """Write the strides to a file. Warn if the loaded layer would have other output sizes."""
        values = self._read()
        if not all(map(self.plans.refreshed(values).holds, self.compiled)):
            warnings.warn(
                f"layer {self.name!r} is saved with the strides {list(values)}, but compiled for "
                "other output sizes than theirs, which it will have when it is loaded: train with "
                "the callback diffstride_keras.UpdateSizes(), or call "
                "diffstride_keras.replan(model)",
                stacklevel=2,
            )
        super().save_own_variables(store)

    def _read(self) -> tuple[float, ...]:
        """Return the values of the strides."""
        values = FRAMEWORK.backend.host_values(self.strides.value)
        if values is None:
            raise ValueError(
                f"strides of layer {self.name!r} must have concrete values here, got traced ones: "
                "call this outside compiled functions"
            )
        return self._finite(values)

    def _finite(self, values: tuple[float, ...]) -> tuple[float, ...]:
        if not np.isfinite(values).all():
            raise ValueError(f"strides of layer {self.name!r} must be finite, got {list(values)}")
        return values
