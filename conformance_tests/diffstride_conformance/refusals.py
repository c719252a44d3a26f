"""Making a wrong call, and checking how it is refused."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np

from diffstride_conformance.bad_input import BadCall, FrameworkArray, all_bad_calls
from diffstride_conformance.comparison import Mismatch
from diffstride_conformance.implementation import DTYPES, Implementation, offers
from diffstride_core import NothingToCropWarning


def possible_calls(implementation: Implementation) -> list[BadCall]:
    """Return the wrong calls whose function and dtypes an implementation has."""
    missing = set(DTYPES) - set(implementation.dtypes(implementation.devices()[0]))
    return [
        call
        for call in all_bad_calls()
        if offers(implementation, call.operation) and not call.dtypes & missing
    ]


def refusal(implementation: Implementation, call: BadCall) -> str:
    """Make a wrong call and return its error message, in words that fit any framework.

    Raises
    ------
    Mismatch
        If the call is accepted or raises another error, if the message does not mention what it
        must, or if the call changes its arguments.
    """
    with warnings.catch_warnings(), implementation.double_precision():
        # If warnings are errors, a warning must not be what stops a wrong call.
        warnings.simplefilter("ignore", NothingToCropWarning)
        arguments, options = call.build(implementation)
        before = _bits(call, arguments, options, implementation)
        try:
            getattr(implementation, call.operation)(*arguments, **options)
        except Exception as caught:
            error = caught
        else:
            raise Mismatch(f"accepted, expected {call.error.__name__}")
        after = _bits(call, arguments, options, implementation)
    message = _neutral(str(error))
    if type(error) is not call.error:
        raise Mismatch(f"{type(error).__name__}: {message}; expected {call.error.__name__}")
    if missing := [text for text in call.mentions if text not in message]:
        raise Mismatch(f"the message {message!r} does not mention {missing}")
    if after != before:
        raise Mismatch("the call changed its arguments")
    message = re.sub(r", one of (b?float\d+, )+", ", ", message)  # the dtypes that a framework has
    return re.sub(r"(x|weight|bias) must be a [\w.]+,", r"\1 must be a ARRAY,", message)


def _neutral(message: str) -> str:
    """Remove the framework's name before the name of a dtype."""
    return re.sub(r"\b\w+\.(?=(?:u?int|b?float|complex)\d+\b|bool\b)", "", message)


def _bits(
    call: BadCall, arguments: tuple[Any, ...], options: dict[str, Any], implementation: Any
) -> list[Any]:
    """Describe the arguments of a call, down to the bits of the arrays."""

    def described(template: Any, value: Any) -> Any:
        if isinstance(template, FrameworkArray):
            host = implementation.to_host(value)
            return implementation.dtype_name(value), host.shape, host.tobytes()
        if isinstance(template, np.ndarray):
            return value.dtype, value.shape, value.tobytes()
        if isinstance(template, list | tuple):
            return [described(*pair) for pair in zip(template, value, strict=True)]
        return repr(value)

    return [
        described(call.arguments, arguments),
        described(list(call.options.values()), list(options.values())),
    ]
