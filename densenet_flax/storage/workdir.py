"""A work directory: the configuration it belongs to, its metrics file, and who is using it."""

import contextlib
import fcntl
import json
import os
import resource
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from densenet_flax.common.errors import InputError
from densenet_flax.common.sharding import is_first_process
from densenet_flax.storage.atomic import write_text, writing

# Where the data lies, how fast it is read and how the result is judged may change between starts;
# what is trained may not.
_FREE_KEYS = (
    *("data.path", "data.storage", "data.workers", "cache", "cache_dir", "tensorboard"),
    *("evaluate", "threshold", "tta", "explain"),
)


class Workdir:
    """One run's directory: `config.json`, `metrics.jsonl`, `split.json`, `checkpoints`, `report`.

    Attributes:
      path: the directory.
    """

    def __init__(self, path: str | os.PathLike[str]):
        """Names the directory; `lock` makes it."""
        self.path = Path(path).expanduser().resolve()

    @property
    def checkpoints(self) -> Path:
        """Where Orbax writes."""
        return self.path / "checkpoints"

    @property
    def split(self) -> Path:
        """Which file is on which side."""
        return self.path / "split.json"

    @property
    def report(self) -> Path:
        """Where the evaluation goes."""
        return self.path / "report"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes out of the directory, which is created if need be.

        The operating system lets go of the lock when the process ends, however it ends.

        Raises:
          InputError: another process holds it, or the directory cannot be written.
        """
        if not is_first_process():
            yield
            return
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            file = open(self.path / ".lock", "w")  # noqa: SIM115
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InputError(
                    f"{self.path}: another run is using this work directory; wait for it, or "
                    "choose another --workdir"
                ) from error
            yield

    @property
    def has_begun(self) -> bool:
        """Whether there is a checkpoint, so that the configuration is settled."""
        return any(child.name.isdigit() for child in self.checkpoints.glob("*"))

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Writes `config.json`."""
        if is_first_process():
            write_text(self._config, json.dumps(config, indent=2) + "\n")

    def read_config(self) -> dict[str, Any]:
        """What `write_config` wrote; {} if there is nothing that could be read."""
        try:
            found = json.loads(self._config.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def check(self, config: Mapping[str, Any], added_keys: Mapping[str, Any]) -> None:
        """Checks that the run in the directory has this configuration.

        Args:
          config: what `write_config` takes.
          added_keys: keys, with dots, that the run may have been begun without, and their values
            where a configuration does not have them.

        Raises:
          InputError: the directory belongs to another configuration; the message names the keys.
        """
        try:
            old = _flat(json.loads(self._config.read_text()))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self._config}: cannot be read ({error}); put it back or choose another --workdir"
            ) from error
        new = _flat(json.loads(json.dumps(config)))
        old, new = {**added_keys, **old}, {**added_keys, **new}
        keys = [key for key in {**old, **new} if key not in _FREE_KEYS]
        changed = [key for key in keys if old.get(key) != new.get(key)]
        if changed:
            shown = "; ".join(f"{k} was {old.get(k)!r}, is {new.get(k)!r}" for k in changed[:4])
            more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
            raise InputError(
                f"{self.path} belongs to another configuration ({shown}{more}); choose another "
                "--workdir, or start with the configuration it was made with"
            )

    @property
    def _config(self) -> Path:
        return self.path / "config.json"

    def metrics_writer(self, *, tensorboard: bool) -> Callable[[Mapping[str, Any]], None]:
        """A function that adds a line to `metrics.jsonl` and, if asked, to TensorBoard's files.

        The lines are a function of configuration, data and step: two runs write the same.

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
            for name, value in line.items() if board else ():
                if isinstance(value, float):
                    board.add_scalar(f"{line['kind']}/{name}", value, line["step"])
            if board:
                board.flush()

        return write

    def timing_writer(self) -> Callable[[Mapping[str, Any]], None]:
        """A function that adds a line to `timing.jsonl`: what this machine needed."""
        if not is_first_process():
            return lambda line: None
        return lambda line: self._append("timing.jsonl", {**line, **device_memory()})

    def _append(self, name: str, line: Mapping[str, Any]) -> None:
        with writing(self.path), open(self.path / name, "a") as file:
            file.write(json.dumps(line) + "\n")

    def rewind(self, step: int) -> None:
        """Drops the lines after a step: the run will write them again."""
        for name in ("metrics.jsonl", "timing.jsonl") if is_first_process() else ():
            path = self.path / name
            if not path.exists():
                continue
            kept = []
            for text in path.read_text().splitlines():
                with contextlib.suppress(ValueError):  # a line that was cut short by a kill
                    if json.loads(text)["step"] <= step:
                        kept.append(text + "\n")
            write_text(path, "".join(kept))


def device_memory() -> dict[str, float]:
    """Peak memory in GB: of the first device where it tells, else of this process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return {"device_memory_gb": stats["peak_bytes_in_use"] / 1e9}
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"host_memory_gb": kilobytes * 1024 / 1e9}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found
