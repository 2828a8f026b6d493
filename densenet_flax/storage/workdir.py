"""A work directory: the configuration that it belongs to, its logs, and the lock on it."""

import contextlib
import json
import os
import resource
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict

from densenet_flax.common.errors import InputError
from densenet_flax.common.reading import check_regular, reading
from densenet_flax.common.sharding import (
    all_processes,
    broadcast,
    gather,
    is_first_process,
    multiple_processes,
)
from densenet_flax.common.trees import JsonDict
from densenet_flax.storage.atomic import atomic_file, remove_orphans, writing
from densenet_flax.storage.json_files import read_json_object, write_json_object
from densenet_flax.storage.locks import locked

_MAX_LINE = 2**20  # bytes of a line of a log
_VISIBLE_SECONDS = 10.0  # what one host writes on shared storage, the others see by then

OPERATING_POINT_FILE = "operating_point.json"  # what the evaluation chose, and of which checkpoint

# Where the data is, how fast it is read, what a step keeps in memory and how the result is
# evaluated may change between starts; what is trained may not.
_FREE_KEYS = (
    *("data.path", "data.mpp", "data.storage", "data.workers", "cache", "cache_dir", "tensorboard"),
    "model.remat",
    *("evaluate", "threshold", "calibration", "tta", "explain"),
)


