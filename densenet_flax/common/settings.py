"""Blocks of a configuration as frozen dataclasses, with every key and value checked.

@dataclasses.dataclass(frozen=True)
class HeadSettings(Settings):
    activation: str = choice("relu", ("relu", "gelu"))
    dropout: float = setting(0.5, "a number from 0 to below 1", lambda rate: 0 <= rate < 1)

HeadSettings.from_config({"dropout": 2.0}, "config.head")
# InputError: config.head.dropout=2.0: expected a number from 0 to below 1
"""

import ast
import contextlib
import dataclasses
import difflib
import math
import reprlib
import types
import typing
from collections.abc import Callable, Collection, Mapping
from numbers import Integral, Real
from typing import Any, Self

from densenet_flax.common.errors import InputError, errors_in

# Metadata of a field that holds a block whose keys stand beside its own in the configuration.
INLINE = {"inline": True}

# Shows a value in a message: a file may hold a list of a million numbers.
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200

_NUMBERS: dict[Any, Any] = {int: Integral, float: Real}  # NumPy's numbers are these, too
_UNIONS = (typing.Union, types.UnionType)
_NAMES = {bool: "True or False", int: "a whole number", float: "a number", str: "a string"}
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
# What other programs call our keys.
_SYNONYMS = {
    "epochs": "duration",
    "steps": "duration",
    "pretrained": "weights",
    "checkpoint": "weights",
    "arch": "name",
    "architecture": "name",
    "backbone": "name",
}
_PLURALS = {int: "whole numbers", float: "numbers", str: "strings"}


def setting(default: Any, expected: str, allowed: Callable[[Any], bool]) -> Any:
    """A field that takes values that are `allowed`; error messages say what was `expected`."""
    rule = {"expected": lambda: expected, "allowed": allowed}
    return dataclasses.field(default=default, metadata=rule)


def choice(default: Any, options: Collection[Any]) -> Any:
    """A field that takes one of `options`, which are looked up when a value is checked."""
    rule = {
        "expected": lambda: f"one of {', '.join(map(repr, options))}",
        "allowed": lambda value: value in options,
    }
    return dataclasses.field(default=default, metadata=rule)


def at_least(minimum: int, *, default: float, expected: str = "") -> Any:
    """A field that takes finite numbers from `minimum` on."""
    expected = expected or f"a whole number of {minimum} or more"
    return setting(default, expected, lambda value: minimum <= value < math.inf)


def between(low: float, high: float, *, default: float) -> Any:
    """A field that takes numbers from `low` to `high`, both included."""
    expected = f"a number from {low:g} to {high:g}"
    return setting(default, expected, lambda value: low <= value <= high)


@dataclasses.dataclass(frozen=True)
class Settings:
    """A block of a configuration: subclasses are frozen dataclasses with a field for each key."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if "allowed" in field.metadata and not field.metadata["allowed"](value):
                expected = field.metadata["expected"]()
                raise InputError(f"{field.name}={_SHORT.repr(value)}: expected {expected}")

    @classmethod
    def from_config(cls, block: Mapping[str, Any], path: str, **computed: Any) -> Self:
        """Reads a block, a mapping or a `ConfigDict`; keys that it lacks take their default.

        Args:
          block: the keys and their values.
          path: what error messages call the block, such as `'config.model'`.
          **computed: fields that are not read from the block.

        Raises:
          InputError: an unknown key, or a value of the wrong type or out of range.
        """
        hints, values, rest = typing.get_type_hints(cls), dict(computed), dict(block)
        for field in dataclasses.fields(cls):
            name, hint = field.name, hints[field.name]
            if name in computed:
                continue
            if "inline" in field.metadata:
                inner = {key: rest.pop(key) for key in hint.keys() if key in rest}  # noqa: SIM118
                values[name] = hint.from_config(inner, path)
            elif name in rest:
                values[name] = _convert(rest.pop(name), hint, f"{path}.{name}")
            elif field.default is field.default_factory is dataclasses.MISSING:
                raise InputError(f"{path}.{name}: missing; expected {_describe(hint)}")
        for key in rest:
            known = [name for name in cls.keys() if name not in computed]  # noqa: SIM118
            raise InputError(f"{path}.{key}: no such key; {suggest(key, known)}")
        with errors_in(f"{path}."):
            return cls(**values)

    @classmethod
    def hints(cls) -> dict[str, Any]:
        """The types of the values by key, as the block has them in a configuration."""
        hints = typing.get_type_hints(cls)
        by_key: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            hint = hints[field.name]
            by_key.update(hint.hints() if "inline" in field.metadata else {field.name: hint})
        return by_key

    @classmethod
    def keys(cls) -> list[str]:
        """The keys of the block in a configuration."""
        return list(cls.hints())


def suggest(key: str, known: Collection[str]) -> str:
    """What a message advises for a key that is none of the known ones."""
    close = nearest(key, known)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"the keys are {', '.join(known)}"


def nearest(key: str, known: Collection[str]) -> list[str]:
    """The known keys that somebody who wrote `key` may have meant, at most three."""
    lower = key.lower()
    if lower in _SYNONYMS and _SYNONYMS[lower] in known:
        return [_SYNONYMS[lower]]
    scores = {k: difflib.SequenceMatcher(None, k, lower).ratio() for k in known}
    best = max(scores.values(), default=0)
    close = [
        k for k in sorted(known, key=lambda k: -scores[k]) if scores[k] >= max(0.6, best - 0.2)
    ]
    # An abbreviation such as 'lr', or a part of the name such as 'rate', is too short for that.
    short = [k for k in known if lower in ("".join(w[:1] for w in k.split("_")), *k.split("_"))]
    return list(dict.fromkeys([*close[:1], *short, *close[1:]]))[:3]


def parse_text(text: str, hint: Any, current: Any = None) -> Any:
    """The value that a text from the command line stands for.

    Args:
      text: such as '0.5', 'true', '(64, 64)', '64,64' or 'head,finetune'.
      hint: the type of the value.
      current: the value that it replaces, which decides where a type allows text and numbers.

    Returns:
      A value of that type, or the text where it is none, which `from_config` then rejects.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in _UNIONS:
        options = [str] if str in arguments and isinstance(current, str) else arguments
        values = [parse_text(text, option) for option in options]
        return next((value for value in values if not isinstance(value, str)), text)
    if origin is tuple or hint is Any:
        return _parse_tuple(text, arguments) if origin else _parse_literal(text)
    if hint is bool:
        return _BOOLEANS.get(text.lower(), text)
    if hint in _NUMBERS:
        with contextlib.suppress(ValueError):
            return hint(text)
    return text


