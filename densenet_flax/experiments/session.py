"""What surrounds the work of a program or of a function: JAX's settings, memory, messages."""

import contextlib
from collections.abc import Iterator

import jax
from ml_collections import ConfigDict

from densenet_flax.common.console import shown
from densenet_flax.common.errors import path_errors
from densenet_flax.common.host_memory import tuned_host
from densenet_flax.common.trees import JsonDict
from densenet_flax.common.xla_flags import request_deterministic_kernels
from densenet_flax.experiments.experiment import cache_directory


def set_up_jax(config: ConfigDict | JsonDict) -> None:
    """Sets XLA's flags, and keeps compiled programs between runs."""
    if config.get("deterministic") is True:  # its type is checked later
        request_deterministic_kernels()
    cache_dir = config.get("cache_dir", "")  # whose type is checked later
    directory = cache_directory(cache_dir if isinstance(cache_dir, str) else "") / "xla"
    jax.config.update("jax_compilation_cache_dir", str(directory))
    # Also the hundreds of small programs outside `jit`, seconds together at each start.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@contextlib.contextmanager
def session(config: ConfigDict | JsonDict, *, verbose: bool) -> Iterator[None]:
    """Runs a part of a user's own program as `main.py` runs, as far as that can be done.

    The process is not started again with huge pages: `GLIBC_TUNABLES` has to be set before.
    """
    with shown(verbose), path_errors(), tuned_host(restart=False):
        # A program that has its own cache of compiled programs keeps it.
        if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
            set_up_jax(config)
        yield
