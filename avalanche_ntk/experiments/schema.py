"""From YAML to dataclasses; invalid content is refused with its line, the found value and the nearest name.

A schema is a frozen dataclass: its annotations give the types, the metadata of its fields all else (`option`).
"""

from __future__ import annotations

import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from avalanche_ntk.errors import ArgumentError

T = TypeVar("T")
Keys = tuple[str | int, ...]


class ConfigError(ArgumentError):
    """A configuration cannot be used; the message names the line, the found value and valid ones."""

    exit_code = 2


def option(
    default: Any = MISSING,
    *,
    help: str,
    choices: Callable[[], Collection[str]] | None = None,
    open_choices: bool = False,
    least: float | None = None,
    above: float | None = None,
    shorthand: str | None = None,
    check: Callable[[Any], Any] | None = None,
    factory: Callable[[], Any] | Any = MISSING,
) -> Any:
    """Return a self-describing dataclass field.

    Args:
        default: The value if the key is absent.
        help: Its meaning, for the documentation.
        choices: Gives the allowed names.
        open_choices: Whether other names with a `:`, `/` or `.` are allowed (a path, a factory).
        least: Smallest value.
        above: Exclusive lower bound.
        shorthand: For a nested section: the key set by a plain value.
        check: Raises an ArgumentError for an invalid value of the right type.
        factory: Makes the default.

    Returns:
        The field.
    """
    metadata = {
        "help": help,
        "choices": choices,
        "open_choices": open_choices,
        "least": least,
        "above": above,
        "shorthand": shorthand,
        "check": check,
    }
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata)
    return field(metadata=metadata) if default is MISSING else field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Document:
    """The content of a YAML file, with line numbers.

    Attributes:
        data: Plain values.
        source: The file's name, for messages.
        lines: Line of each value by its keys from the root, counted from 1.
        origins: For values from elsewhere (a flag): the name of that place.
    """

    data: Any
    source: str
    lines: Mapping[Keys, int] = field(default_factory=dict)
    origins: Mapping[Keys, str] = field(default_factory=dict)

    def place(self, keys: Keys) -> str:
        """Return the place of the value of these keys."""
        for end in range(len(keys), 0, -1):
            if keys[:end] in self.origins:
                return self.origins[keys[:end]]
        for end in range(len(keys), -1, -1):
            if keys[:end] in self.lines:
                return f"{self.source}, line {self.lines[keys[:end]]}"
        return self.source

    def error(self, keys: Keys, message: str) -> ConfigError:
        """Return an error about the value of these keys."""
        return ConfigError(f"{self.place(keys)}: {message}")

    def below(self, keys: Keys) -> Document:
        """Return the part below these keys."""
        data = self.data
        for key in keys:
            data = data[key]
        n = len(keys)
        return Document(
            data,
            self.source,
            {path[n:]: line for path, line in self.lines.items() if path[:n] == keys},
            {path[n:]: origin for path, origin in self.origins.items() if path[:n] == keys},
        )

    def with_values(
        self,
        values: Mapping[str, Any],
        origin: Callable[[str], str] | str,
        shorthands: Mapping[str, str] = types.MappingProxyType({}),
    ) -> Document:
        """Return the document with further values by dotted key, which replace existing ones.

        Args:
            values: Values by dotted key, such as `model.width`.
            origin: Name of the values' place in messages, or a function from key to name.
            shorthands: By section, the key set by a plain value in its place (`model: mlp`, `probe: 32`).

        Returns:
            A new document.

        Raises:
            ConfigError: A key leads through a value that has no keys.
        """
        data = _copied(self.data if self.data is not None else {})
        if not isinstance(data, dict):
            raise self.error((), f"expected a mapping of keys to values, found {_show(data)}. Write key: value.")
        lines, origins = dict(self.lines), dict(self.origins)
        for dotted, value in values.items():
            keys: Keys = tuple(dotted.split("."))
            called = origin if isinstance(origin, str) else origin(dotted)
            here = data
            for depth, key in enumerate(keys[:-1], start=1):
                there = here.get(key)
                if depth == 1 and str(key) in shorthands and isinstance(there, (str, int)):
                    here[key] = {shorthands[str(key)]: there}
                elif there is None:
                    here[key] = {}
                elif not isinstance(there, dict):
                    place = ".".join(map(str, keys[:depth]))
                    raise ConfigError(f"{called}: {place} has no keys, found {_show(there)}. Set {place} itself.")
                here = here[key]
            here[keys[-1]] = _copied(value)
            # Keys below belong to the old value.
            for known in (lines, origins):
                for path in [p for p in known if p[: len(keys)] == keys]:
                    del known[path]
            origins[keys] = called
        return Document(data, self.source, lines, origins)


