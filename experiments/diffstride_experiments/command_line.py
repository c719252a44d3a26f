"""Options on the command line: reading them, explaining what is wrong with them, their help."""

import difflib
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from diffstride_experiments.entry import run_command
from diffstride_experiments.errors import UsageError
from diffstride_experiments.options import Options, StrideSpelling

__all__ = [
    "explanations",
    "help_text",
    "merged",
    "read_arguments",
    "read_options",
    "run_script",
    "similar",
]

Values = dict[str, Any]
OptionsT = TypeVar("OptionsT", bound=Options)

# The longest value that an error shows.
SHOWN = 80


@dataclass(frozen=True)
class _Option:
    """One option of a group, where groups of several kinds may have it."""

    name: str
    field: FieldInfo
    kind: str = ""

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    @property
    def types(self) -> list[Any]:
        """What it may be, None left out."""
        annotation = self.field.annotation
        union = get_origin(annotation) in (Union, UnionType)
        kinds = get_args(annotation) if union else [annotation]
        return [kind for kind in kinds if kind is not type(None)]

    @property
    def may_be_none(self) -> bool:
        return type(None) in get_args(self.field.annotation)

    @property
    def is_flag(self) -> bool:
        return self.types == [bool]

    @property
    def is_list(self) -> bool:
        return any(get_origin(kind) is tuple for kind in self.types)

    @property
    def choices(self) -> tuple[Any, ...]:
        """What it, or each entry of a list, is one of; empty where that is no list of values."""
        entries = [get_args(kind)[0] if get_origin(kind) is tuple else kind for kind in self.types]
        return get_args(entries[0]) if get_origin(entries[0]) is Literal else ()

    @property
    def metavar(self) -> str:
        if self.is_flag:
            return ""
        kind = self.types[0]
        arguments = get_args(kind) if self.is_list else (kind,)
        names = [_metavar(argument) for argument in arguments if argument is not Ellipsis]
        return " ".join([f"[{names[0]} ...]"] if Ellipsis in arguments else names)


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    if StrideSpelling in getattr(kind, "__metadata__", ()):
        return "S|HxW"
    kind = getattr(kind, "__origin__", kind)  # of an annotated type
    return {int: "INT", float: "FLOAT", Path: "PATH"}.get(kind, "TEXT")


def _groups(field: FieldInfo) -> list[type[BaseModel]]:
    """Return the groups of options that a field may be; more than one are kinds, known by name."""
    kinds = get_args(field.annotation) or (field.annotation,)
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]


def _options(group: type[BaseModel], prefix: str = "", kind: str = "") -> Iterator[_Option]:
    for name, field in group.model_fields.items():
        groups = _groups(field)
        if not groups:
            yield _Option(prefix + name, field, kind)
        inside = f"{prefix}{name}."
        if len(groups) == 1:
            yield from _options(groups[0], inside)
        elif groups:
            yield from _options_of_kinds(groups, inside)


def _options_of_kinds(groups: Sequence[type[BaseModel]], prefix: str) -> Iterator[_Option]:
    """Return the options that all kinds have, and then those of each."""
    names = {group.model_fields["name"].default: group for group in groups}
    first = groups[0].model_fields
    kind = FieldInfo(
        annotation=Literal[tuple(names)], default=..., description=first["name"].description
    )
    yield _Option(f"{prefix}name", kind)
    shared = {name for name in first if all(name in group.model_fields for group in groups)}
    for option in _options(groups[0], prefix):
        if (name := option.name.removeprefix(prefix)) in shared - {"name"}:
            yield option
    for name, group in names.items():
        for option in _options(group, prefix, name):
            if option.name.removeprefix(prefix) not in shared:
                yield option


