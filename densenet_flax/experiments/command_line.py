"""A configuration from a command line: a file, and `--config.key=value` for some of its keys.

`ml_collections.config_flags` does this for any configuration. Here the types are known, so that a
misspelled key is answered with the nearest one at any depth, a tuple can be written as people write
it, and of a key that is given twice the last value counts.
"""

import importlib.machinery
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from densenet_flax.common.errors import InputError
from densenet_flax.common.overrides import Override
from densenet_flax.common.settings import Settings, nearest, parse_text
from densenet_flax.common.trees import JsonDict
from densenet_flax.data.images.stain_normalization import STAIN_KEYS
from densenet_flax.experiments.experiment import Experiment


def load_config(path: str) -> ConfigDict:
    """Calls `get_config` of a Python file; what follows a colon in the path is its argument.

    Raises:
      InputError: there is no such file, or it does not make a configuration.
    """
    name, *arguments = path.split(":", 1)
    file = Path(name).expanduser()
    if not file.is_file():
        raise InputError(f"--config={path}: no such file; the configurations are in configs/")
    try:
        loader = importlib.machinery.SourceFileLoader("config_file", str(file))
        module = types.ModuleType(loader.name)
        loader.exec_module(module)
        config = module.get_config(*arguments)
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's file does
        reason = str(error) if isinstance(error, ValueError) else repr(error)
        raise InputError(
            f"--config={path}: {reason}; expected a Python file whose get_config returns a "
            "ConfigDict, as those in configs/"
        ) from error
    if not isinstance(config, ConfigDict):
        raise InputError(f"--config={path}: get_config returned {config!r:.50}, not a ConfigDict")
    return config


def apply_overrides(config: ConfigDict | JsonDict, overrides: Sequence[Override]) -> ConfigDict:
    """The configuration with other values for some keys, checked only for their names.

    Raises:
      InputError: there is no such key, or it is a block of keys.
    """
    changed = ConfigDict(config).to_dict()  # a copy, also of the blocks
    for key, text in overrides:
        *blocks, name = key.split(".")
        hint = _type_of(key, changed)
        block = changed
        for part in blocks:
            block = block.setdefault(part, {})
        block[name] = parse_text(text, hint, block.get(name))
    return ConfigDict(changed)


def _type_of(key: str, config: JsonDict) -> Any:
    """The type of the value of a key; an InputError names the nearest if there is no such key."""
    hint: Any = Experiment
    parts = key.split(".")
    for depth, part in enumerate(parts):
        block = ".".join(["config", *parts[:depth]])
        known = _keys(hint, parts[:depth], config)
        if known is None:
            raise InputError(f"--config.{key}: {block} is a value and not a block of keys")
        if part not in known:
            advice = _advice(parts, depth, list(known), config)
            raise InputError(f"--config.{key}: {block} has no key {part!r}; {advice}")
        hint = known[part]
    inner = _keys(hint, parts, config)
    if inner is not None:
        example = f"--config.{key}.{next(iter(inner), '…')}=…"
        raise InputError(f"--config.{key}: a block of keys; give a value to one, as in {example}")
    return hint


def _keys(hint: Any, path: Sequence[str], config: JsonDict) -> dict[str, Any] | None:
    """The types of the keys of a block by name; None for a value."""
    if typing.get_origin(hint) is Mapping:  # of stages, or the settings of a stain method
        block = config
        for part in path:
            block = block.get(part, {})
        inner = typing.get_args(hint)[1]
        return dict.fromkeys([*block, *(STAIN_KEYS if inner is Any else ())], inner)
    if isinstance(hint, type) and issubclass(hint, Settings):
        return {key: inner for key, inner in hint.hints().items() if inner != JsonDict}
    return None


def _advice(parts: Sequence[str], depth: int, known: Sequence[str], config: JsonDict) -> str:
    """Which keys may be meant: of the same name in another block, or of a similar one."""
    every = list(_all_keys(Experiment, (), config))
    rest = tuple(parts[depth:])
    close = [(*parts[:depth], name, *parts[depth + 1 :]) for name in nearest(parts[depth], known)]
    # A similar name may lead nowhere: then the rest of the path says what is meant.
    close = [path for path in close if any(key[: len(path)] == path for key in every)]
    elsewhere = [key for key in every if key[-len(rest) :] == rest]
    inner = [key for key in every if rest[1:] and key[-len(rest[1:]) :] == rest[1:]]
    similar = nearest(parts[-1], {key[-1]: None for key in every})
    far = [key for name in similar[:1] for key in every if key[-1] == name]
    paths = list(dict.fromkeys([*close[:1], *elsewhere, *close[1:]])) or inner or far
    if not paths:
        return f"the keys are {', '.join(known)}"
    names = [".".join(["config", *path]) for path in paths[:3]]
    return f"did you mean {' or '.join(names)}?"


def _all_keys(hint: Any, path: tuple[str, ...], config: JsonDict) -> Iterator[tuple[str, ...]]:
    """The keys with a value, as paths, of a block and of all blocks in it."""
    inner = _keys(hint, path, config)
    if inner is None:
        yield path
        return
    for key, key_hint in inner.items():
        yield from _all_keys(key_hint, (*path, key), config)