def read_document(path: str | Path) -> Document:
    """Read a YAML file.

    Args:
        path: The file.

    Returns:
        The document.

    Raises:
        ConfigError: It cannot be read or is not YAML.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror or error}): expected a YAML file. Check the path."
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text ({error.reason}): expected a YAML file in UTF-8.") from None
    return parse_document(text, str(path))


def parse_document(text: str, source: str = "the configuration") -> Document:
    """Parse YAML; duplicate keys are an error.

    Args:
        text: The YAML.
        source: Its name in messages.

    Returns:
        The document.

    Raises:
        ConfigError: It is not YAML, or holds values that are not plain.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{source}{where}: this is not YAML ({error.problem}). Correct the line.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: this is not YAML ({error}). Correct it.") from None
    lines: dict[Keys, int] = {}
    loader = yaml.SafeLoader("")
    data = None if root is None else _value(root, (), lines, loader, source, frozenset())
    return Document(data, source, lines)


def parse_value(text: str, origin: str) -> Any:
    """Parse the value of a flag as YAML: `1` is a number, `[1, 2]` a list, `null` None.

    Args:
        text: The text.
        origin: Its name in messages.

    Returns:
        The value.
    """
    return parse_document(text, origin).data


def _value(node: Any, keys: Keys, lines: dict[Keys, int], loader: Any, source: str, above: frozenset[int]) -> Any:
    line = node.start_mark.line + 1
    lines[keys] = line
    if id(node) in above:
        raise ConfigError(f"{source}, line {line}: the value contains itself by an alias. Write it out.")
    inside = above | {id(node)}
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            at = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise ConfigError(f"{source}, line {at}: merge keys (<<) are not supported. Write the values out.")
            key = loader.construct_object(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                raise ConfigError(f"{source}, line {at}: expected a name as a key, found {_show(key)}. Write a name.")
            place = (*keys, key)
            if key in found:
                first = lines[place]
                raise ConfigError(
                    f"{source}, line {at}: {key!r} is given twice, first in line {first}. Remove one of them."
                )
            found[key] = _value(value_node, place, lines, loader, source, inside)
            lines[place] = at
        return found
    if isinstance(node, yaml.SequenceNode):
        return [_value(n, (*keys, i), lines, loader, source, inside) for i, n in enumerate(node.value)]
    try:
        value = loader.construct_object(node)
    except (yaml.YAMLError, ValueError):
        value = object()
    if isinstance(value, str) and (number := _number(value)) is not None and node.style is None:
        value = number
    if value is not None and not isinstance(value, (str, bool, int, float)):
        raise ConfigError(
            f"{source}, line {line}: expected text, a number, true, false or null, found {node.value!r}. "
            "Put text in quotes."
        )
    return value


def _number(text: str) -> float | None:
    # YAML 1.1 reads 1e-3 as text, since it lacks a point; read it as a number.
    if "e" not in text.lower():
        return None
    try:
        return float(text)
    except ValueError:
        return None


def build(cls: type[T], document: Document, keys: Keys = ()) -> T:
    """Make a schema's dataclass from a document.

    Args:
        cls: The dataclass.
        document: The document.
        keys: Keys of its section.

    Returns:
        The dataclass.

    Raises:
        ConfigError: A key is unknown or missing, or a value has the wrong type or is out of range.
    """
    data = document.data
    for key in keys:
        data = data[key]
    called = ".".join(map(str, keys))
    if data is None and not keys:
        data = {}
    if not isinstance(data, Mapping):
        what = f"{called} must be" if called else "expected"
        raise document.error(keys, f"{what} a mapping of keys to values, found {_show(data)}. Write key: value.")
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    hints = get_type_hints(cls)
    for key in data:
        if key not in known:
            raise document.error((*keys, key), unknown_key(key, known, called))
    values = {}
    for name, f in known.items():
        if name in data:
            values[name] = _typed(hints[name], data[name], f, document, (*keys, name))
        elif f.default is MISSING and f.default_factory is MISSING:
            what = f"{called} needs" if called else "expected"
            raise document.error(keys, f"{what} the key {name!r}, found none. {f.metadata['help']}")
    try:
        return cls(**values)
    except ConfigError:
        raise
    except ArgumentError as error:
        raise document.error(keys, f"{called}: {error}" if called else str(error)) from None


def unknown_key(key: str, known: Collection[str], section: str) -> str:
    """Return the message about an unknown key of a section."""
    near = get_close_matches(key, list(known), n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    where = f" in {section}" if section else ""
    return f"unknown key {key!r}{where}: expected one of {', '.join(map(repr, known))}.{hint}"


def unknown_choice(name: str, found: str, choices: Collection[str], further: str = "") -> str:
    """Return the message about an unknown name."""
    near = get_close_matches(found, list(choices), n=1) or [
        c for c in choices if c.lower().replace("_", "") == found.lower().replace("_", "").replace("-", "")
    ]
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {name} {found!r}: expected one of {', '.join(map(repr, choices))}{further}.{hint}"


def _typed(hint: Any, value: Any, f: Field[Any], document: Document, keys: Keys) -> Any:
    name = ".".join(map(str, keys))
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        options = [option for option in inner if option is not type(None)]
        listed = [option for option in options if get_origin(option) in (tuple, list)]
        chosen = listed[0] if listed and isinstance(value, list) else next(o for o in options if o not in listed)
        return _typed(chosen, value, f, document, keys)
    if is_dataclass(hint):
        shorthand = f.metadata.get("shorthand")
        if shorthand and isinstance(value, (str, int, float)) and not isinstance(value, bool):
            document = Document(_with(document.data, keys, {shorthand: value}), document.source, document.lines,
                                document.origins)  # fmt: skip
        return build(hint, document, keys)  # type: ignore[arg-type]
    if origin in (tuple, list):
        if not isinstance(value, list):
            raise document.error(keys, f"{name} must be a list, found {_show(value)}. Write [a, b].")
        items = [_typed(inner[0], item, f, document, (*keys, i)) for i, item in enumerate(value)]
        return tuple(items) if origin is tuple else items
    if origin is dict:
        if not isinstance(value, dict):
            raise document.error(keys, f"{name} must be a mapping, found {_show(value)}. Write key: value.")
        return dict(value)
    if hint is Any:
        return value
    return _scalar(hint, value, f, document, keys, name)


_CALLED = {int: "an integer", float: "a number", bool: "true or false", str: "text"}


def _scalar(hint: type, value: Any, f: Field[Any], document: Document, keys: Keys, name: str) -> Any:
    good = {
        bool: isinstance(value, bool),
        int: isinstance(value, int) and not isinstance(value, bool),
        float: isinstance(value, (int, float)) and not isinstance(value, bool),
        str: isinstance(value, str),
    }[hint]
    if hint is int and isinstance(value, float) and value.is_integer():
        good, value = True, int(value)
    if not good:
        raise document.error(keys, f"{name} must be {_CALLED[hint]}, found {_show(value)}.{_example(f)}")
    if hint is float:
        value = float(value)
    least, above = f.metadata.get("least"), f.metadata.get("above")
    if hint in (int, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise document.error(keys, f"{name} must be a finite number, found {value}.{_example(f)}")
        if least is not None and value < least:
            raise document.error(keys, f"{name} must be at least {least:g}, found {value}.{_example(f)}")
        if above is not None and value <= above:
            raise document.error(keys, f"{name} must be above {above:g}, found {value}.{_example(f)}")
    choices = f.metadata.get("choices")
    if choices is not None and value not in (names := choices()):
        free = f.metadata.get("open_choices")
        if not (free and any(mark in value for mark in ":/.")):
            further = ", or a path or module:factory" if free else ""
            raise document.error(keys, unknown_choice(name, value, names, further))
    if (check := f.metadata.get("check")) is not None:
        try:
            check(value)
        except ArgumentError as error:
            raise document.error(keys, str(error)) from None
    return value


def _example(f: Field[Any]) -> str:
    if f.default is MISSING or f.default is None:
        return ""
    return f" The default is {_as_yaml(f.default)}."


def _show(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    kind = "the text " if isinstance(value, str) else "the number " if isinstance(value, (int, float)) else ""
    return f"{kind}{value!r}"


def _with(data: Any, keys: Keys, value: Any) -> Any:
    if not keys:
        return value
    copy: Any = list(data) if isinstance(data, list) else dict(data)
    copy[keys[0]] = _with(data[keys[0]], keys[1:], value)
    return copy


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _copied(v) for k, v in value.items()}
    return [_copied(v) for v in value] if isinstance(value, (list, tuple)) else value


def as_plain(value: Any) -> Any:
    """Return a schema's dataclass as plain values, with every key.

    Args:
        value: The dataclass.

    Returns:
        Dictionaries, lists and plain values.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: as_plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {k: as_plain(v) for k, v in value.items()}
    return [as_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def describe(cls: Any, prefix: str = "") -> Sequence[tuple[str, str, str, str]]:
    """Return one row per key of a schema: dotted name, type, default, meaning; sections before their keys.

    Args:
        cls: The dataclass.
        prefix: Prefix of each name.

    Returns:
        The rows.
    """
    rows = []
    hints = get_type_hints(cls)
    for f in fields(cls):
        hint = hints[f.name]
        nested = [t for t in (hint, *get_args(hint)) if is_dataclass(t)]
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        shown = "required" if default is MISSING else "…" if is_dataclass(default) else _as_yaml(default)
        rows.append((prefix + f.name, "section" if nested else _type_name(hint), shown, f.metadata["help"]))
        if nested:
            rows += describe(nested[0], f"{prefix}{f.name}.")
    return rows


def _type_name(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if t is type(None) else _type_name(t) for t in inner)
    if origin in (tuple, list):
        return f"list of {_type_name(inner[0])}"
    return "mapping" if origin is dict else {int: "integer", float: "number", bool: "true/false", str: "text"}[hint]


def _as_yaml(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(_as_yaml, value)) + "]"
    if isinstance(value, dict):
        return "{}" if not value else str(value)
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)
