"""What all groups of options have in common."""

from pydantic import BaseModel, ConfigDict

__all__ = ["Options"]


class Options(BaseModel):
    """A group of options: typed, checked, immutable; unknown names are refused.

    A field's docstring is its help on the command line.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
