"""Options on the command line: reading them, explaining errors in them, and their help."""

import argparse
import difflib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from diffstride_experiments.entry import run_command
from diffstride_experiments.errors import UsageError
from diffstride_experiments.options import Options, StrideSpelling

__all__ = ["explanations", "read_arguments", "read_options", "run_script", "similar"]

Values = dict[str, Any]
OptionsT = TypeVar("OptionsT", bound=Options)

# Characters of a value that an error shows.
SHOWN = 80

# What each of pydantic's type checks expects, by type of error.
EXPECTED = {
    "model_type": "a table of options",
    "model_attributes_type": "a table of options",
    "dict_type": "a table of options",
    "tuple_type": "a list",
    "path_type": "a path",
}


@dataclass(frozen=True)
class _Option:
    """An option. If its group has several kinds, each kind may have its own field for it."""

    name: str
    fields: Mapping[str, FieldInfo]
    in_all_kinds: bool = True

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    @property
    def types(self) -> list[Any]:
        """Types that its value may have, over all kinds."""
        return [kind for field in self.fields.values() for kind in _types(field)]

    @property
    def choices(self) -> list[Any]:
        """Allowed values, or allowed entries of a list; empty if any value is allowed."""
        entries = [get_args(kind)[0] if get_origin(kind) is tuple else kind for kind in self.types]
        literals = [get_args(entry) for entry in entries if get_origin(entry) is Literal]
        return list(dict.fromkeys(choice for literal in literals for choice in literal))

    def add_to(self, section: argparse._ActionsContainer, values: Values) -> None:
        """Add the option to a section of a parser. Its values are validated later."""
        described: dict[str, Any] = {"dest": self.name, "help": self._help(values)}
        kind = self.types[0]
        if kind is bool:
            section.add_argument(self.flag, action=argparse.BooleanOptionalAction, **described)
            return
        known: dict[str, Any] = {"None": None, "none": None} if NoneType in self.types else {}
        known |= {str(choice): choice for choice in self.choices}
        entries = get_args(kind) if get_origin(kind) is tuple else ()
        metavars = [f"{{{','.join(map(str, self.choices))}}}"] if self.choices else []
        if not self.choices or isinstance(kind, type):
            metavars.append(_metavar(*entries[:1] or [kind]))
        section.add_argument(
            self.flag,
            nargs="*" if Ellipsis in entries else len(entries) or None,
            type=lambda text: known.get(text, text),
            metavar="|".join(metavars),
            **described,
        )

    def _help(self, values: Values) -> str:
        *outer, last = self.name.split(".")
        for part in outer:
            values = values[part] if isinstance(values.get(part), dict) else {}
        now = values.get("name")
        kinds: dict[str | None, list[str]] = {}
        for kind, field in self.fields.items():
            kinds.setdefault(field.description, []).append(kind)
        texts = []
        for text, names in kinds.items():
            kind = now if now in names else names[0]
            default = _default(self.fields[kind], last, values if kind in ("", now) else {})
            texts.append(f"{text} ({default})")
            if not self.in_all_kinds:
                texts[-1] = f"{', '.join(names)}: {texts[-1]}"
        return " ".join(texts).replace("%", "%%")


def _types(field: FieldInfo) -> tuple[Any, ...]:
    kind = field.annotation
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _metavar(kind: Any) -> str:
    if StrideSpelling in getattr(kind, "__metadata__", ()):
        return "S|HxW"
    kind = getattr(kind, "__origin__", kind)  # the type inside Annotated
    return {int: "INT", float: "FLOAT", Path: "PATH"}.get(kind, "TEXT")


def _default(field: FieldInfo, name: str, given: Values) -> str:
    if name not in given and field.is_required():
        return "required"
    value = given.get(name, field.get_default(call_default_factory=True))
    return f"default: {_spelled(value, ' ') or 'none'}"


def _spelled(value: Any, between: str = "x") -> str:
    if isinstance(value, tuple | list):
        return between.join(map(_spelled, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _options(groups: Mapping[str, type[BaseModel]], prefix: str = "") -> Iterator[_Option]:
    """Yield the options of groups. If there are several groups, a name chooses one of them."""
    for name in dict.fromkeys(name for group in groups.values() for name in group.model_fields):
        fields = {kind: group.model_fields.get(name) for kind, group in groups.items()}
        found = {kind: field for kind, field in fields.items() if field is not None}
        option = _Option(prefix + name, found, len(found) == len(groups))
        inner = [kind for kind in option.types if isinstance(kind, type(BaseModel))]
        if len(inner) > 1:
            kinds = {group.model_fields["name"].default: group for group in inner}
            yield from _options(kinds, f"{option.name}.")
        elif inner:
            yield from _options({"": inner[0]}, f"{option.name}.")
        else:
            yield option


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))