def _parse_literal(text: str) -> Any:
    """A number, a tuple or a quoted string as Python writes it, or the text itself."""
    with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return ast.literal_eval(text.strip())
    return text


def _parse_tuple(text: str, hints: tuple[Any, ...]) -> Any:
    """A tuple from '(a, b)', '[a, b]', 'a,b' or 'a'; () from '' and '()'."""
    element, literal = hints[0], _parse_literal(text)
    is_nested = typing.get_origin(element) is tuple
    if isinstance(literal, list | tuple) and (
        is_nested or (element is str and all(isinstance(item, str) for item in literal))
    ):
        return tuple(literal)
    inner = text.strip()
    if inner[:1] + inner[-1:] in ("()", "[]"):
        inner = inner[1:-1]
    items = [item.strip() for item in inner.split(",")]
    if items[-1] == "":  # () and (64,)
        items.pop()
    quoted = ((item, item[1:-1]) for item in items)
    items = [
        inner if item[:1] == item[-1:] and item[:1] in "'\"" and item else item
        for item, inner in quoted
    ]
    return tuple(parse_text(item, element) for item in items)


def _convert(value: Any, hint: Any, path: str) -> Any:
    """The value as the type of its field; lists become tuples, as JSON has no tuples."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    is_block, is_sequence = hasattr(value, "keys"), isinstance(value, list | tuple)
    is_bool = isinstance(value, bool)  # which Python takes for a number, too
    if hint is Any:
        return tuple(_convert(item, Any, path) for item in value) if is_sequence else value
    if origin in _UNIONS:
        for option in arguments:
            with contextlib.suppress(InputError):
                return _convert(value, option, path)
    elif origin is tuple and is_sequence:
        element_hints = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        # A wrong length is a ValueError, and so is InputError: the message names the whole tuple.
        with contextlib.suppress(ValueError):
            pairs = zip(value, element_hints, strict=True)
            return tuple(_convert(item, element_hint, path) for item, element_hint in pairs)
    elif origin and issubclass(origin, Mapping) and is_block:
        return {key: _convert(value[key], arguments[1], f"{path}.{key}") for key in value}
    elif not origin and issubclass(hint, Settings) and is_block:
        return hint.from_config(value, path)
    elif not origin and isinstance(value, _NUMBERS.get(hint, hint)) and is_bool == (hint is bool):
        return hint(value) if hint in _NUMBERS else value
    raise InputError(f"{path}={_SHORT.repr(value)}: expected {_describe(hint)}")


def _describe(hint: Any) -> str:
    """A type in the words of a user."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in _UNIONS:
        return " or ".join(map(_describe, arguments))
    if origin is tuple:
        plural = _PLURALS.get(arguments[0], "values")
        return f"a tuple of {plural}" if arguments[1:] == (...,) else f"{len(arguments)} {plural}"
    return "None" if hint is types.NoneType else _NAMES.get(hint, "a block of keys")
