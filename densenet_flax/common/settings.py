"""Blocks of a configuration as frozen dataclasses, with every key and value checked.

@dataclasses.dataclass(frozen=True)
class HeadSettings(Settings):
    activation: str = choice("relu", ("relu", "gelu"))
    dropout: float = setting(0.5, "a number from 0 to below 1", lambda rate: 0 <= rate < 1)

HeadSettings.from_config({"dropout": 2.0}, "config.head")
# InputError: config.head.dropout=2.0: expected a number from 0 to below 1
"""

import contextlib
import dataclasses
import difflib
import reprlib
import types
import typing
from collections.abc import Callable, Collection, Mapping
from numbers import Integral, Real
from typing import Any, Self

from densenet_flax.common.errors import InputError

# Metadata of a field that holds a block whose keys stand beside its own in the configuration.
INLINE = {"inline": True}

# Shows a value in a message: a file may hold a list of a million numbers.
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 200


def setting(default: Any, expected: str, allowed: Callable[[Any], bool]) -> Any:
    """A field with a default and a rule.

    Args:
      default: its value where the configuration does not have the key.
      expected: the rule in words, for the error message.
      allowed: the rule; called with values of the field's type.
    """
    return dataclasses.field(
        default=default, metadata={"expected": lambda: expected, "allowed": allowed}
    )


def choice(default: Any, options: Collection[Any]) -> Any:
    """A field that takes one of `options`, which are looked up when a value is checked."""
    return dataclasses.field(
        default=default,
        metadata={
            "expected": lambda: f"one of {', '.join(map(repr, options))}",
            "allowed": lambda value: value in options,
        },
    )


@dataclasses.dataclass(frozen=True)
class Settings:
    """A block of a configuration: subclasses are frozen dataclasses with a field for each key."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if "allowed" in field.metadata and not field.metadata["allowed"](value):
                expected = field.metadata["expected"]()
                raise InputError(f"{field.name}={SHORT.repr(value)}: expected {expected}")

    @classmethod
    def from_config(cls, block: Mapping[str, Any], path: str, **computed: Any) -> Self:
        """Reads a block; keys that it does not have take their default.

        Args:
          block: a mapping, or a `ConfigDict`.
          path: what error messages call it, such as `'config.model'`.
          **computed: fields that are not read from the block.

        Raises:
          InputError: an unknown key, or a value of the wrong type or out of range.
        """
        hints = typing.get_type_hints(cls)
        fields = {f.name: f for f in dataclasses.fields(cls) if f.name not in computed}
        values, rest = dict(computed), {key: block[key] for key in block}
        for name, field in fields.items():
            if "inline" in field.metadata:
                keys = [f.name for f in dataclasses.fields(hints[name])]
                part = {key: rest.pop(key) for key in keys if key in rest}
                values[name] = hints[name].from_config(part, path)
            elif name in rest:
                values[name] = _convert(rest.pop(name), hints[name], f"{path}.{name}")
            elif field.default is field.default_factory is dataclasses.MISSING:
                raise InputError(f"{path}.{name}: missing; expected {_describe(hints[name])}")
        for key in rest:
            known = [name for name in cls.keys() if name not in computed]  # noqa: SIM118
            raise InputError(unknown_key(path, key, known))
        try:
            return cls(**values)
        except InputError as error:
            raise InputError(f"{path}.{error}") from error

    @classmethod
    def keys(cls) -> list[str]:
        """The keys of the block in a configuration."""
        names: list[str] = []
        for field in dataclasses.fields(cls):
            is_inline = "inline" in field.metadata
            names += typing.get_type_hints(cls)[field.name].keys() if is_inline else [field.name]
        return names


def unknown_key(path: str, key: str, known: Collection[str]) -> str:
    """The message for a key that a block does not have, with the closest one that it has."""
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"the keys are {', '.join(known)}"
    return f"{path}.{key}: no such key; {hint}"


def _convert(value: Any, hint: Any, path: str) -> Any:
    """The value as the type of its field; lists become tuples, as JSON has no tuples."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    is_block, is_sequence = hasattr(value, "keys"), isinstance(value, list | tuple)
    if hint is Any:
        return tuple(_convert(item, Any, path) for item in value) if is_sequence else value
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            with contextlib.suppress(InputError):
                return _convert(value, option, path)
    elif origin is tuple and is_sequence:
        element_hints = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        if len(value) == len(element_hints):
            with contextlib.suppress(InputError):  # the message is about the whole tuple
                return tuple(map(_convert, value, element_hints, [path] * len(value)))
    elif origin and issubclass(origin, Mapping) and is_block:
        return {key: _convert(value[key], arguments[1], f"{path}.{key}") for key in value}
    elif not origin and issubclass(hint, Settings) and is_block:
        return hint.from_config(value, path)
    elif not origin and _is_a(value, hint):
        return hint(value) if hint in (int, float) else value
    raise InputError(f"{path}={SHORT.repr(value)}: expected {_describe(hint)}")


def _is_a(value: Any, hint: type) -> bool:
    if isinstance(value, bool):  # which Python takes for a number
        return hint is bool
    if hint is int:
        return isinstance(value, Integral)
    return isinstance(value, Real if hint is float else hint)


def _describe(hint: Any) -> str:
    """A type in the words of a user."""
    names = {bool: "True or False", int: "a whole number", float: "a number", str: "a string"}
    names[types.NoneType] = "None"
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_describe, arguments))
    if origin is tuple:
        kind = {int: "whole numbers", float: "numbers", str: "strings"}.get(arguments[0], "values")
        return f"a tuple of {kind}" if arguments[1:] == (...,) else f"{len(arguments)} {kind}"
    if isinstance(hint, type) and not origin and hint in names:
        return names[hint]
    return "a block of keys"
