"""The processes of a run: how they find each other, and how it ends when one of them is lost."""

import atexit
import contextlib
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from typing import NoReturn

import jax

from densenet_flax.common.errors import InputError, Stopped
from densenet_flax.common.held_stderr import HeldStderr

# A process that gives no sign of life for so long is lost. Threads of C++ give it, which neither
# Python nor a long compilation holds up.
_HEARTBEAT_TIMEOUT = 30
# The first process may write a long report while the others wait at their end.
_SHUTDOWN_TIMEOUT = 24 * 3600
# What an operation that needs all processes says where one is missing: collectives (Gloo on a CPU,
# NCCL on a GPU), and the barriers of JAX and Orbax.
_COMMUNICATION_ERROR = re.compile(
    r"gloo|nccl|barrier|heartbeat|CoordinationService|UNAVAILABLE|DEADLINE_EXCEEDED", re.I
)


def start_processes(
    coordinator: str,
    processes: int | None,
    process: int | None,
    timeout: float,
) -> None:
    """Connects the processes of a run; call it before JAX is used for anything else.

    Args:
      coordinator: 'auto' where JAX finds the other processes itself (Slurm, GKE, TPU pods, MPI), or
        'address:port' of the first process, with the two numbers below.
      processes: how many there are.
      process: which one this is, from 0.
      timeout: how many seconds to wait for the others. JAX aborts the program if they do not come;
        within `joined_processes` that is one line.

    Raises:
      InputError: the numbers are not those of a run, or the first process cannot be reached.
    """
    given = f"--coordinator={coordinator}"
    numbers: tuple[str | None, int | None, int | None] = (None, None, None)
    remaining = timeout
    if coordinator != "auto":
        if processes is None or process is None:
            raise InputError(
                f"{given}: give --processes=N, the number of processes, and --process=0…N-1, which "
                "one this is"
            )
        if not 0 <= process < processes:
            raise InputError(
                f"--process={process} --processes={processes}: expected a number from 0 to "
                f"{processes - 1}"
            )
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise InputError(f"{given}: expected address:port, such as host0:9900")
        numbers = (coordinator, processes, process)
        if process:
            remaining -= _reach(host.strip("[]"), int(port), timeout)
    try:
        jax.distributed.initialize(
            *numbers,
            initialization_timeout=max(1, round(remaining)),
            heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT,
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        if "Failed to start RPC server" in reason:
            reason = "another program listens on this port; choose another one"
        raise InputError(
            f"{given}: the processes of this run did not find each other ({reason}); give "
            "--coordinator=address:port --processes=N --process=0…N-1"
        ) from error


def _reach(host: str, port: int, timeout: float) -> float:
    """Returns the seconds until the first process listened at its address."""
    started = time.monotonic()
    while True:
        try:
            with socket.create_connection((host, port), timeout):
                return time.monotonic() - started
        except OSError as error:
            if time.monotonic() - started > timeout:
                raise InputError(
                    f"--coordinator={host}:{port}: cannot be reached within {timeout:g} s "
                    f"({error.strerror or error}); start --process=0 there, check the address, the "
                    "port and firewalls, or give --coordinator_timeout=SECONDS to wait longer"
                ) from error
        time.sleep(0.2)


@contextlib.contextmanager
def joined_processes(
    coordinator: str | None, processes: int | None, process: int | None, timeout: float
) -> Iterator[None]:
    """Runs a program in several processes that end together; in one if `coordinator` is None.

    The others are waited for at the end. Where one of them is lost, or never comes, this process
    ends with one line and exit status 1. After an error of its own it ends without waiting for the
    others, which wait for it, and which then end in the same way.

    Args and errors are those of `start_processes`.
    """
    if coordinator is None:
        yield
        return
    connected = False

    def explain(written: str) -> str | None:
        if "JAX distributed service detected fatal errors" not in written:
            return None
        if connected:
            return f"error: {_lost_process(written)}"
        of_all = f" of the {processes} processes" if processes else " processes"
        return (
            f"error: --coordinator={coordinator}: not all{of_all} came within {timeout:g} s; start "
            "one on each host, all with the same --coordinator and --processes and each with its "
            "own --process, or give --coordinator_timeout=SECONDS to wait longer"
        )

    held = HeldStderr(explain)
    try:
        start_processes(coordinator, processes, process, timeout)
        connected = True
        yield
    except Stopped:  # all of them
        jax.distributed.shutdown()
        raise
    except BaseException as error:
        if connected:
            if _is_communication_error(error):
                # It becomes known that a process is lost, and this one ends by `explain`.
                time.sleep(_HEARTBEAT_TIMEOUT + 15)
            # Runs before JAX's own function, which would wait for the others.
            atexit.register(_leave, 130 if isinstance(error, KeyboardInterrupt) else 1)
        raise
    else:
        jax.distributed.shutdown()  # waits for the others
    finally:
        held.release()


def _lost_process(written: str) -> str:
    """The line on a process that is lost, from what JAX wrote."""
    match = re.search(r"stopped sending heartbeats\):\s*([\d,\s]+)", written)
    numbers = match[1].replace(",", " ").split() if match else []
    # The service is part of the first process, so its end is the end of a connection.
    names = f"process {', '.join(numbers)}" if numbers else "process 0"
    return (
        f"{names} of this run ended or cannot be reached any more, and its own output says why; "
        "start all processes again with the same commands: training resumes from the last "
        "checkpoint and ends with the same bits"
    )


def _is_communication_error(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, may come from the loss of another process."""
    if error is None or isinstance(error, KeyboardInterrupt):
        return False
    # The message of an InputError is this package's own; what it was raised from is not.
    own = "" if isinstance(error, InputError) else str(error)
    cause = error.__cause__ or error.__context__
    return bool(_COMMUNICATION_ERROR.search(own)) or _is_communication_error(cause)


def _leave(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    # The others end with the first process. If they have the same error, they say it before that.
    time.sleep(3)
    os._exit(status)
