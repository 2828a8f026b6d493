"""Libraries of extras, which not everybody has installed."""

import importlib
from types import ModuleType

from densenet_flax.common.errors import InputError


def import_optional(name: str, extra: str, use: str) -> ModuleType:
    """Imports a library of an extra of this package.

    Args:
      name: of the module.
      extra: that installs it.
      use: what it is for, for the message: 'slides are read with OpenSlide'.

    Raises:
      InputError: it is not installed, or cannot be loaded.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{use} ({reason}); pip install 'densenet_flax[{extra}]'") from error