class Workdir:
    """The directory of one run, and the paths of what is in it."""

    def __init__(self, path: str | os.PathLike[str]):
        """Names the directory; `lock` creates it."""
        self.path = Path(path).expanduser()
        if self.path.is_symlink() and not self.path.exists():  # to a disk that is not there now
            raise InputError(f"{self.path}: is a link to what is not there; put that back")
        self.path = self.path.resolve()
        self.checkpoints = self.path / "checkpoints"
        self.split = self.path / "split.json"
        self.images = self.path / "data"  # those that a program handed over
        self.report = self.path / "report"
        self.operating_point = self.path / OPERATING_POINT_FILE
        self.extensions = self.path / "extensions.json"
        self._config = self.path / "config.json"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes out of the directory, which is created if need be.

        Raises:
          InputError: another process holds the lock, or the directory cannot be written, or not
            all processes of the run see it.
        """
        if not is_first_process():
            self._check_visible()
            yield
            return
        in_use = "another run is using this work directory; wait for it, or choose another "
        with locked(self.path, in_use + "--workdir"):
            for folder in (".", "data", "prefix_cache", "report"):
                remove_orphans(self.path / folder)
            self._check_visible()
            yield

    def _check_visible(self) -> None:
        """Checks that all processes of the run see the directory of the first one."""
        if not multiple_processes():
            return
        token = broadcast(np.frombuffer(os.urandom(8), np.uint8)).tobytes().hex()
        # A name that no process has looked for before: network file systems remember absent files.
        file = self.path / f".visible-{token}"
        if is_first_process():
            with writing(self.path):
                file.write_text(token)
        all_processes(True)  # now it is written
        deadline = time.monotonic() + _VISIBLE_SECONDS
        while not (seen := file.is_file() and file.read_text() == token):
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        blind = np.flatnonzero(~gather(seen))
        if is_first_process():
            file.unlink()
        if blind.size:
            numbers = ", ".join(map(str, blind))
            raise InputError(
                f"--workdir={self.path}: process {numbers} of this run does not see what process 0 "
                "writes there; choose a directory on storage that all hosts share, by the same path"
            )

    @property
    def has_begun(self) -> bool:
        """Whether there is a checkpoint, so that the configuration is settled."""
        return any(child.name.isdigit() for child in self.checkpoints.glob("*"))

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Writes `config.json`."""
        if is_first_process():
            write_json_object(self._config, config, indent=2)

    def write_extensions(self, extensions: Sequence[JsonDict]) -> None:
        """Writes `extensions.json`, what gave the run more epochs."""
        write_json_object(self.extensions, {"extensions": extensions}, indent=2)

    def read_extensions(self) -> list[JsonDict]:
        """What `write_extensions` wrote; [] if the run was not extended."""
        if not os.path.lexists(self.extensions):
            return []
        content = read_json_object(self.extensions, "put it back")
        extensions = content.get("extensions")
        if not isinstance(extensions, list) or not all(isinstance(e, dict) for e in extensions):
            raise InputError(f"{self.extensions}: a list of extensions is expected; put it back")
        return extensions

    def read_config(self) -> JsonDict:
        """What `write_config` wrote; {} if it is not there."""
        if not os.path.lexists(self._config):
            return {}
        advice = "put it back, or remove it, to go on without what it says about patients"
        return read_json_object(self._config, advice)

    def require_config(self) -> JsonDict:
        """What `write_config` wrote; InputError if there is none.

        Images that are kept in the directory are looked for there, also after it was moved.
        """
        if not os.path.lexists(self._config) and not self.has_begun:
            raise InputError(
                f"{self.path}: holds no run yet; give its configuration with --config=FILE"
            )
        config = read_json_object(self._config, "put it back, or choose another --workdir")
        data = config.get("data")
        if isinstance(data, dict) and data.get("name") == "arrays":
            data["path"] = str(self.images)
        return config

    def check(
        self,
        config: Mapping[str, Any],
        added_keys: Mapping[str, Any],
        accepted: Collection[str] = (),
    ) -> None:
        """Checks that the run in the directory has this configuration.

        Args:
          config: what `write_config` takes.
          added_keys: keys, with dots, that an older run may lack, and what they are for it.
          accepted: keys, with dots, that may differ.

        Raises:
          InputError: the directory belongs to another configuration; the message names the keys.
        """
        changed = self.changes(config, added_keys)
        keys = [key for key in changed if key not in accepted]
        if keys:
            shown = "; ".join(f"{k} was {changed[k][0]!r}, is {changed[k][1]!r}" for k in keys[:4])
            more = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
            raise InputError(
                f"{self.path} belongs to another configuration ({shown}{more}); choose another "
                "--workdir, or start with the configuration it was made with"
            )

    def changes(
        self, config: Mapping[str, Any], added_keys: Mapping[str, Any]
    ) -> dict[str, tuple[Any, Any]]:
        """Old and new value of each key that makes it another run; arguments as for `check`."""
        old = flatten_dict(self.require_config(), sep=".")
        new = flatten_dict(json.loads(json.dumps(config)), sep=".")
        old, new = {**added_keys, **old}, {**added_keys, **new}
        keys = [key for key in {**old, **new} if key not in _FREE_KEYS]
        return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}

    def metrics_writer(self, *, tensorboard: bool) -> Callable[[Mapping[str, Any]], None]:
        """Returns a function that appends to `metrics.jsonl`, and to TensorBoard's files if asked.

        Raises:
          InputError: TensorBoard is asked for and not installed.
        """
        if not is_first_process():
            return lambda line: None
        board: Any = None
        if tensorboard:
            try:
                from tensorboard.summary import Writer
            except ImportError as error:
                raise InputError(
                    "config.tensorboard=True needs TensorBoard: pip install tensorboard"
                ) from error
            board = Writer(str(self.path / "tensorboard"))

        def write(line: Mapping[str, Any]) -> None:
            self._append("metrics.jsonl", line)
            if not board:
                return
            for name, value in line.items():
                if isinstance(value, float):
                    board.add_scalar(f"{line['kind']}/{name}", value, line["step"])
            board.flush()

        return write

    def timing_writer(self) -> Callable[[Mapping[str, Any]], None]:
        """Returns a function that appends to `timing.jsonl`: seconds and memory of this machine."""
        if not is_first_process():
            return lambda line: None
        return lambda line: self._append("timing.jsonl", {**line, **device_memory()})

    def _append(self, name: str, line: Mapping[str, Any]) -> None:
        mode = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
        with writing(self.path / name), open(os.open(self.path / name, mode, 0o666), "a") as file:
            file.write(json.dumps(line) + "\n")

    def rewind(self, step: int) -> None:
        """Deletes the lines after a step, which the resumed run will write again."""
        if not is_first_process():
            return
        for name in ("metrics.jsonl", "timing.jsonl"):
            path = self.path / name
            if not os.path.lexists(path):
                continue
            with reading(path):
                check_regular(path, f"{path}: move it away, or put it back: it")
            bad = 0
            with (
                atomic_file(path) as temporary,
                open(path, "rb") as old,
                open(temporary, "wb") as new,
            ):
                for line in iter(lambda: old.readline(_MAX_LINE), b""):
                    line_step = _step_of(line)
                    # A kill may have cut the last line short; others are not ours, or damaged.
                    bad += line_step is None and line.endswith(b"\n")
                    if line_step is not None and line_step <= step:
                        new.write(line.rstrip(b"\n") + b"\n")
            if bad:
                logging.warning("%s: %d lines cannot be read and are left out", path, bad)


def _step_of(line: bytes) -> int | None:
    """The step of a line of `metrics.jsonl`; None if it is no such line."""
    try:
        step = json.loads(line.decode())["step"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return step if isinstance(step, int) else None


def device_memory() -> dict[str, float]:
    """Peak memory in GB: of the first device if it reports it, else of this process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return {"device_memory_gb": stats["peak_bytes_in_use"] / 1e9}
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"host_memory_gb": kilobytes * 1024 / 1e9}
