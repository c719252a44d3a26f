"""What all groups of options have in common, and the types of options that TOML does not have."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict
from tyro.constructors import PrimitiveConstructorSpec

__all__ = ["Options", "Stride"]


class Options(BaseModel):
    """A group of options: typed, checked, immutable; unknown names are refused.

    A field's docstring is its help on the command line.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        """Make one line of each docstring: the terminal breaks it anew."""
        super().__pydantic_init_subclass__(**options)
        for field in cls.model_fields.values():
            field.description = field.description and " ".join(field.description.split())


def _parse_stride(arguments: list[str]) -> float | tuple[float, float]:
    height, times, width = arguments[0].partition("x")
    return (float(height), float(width)) if times else float(height)


def _write_stride(stride: float | tuple[float, float]) -> list[str]:
    values = stride if isinstance(stride, tuple) else (stride,)
    return ["x".join(f"{value:g}" for value in values)]


Stride = Annotated[
    float | tuple[float, float],
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="S|HxW",
        instance_from_str=_parse_stride,
        is_instance=lambda value: isinstance(value, float | int | tuple),
        str_from_instance=_write_stride,
    ),
]
"""One stride for both axes, or those of height and width."""
