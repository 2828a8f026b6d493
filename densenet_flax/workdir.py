"""A work directory: the configuration it belongs to, its metrics file, and who is using it."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from densenet_flax.data.atomic import write_text, writing
from densenet_flax.errors import InputError

# Where the data lies and how fast it is read may change between starts; what is trained may not.
_FREE_KEYS = ("data.path", "cache", "cache_dir")


class Workdir:
    """One run's directory: `config.json`, `metrics.jsonl`, `split.json`, `checkpoints`, `report`.

    Attributes:
      path: the directory.
    """

    def __init__(self, path: str | os.PathLike[str]):
        """Names the directory; `claim` makes it."""
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

    def claim(self, config: Mapping[str, Any]) -> None:
        """Writes the configuration, or checks that the one that is there is the same.

        Raises:
          InputError: the directory belongs to another configuration; the message names the keys.
        """
        path = self.path / "config.json"
        ours = json.loads(json.dumps(config))
        if path.exists():
            theirs = _read_json(path)
            old, new = _flat(theirs), _flat(ours)
            keys = [key for key in {**old, **new} if key not in _FREE_KEYS]
            changed = [key for key in keys if old.get(key) != new.get(key)]
            if changed:
                shown = "; ".join(f"{k} was {old.get(k)!r}, is {new.get(k)!r}" for k in changed[:4])
                more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
                raise InputError(
                    f"{self.path} belongs to another configuration ({shown}{more}); choose another "
                    "--workdir, or start with the configuration it was made with"
                )
        write_text(path, json.dumps(ours, indent=2) + "\n")

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Adds a line to `metrics.jsonl`."""
        with writing(self.path), open(self.path / "metrics.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")

    def rewind_metrics(self, step: int) -> None:
        """Drops the lines of `metrics.jsonl` after a step: the run will write them again."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return
        kept = []
        for text in path.read_text().splitlines():
            with contextlib.suppress(ValueError):  # a line that was cut short by a kill
                if json.loads(text)["step"] <= step:
                    kept.append(text + "\n")
        write_text(path, "".join(kept))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); choose another --workdir") from error


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found