def read_arguments(group: type[BaseModel], arguments: Sequence[str]) -> Values:
    """Read options from a command line, as texts that are to be validated.

    Parameters
    ----------
    group : type
        All options.
    arguments : sequence of str
        ``--name value``, ``--name=value`` or, for flags, ``--name`` and ``--no-name``; a name is
        that of an option in a group of options after the group's and a dot.

    Returns
    -------
    dict
        Values of the options that were given, in dictionaries for the groups.

    Raises
    ------
    UsageError
        If there is no such option, or it has another number of values.
    """
    options = {option.name: option for option in reversed(list(_options(group)))}
    negations = {_negated(name): name for name, option in options.items() if option.is_flag}
    values: Values = {}
    for flag, given in _split(arguments):
        spelled = flag.removeprefix("--").replace("-", "_")
        name = negations.get(spelled, spelled)
        if not flag.startswith("--") or name not in options:
            known = {options[name].flag for name in options}
            raise UsageError(f"{flag}: there is no such option{similar(flag, known)}")
        place, (*outer, last) = values, name.split(".")
        for part in outer:
            place = place.setdefault(part, {})
        place[last] = _value(options[name], flag, given, negated=spelled in negations)
    return values


def _split(arguments: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Return each option, and the values behind it."""
    found: list[tuple[str, list[str]]] = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag.startswith("--") and len(flag) > 2:
            found.append((flag, [value] if equals else []))
        elif found:
            found[-1][1].append(argument)
        else:
            found.append((argument, []))
    return iter(found)


def _negated(name: str) -> str:
    *outer, last = name.split(".")
    return ".".join([*outer, f"no_{last}"])


def _value(option: _Option, flag: str, given: list[str], *, negated: bool) -> Any:
    if option.is_flag and not given:
        return not negated
    if option.may_be_none and given in (["None"], ["none"]):
        return None
    known = {str(choice): choice for choice in option.choices}
    texts = [known.get(text, text) for text in given]
    if option.is_list:
        return texts
    if negated or len(given) != 1:
        number = "no value" if negated else "one value"
        what = f" {option.metavar}" if option.metavar else ""
        raise UsageError(f"{flag}: give {number}{what}, got {' '.join(given) or 'none'}.")
    return texts[0]


def read_options(group: type[OptionsT], arguments: Sequence[str], usage: str) -> OptionsT | None:
    """Read all options of a command that has no recipes.

    Parameters
    ----------
    group : type
        The options. A first argument that is no option is that of the name ``name``.
    arguments : sequence of str
        As of `read_arguments`.
    usage : str
        How the command is called.

    Returns
    -------
    Options or None
        None if help was asked for, which was printed.

    Raises
    ------
    UsageError
        For options that are unknown or not allowed.
    """
    if {"-h", "--help"} & set(arguments):
        print(help_text(group, {}, usage), end="")
        return None
    options = list(arguments)
    has_name = "name" in group.model_fields and options and not options[0].startswith("-")
    named = {"name": options.pop(0)} if has_name else {}
    given = named | read_arguments(group, options)
    try:
        return group.model_validate(given)
    except ValidationError as error:
        raise UsageError(explanations(error, group, given, "")) from error


def run_script(group: type[Options], main: Callable[..., object]) -> None:
    """Run a script: errors are one line each, see `run_command`.

    Parameters
    ----------
    group : type
        Its options.
    main : callable
        Called with the options by name.
    """

    def run() -> None:
        options = read_options(group, sys.argv[1:], f"{Path(sys.argv[0]).name} [OPTIONS]")
        if options is not None:
            main(**dict(options))

    run_command(run, "Begin anew")


def merged(base: Values, changes: Mapping[str, Any]) -> Values:
    """Return values with changes, table by table.

    Parameters
    ----------
    base, changes : dict
        Values of options, in dictionaries for the groups. Where the changes choose another kind of
        data, nothing is kept of the options for the kind before.
    """
    result = dict(base)
    for name, value in changes.items():
        table = result.get(name)
        if isinstance(value, dict) and isinstance(table, dict):
            same = name != "data" or value.get("name", table.get("name")) == table.get("name")
            result[name] = merged(table if same else {}, value)
        else:
            result[name] = value
    return result


def explanations(
    error: ValidationError, group: type[BaseModel], given: Mapping[str, Any], source: str
) -> str:
    """Say in one line what is wrong with the values of options.

    Parameters
    ----------
    error : ValidationError
        What was found.
    group : type
        All options.
    given : dict
        Values that are from the command line.
    source : str
        Where the others are from, such as ``"recipe PATH: "``.
    """
    found: dict[str, str] = {}
    for detail in error.errors():
        name, text = _explanation(detail, group)
        # Without a recipe, what is not given is an option too.
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
    """Return the name of an option, and what is wrong with it."""
    place = list(detail["loc"])
    if place[:1] == ["data"]:
        del place[1:2]  # the kind of data, which is no option
    name = ".".join(map(str, place))
    context, value = detail.get("ctx", {}), detail["input"]
    match detail["type"]:
        case "extra_forbidden":
            known = {part for option in _options(group) for part in option.name.split(".")}
            return name, f": there is no such option{similar(str(place[-1]), known)}"
        case "union_tag_not_found":
            return f"{name}.name", " must be given"
        case "union_tag_invalid":
            return f"{name}.name", f": must be {context['expected_tags']}, got {context['tag']!r}"
        case "missing":
            return name, f" must be given{_allowed(group, name)}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return name, f": must be a table of options, got {_shown(value)}"
        case "tuple_type":
            return name, f": must be a list, got {_shown(value)}"
        case "path_type":
            return name, f": must be a path, got {_shown(value)}"
    message = detail["msg"].removeprefix("Value error, ")
    message = re.sub(r"^Input should (be|have)", r"must \1", message)
    message = re.sub(r", (unable to|got a number with) .*", "", message)
    if not isinstance(value, dict):
        return name, f": {message}, got {_shown(value)}"
    # It is about options of a group, of which it names the first.
    first = message.partition(" ")[0]
    if re.fullmatch(r"[a-z_.]+", first) and ("_" in first or " must " in message):
        name = f"{name}.{first}" if name else first
        return name, message.removeprefix(first)
    return name, f": {message}"


def _allowed(group: type[BaseModel], name: str) -> str:
    """Return what an option is one of, if it is one of some values."""
    choices = next((each.choices for each in _options(group) if each.name == name), ())
    return f": {', '.join(map(repr, choices))}" if choices else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def similar(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean NAME?"`` for the known name that is most like one, if any is."""
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def help_text(group: type[BaseModel], values: Values, usage: str) -> str:
    """Return the help of a command.

    Parameters
    ----------
    group : type
        All options; its docstring tells what the command does.
    values : dict
        What the options are if they are not given.
    usage : str
        How the command is called.
    """
    width = min(shutil.get_terminal_size().columns, 100)
    wrap = textwrap.TextWrapper(width, break_on_hyphens=False, break_long_words=False)
    paragraphs = (group.__doc__ or "").split("\n\n")
    lines = [f"usage: {usage}"]
    for paragraph in paragraphs:
        lines += ["", *wrap.wrap(" ".join(paragraph.split()))]
    wrap.initial_indent = wrap.subsequent_indent = " " * 6
    heading = None
    for option in _options(group):
        if heading != (heading := _heading(option)):
            lines += ["", f"{heading}:"]
        lines.append(f"  {option.flag} {option.metavar}".rstrip())
        lines += wrap.wrap(f"{option.field.description or ''} {_default(option, values)}")
    return "\n".join(lines) + "\n"


def _heading(option: _Option) -> str:
    outer = option.name.rpartition(".")[0]
    kind = f", for --{outer}.name {option.kind}" if option.kind else ""
    return f"{outer or 'options'}{kind}"


def _default(option: _Option, values: Values) -> str:
    *outer, last = option.name.split(".")
    place = values
    for part in outer:
        place = place.get(part, {})
    if (option.kind and place.get("name") != option.kind) or last not in place:
        if option.field.is_required():
            return "(to be given)"
        value = option.field.get_default(call_default_factory=True)
    else:
        value = place[last]
    if option.is_list and value is not None:
        return f"(default: {' '.join(map(_spelled, value)) or 'none given'})"
    return f"(default: {_spelled(value)})"


def _spelled(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "x".join(map(_spelled, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