def read_arguments(
    group: type[BaseModel], arguments: Sequence[str], usage: str, values: Values
) -> Values:
    """Read options from a command line, as text that has yet to be validated.

    Parameters
    ----------
    group : type
        All options; its docstring says what the command does. The name of an option is the name of
        its group, a dot and its own name, with underscores or hyphens.
    arguments : sequence of str
        The command line.
    usage : str
        Usage line of the help.
    values : dict
        Values of the options that are not given, to show in the help.

    Returns
    -------
    dict
        Values of the options that were given, in one dictionary per group.

    Raises
    ------
    UsageError
        If an option does not exist or has the wrong number of values.
    SystemExit
        After showing the help, if it was asked for.
    """
    parser = _Parser(
        usage=usage,
        description=inspect.cleandoc(group.__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    sections: dict[str, argparse._ActionsContainer] = {"": parser}
    for option in _options({"": group}):
        outer = option.name.rpartition(".")[0]
        if outer not in sections:
            sections[outer] = parser.add_argument_group(outer)
        option.add_to(sections[outer], values)
    given, unknown = parser.parse_known_args(
        [re.sub("^--[^=]+", lambda flag: flag[0].replace("_", "-"), text) for text in arguments]
    )
    if unknown:
        flag = unknown[0].partition("=")[0]
        if flag.startswith("-"):
            known = {option.flag for option in _options({"": group})}
            raise UsageError(f"{flag}: there is no such option{similar(flag, known)}")
        raise UsageError(f"{unknown[0]}: no option takes this value")
    result: Values = {}
    for name, value in vars(given).items():
        place, (*groups, last) = result, name.split(".")
        for part in groups:
            place = place.setdefault(part, {})
        place[last] = value
    return result


def read_options(group: type[OptionsT], arguments: Sequence[str], usage: str) -> OptionsT:
    """Read all options of a command that has no recipes.

    Parameters
    ----------
    group : type
        The options. A first argument that is not an option is the value of ``name``.
    arguments, usage : sequence of str, str
        See `read_arguments`.

    Raises
    ------
    UsageError
        If options are unknown or not allowed.
    SystemExit
        After showing the help, if it was asked for.
    """
    if "name" in group.model_fields and arguments and not arguments[0].startswith("-"):
        arguments = ["--name", *arguments]
    given = read_arguments(group, arguments, usage, {})
    try:
        return group.model_validate(given)
    except ValidationError as error:
        raise UsageError(explanations(error, group, given, "")) from error


def run_script(group: type[Options], main: Callable[..., object]) -> None:
    """Run a script and report each error on one line, see `run_command`.

    Parameters
    ----------
    group : type
        Options of the script.
    main : callable
        Main function. It is called with the options as keyword arguments.
    """

    def run() -> None:
        usage = f"{Path(sys.argv[0]).name} [OPTIONS]"
        main(**dict(read_options(group, sys.argv[1:], usage)))

    run_command(run, "Start again")


def explanations(
    error: ValidationError, group: type[BaseModel], given: Mapping[str, Any], source: str
) -> str:
    """Explain in one line what is wrong with the values of options.

    Parameters
    ----------
    error : ValidationError
        Errors that validation found.
    group : type
        All options.
    given : dict
        Values from the command line.
    source : str
        Where the other values come from, such as ``"recipe PATH: "``.
    """
    found: dict[str, str] = {}
    for detail in error.errors():
        name, text = _explanation(detail, group)
        # Without a recipe, every value is one of a command-line option, given or not.
        if not source or _is_given(given, name):
            entry = re.sub(r"\.\d+$", "", name).replace("_", "-")
            found.setdefault(f"--{entry}", text)
        else:
            found.setdefault(f"{source}{name}", text)
    return "; ".join(f"{name}{text}" for name, text in found.items())


def _is_given(given: Mapping[str, Any], name: str) -> bool:
    place: Any = given
    for part in name.split("."):
        if not isinstance(place, Mapping):
            return True
        if part not in place:
            return False
        place = place[part]
    return bool(name)


def _explanation(detail: Any, group: type[BaseModel]) -> tuple[str, str]:
    """Return the name of an option and an explanation of its error."""
    place = list(detail["loc"])
    if place[:1] == ["data"]:
        del place[1:2]  # the kind of data, which is not part of the option's name
    name = ".".join(map(str, place))
    options = {option.name: option for option in _options({"": group})}
    context, value = detail.get("ctx", {}), detail["input"]
    if expected := EXPECTED.get(detail["type"]):
        return name, f": must be {expected}, got {_shown(value)}"
    match detail["type"]:
        case "extra_forbidden":
            if name in options:
                kinds = ", ".join(options[name].fields)
                return name, f": there is no such option for {detail['loc'][1]}, only for {kinds}"
            known = {part for option in options for part in option.split(".")}
            return name, f": there is no such option{similar(str(place[-1]), known)}"
        case "union_tag_not_found":
            return f"{name}.name", " must be given"
        case "union_tag_invalid":
            return f"{name}.name", f": must be {context['expected_tags']}, got {context['tag']!r}"
        case "missing" if isinstance(place[-1], int):
            return ".".join(map(str, place[:-1])), f": must have more entries, got {_shown(value)}"
        case "missing":
            allowed = ", ".join(map(repr, options[name].choices)) if name in options else ""
            return name, f" must be given: {allowed}" if allowed else " must be given"
    message = detail["msg"].removeprefix("Value error, ")
    message = re.sub(r"^Input should (be|have)", r"must \1", message)
    message = re.sub(r"^Tuple should have at most (\d+) .*", r"must have \1 entries", message)
    message = re.sub(r", (unable to|got a number with) .*", "", message)
    if not isinstance(value, dict):
        return name, f": {message}, got {_shown(value)}"
    # The message is about several options of a group and begins with the name of the first one.
    first = message.partition(" ")[0]
    if re.fullmatch(r"[a-z_.]+", first) and ("_" in first or " must " in message):
        name = f"{name}.{first}" if name else first
        return name, message.removeprefix(first)
    return name, f": {message}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def similar(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean NAME?"`` for the most similar known name, if any is similar."""
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
