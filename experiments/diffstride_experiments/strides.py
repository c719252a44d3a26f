"""Strides among the options."""

from typing import Annotated

from tyro.constructors import PrimitiveConstructorSpec

__all__ = ["Stride", "stride_text"]


def _parse(arguments: list[str]) -> float | tuple[float, float]:
    height, times, width = arguments[0].partition("x")
    return (float(height), float(width)) if times else float(height)


def stride_text(stride: float | tuple[float, float]) -> str:
    """Write a stride as the command line takes it, ``3`` or ``3x2.5``."""
    return "x".join(f"{value:g}" for value in (stride if isinstance(stride, tuple) else (stride,)))


Stride = Annotated[
    float | tuple[float, float],
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="S|HxW",
        instance_from_str=_parse,
        is_instance=lambda value: isinstance(value, float | int | tuple),
        str_from_instance=lambda value: [stride_text(value)],
    ),
]
"""One stride for both axes, or those of height and width."""
