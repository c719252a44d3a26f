"""Base class of all groups of options, and option types that TOML does not have."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

__all__ = ["Budget", "Options", "Stride", "StrideSpelling"]


class Options(BaseModel):
    """A group of options: typed, checked and immutable. Unknown names are refused.

    A field's docstring is its help on the command line.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        """Join each docstring into one line; the terminal wraps it."""
        super().__pydantic_init_subclass__(**options)
        for field in cls.model_fields.values():
            field.description = field.description and " ".join(field.description.split())


def _read_stride(value: Any) -> float | tuple[float, ...]:
    """Return a stride from the text S or HxW, a number or a pair; refuse anything else."""
    pair = isinstance(value, list | tuple)
    parts = value if pair else value.split("x") if isinstance(value, str) else [value]
    try:
        strides = tuple(map(float, parts))
    except (TypeError, ValueError):
        strides = ()
    if len(strides) not in ((2,) if pair else (1, 2)) or not all(
        1 <= stride < float("inf") for stride in strides
    ):
        raise ValueError(
            "must be a stride S, or HxW for height and width, with numbers of at least 1"
        )
    return strides if len(strides) == 2 else strides[0]


StrideSpelling = BeforeValidator(_read_stride)

Stride = Annotated[float | tuple[float, float], StrideSpelling]
"""One stride for both axes, or one for the height and one for the width."""


def _read_budget(value: Any) -> float | str:
    """Return a positive number or ``"initial"``; refuse everything else."""
    if value == "initial":
        return "initial"
    try:
        budget = 0.0 if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        budget = 0.0
    if not 0 < budget < float("inf"):
        raise ValueError("must be initial or a positive number of multiply-adds")
    return budget


Budget = Annotated[float | Literal["initial"], BeforeValidator(_read_budget)]
"""Multiply-adds per sample, or ``"initial"`` for the multiply-adds at the initial strides."""
