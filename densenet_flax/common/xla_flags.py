"""Flags of XLA, which it reads once, when JAX first asks for its devices."""

import os

import jax

from densenet_flax.common.errors import InputError

# Includes xla_gpu_exclude_nondeterministic_ops; and kernels are chosen by rule instead of by a race
# between candidates, which another process may decide differently.
_DETERMINISTIC = "xla_gpu_deterministic_ops"


def request_deterministic_kernels() -> None:
    """Makes GPUs compute the same bits in every process; call it before JAX has devices.

    CPUs and TPUs do so anyway, and ignore it. A setting of the flag in `XLA_FLAGS` stays.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _DETERMINISTIC not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{_DETERMINISTIC}=true".strip()


def check_deterministic_kernels() -> None:
    """Raises InputError if the devices are GPUs that may choose kernels as they like."""
    settings = {f"--{_DETERMINISTIC}{value}" for value in ("", "=true", "=True", "=1")}
    if jax.default_backend() == "gpu" and not settings & set(
        os.environ.get("XLA_FLAGS", "").split()
    ):
        raise InputError(
            f"deterministic=True: XLA_FLAGS lacks --{_DETERMINISTIC}=true, so a GPU may give other "
            "bits each time; main.py adds it, a program of your own has to set it before JAX is "
            "used"
        )
