"""A configuration from a command line: a file, and `--config.key=value` for some of its keys.

`ml_collections.config_flags` does this for any configuration. Here the types are known, so that a
misspelled key is answered with the nearest one at any depth, a tuple can be written as people write
it, and of a key that is given twice the last value counts.
"""

import contextlib
import importlib.machinery
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from densenet_flax.common.errors import InputError
from densenet_flax.common.overrides import Override
from densenet_flax.common.settings import Settings, nearest, parse_text, suggest
from densenet_flax.common.trees import JsonDict
from densenet_flax.data.images.stain_normalization import STAIN_KEYS
from densenet_flax.experiments.experiment import Experiment

_PACKAGE = Path(__file__).parents[1]
# In a wheel the folder is in the package, in a checkout beside it.
CONFIGS = next(
    (path for path in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if path.is_dir()),
    _PACKAGE / "configs",
)


def load_config(path: str) -> ConfigDict:
    """Calls `get_config` of a Python file; what follows a colon in the path is its argument.

    A name such as 'quickstart' or 'configs/quickstart.py' that is no file from here is one of this
    package's configurations. A file can import these: `from configs import keras_recipe`.

    Raises:
      InputError: there is no such file, or it does not make a configuration.
    """
    name, *arguments = path.split(":", 1)
    file = _find_config(path, name)
    try:
        loader = importlib.machinery.SourceFileLoader("config_file", str(file))
        module = types.ModuleType(loader.name)
        with _importable_configs(file):
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


def _find_config(path: str, name: str) -> Path:
    file = Path(name).expanduser()
    if file.is_file():
        return file
    packaged = CONFIGS / f"{file.name.removesuffix('.py')}.py"
    if file.parent in (Path(), Path("configs")) and packaged.is_file():
        return packaged
    names = sorted(path.stem for path in CONFIGS.glob("[!_]*.py"))
    raise InputError(
        f"--config={path}: no such file, and no configuration of this package; "
        f"{suggest(file.name.removesuffix('.py'), names)}"
    )


@contextlib.contextmanager
def _importable_configs(file: Path) -> Iterator[None]:
    """Makes `configs` this package's folder, and what lies beside `file` in one of that name."""
    before = {name: sys.modules.pop(name) for name in [*sys.modules] if _is_configs(name)}
    package = types.ModuleType("configs")
    package.__path__ = [str(CONFIGS)]
    if file.resolve().parent.name == "configs":
        package.__path__.append(str(file.resolve().parent))
    sys.modules["configs"] = package
    try:
        yield
    finally:
        for name in [*filter(_is_configs, sys.modules)]:
            del sys.modules[name]
        sys.modules.update(before)


def _is_configs(module: str) -> bool:
    return module.partition(".")[0] == "configs"


def as_overrides(values: Mapping[str, Any], block: str = "") -> list[Override]:
    """Overrides from a mapping of keys, with dots or in mappings of their own, to values."""
    overrides = []
    for key, value in values.items():
        if hasattr(value, "items"):
            overrides += as_overrides(value, f"{block}{key}.")
        else:
            overrides.append(Override(f"{block}{key}", value))
    return overrides


def apply_overrides(
    config: ConfigDict | JsonDict, overrides: Sequence[Override], *, flag: str = "--"
) -> ConfigDict:
    """The configuration with other values for some keys, checked only for their names.

    Texts are read as on the command line. Messages begin with `flag`.

    Raises:
      InputError: there is no such key, or it is a block of keys.
    """
    changed = ConfigDict(config).to_dict()  # a copy, also of the blocks
    for key, value in overrides:
        *blocks, name = key.split(".")
        try:
            hint = _type_of(key, changed)
        except InputError as error:
            raise InputError(f"{flag}config.{key}: {error}") from error
        block = changed
        for part in blocks:
            block = block.setdefault(part, {})
        is_text = isinstance(value, str)
        block[name] = parse_text(value, hint, block.get(name)) if is_text else value
    return ConfigDict(changed)


def _type_of(key: str, config: JsonDict) -> Any:
    """The type of the value of a key; an InputError names the nearest if there is no such key."""
    hint: Any = Experiment
    parts = key.split(".")
    for depth, part in enumerate(parts):
        block = ".".join(["config", *parts[:depth]])
        known = _keys(hint, parts[:depth], config)
        if known is None:
            raise InputError(f"{block} is a value and not a block of keys")
        if part not in known:
            advice = _advice(parts, depth, list(known), config)
            raise InputError(f"{block} has no key {part!r}; {advice}")
        hint = known[part]
    inner = _keys(hint, parts, config)
    if inner is not None:
        example = f"config.{key}.{next(iter(inner), '…')}"
        raise InputError(f"a block of keys; give a value to one, such as {example}")
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
