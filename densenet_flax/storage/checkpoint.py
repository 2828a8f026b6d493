"""The only file that knows Orbax: checkpoints of a run, each whole or absent.

A checkpoint has three items: `model` (params and statistics, all that inference needs), `train`
(the optimizer and the step, as one vector for each dtype), and `meta` (where the run stood, its
history, what the network is).
"""

import dataclasses
import json
import math
import shutil
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from densenet_flax.common.errors import InputError
from densenet_flax.common.host_memory import trim_host_memory
from densenet_flax.common.sharding import multiple_processes
from densenet_flax.storage.atomic import writing

# In a work directory, what the evaluation decided: threshold, temperature, and by which checkpoint.
OPERATING_POINT_FILE = "operating_point.json"
_PLACES = "train_leaves"  # in `meta`: how the vectors of `train` are divided


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint holds; arrays are NumPy's, so that any number of devices can take them.

    Attributes:
      step: of the whole run.
      variables: `{'params': …, 'batch_stats': …}`.
      train: leaves of what else training needs, by name.
      meta: what `save` was given.
    """

    step: int
    variables: dict[str, Any]
    train: dict[str, np.ndarray]
    meta: dict[str, Any]


@dataclasses.dataclass
class _KeepNamed(policies.PreservationPolicy):
    """Keeps the last checkpoint and those that are named."""

    steps: frozenset[int] = frozenset()

    def should_preserve(self, checkpoints, *, context):
        last = max((info.step for info in checkpoints), default=None)
        return [info.step == last or info.step in self.steps for info in checkpoints]


class Checkpoints:
    """The checkpoints of one work directory."""

    def __init__(self, directory: Path):
        """Opens, or creates, `directory`.

        Raises:
          InputError: it cannot be opened.
        """
        self.directory = directory.resolve()  # Orbax wants absolute paths
        self._keep = _KeepNamed()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._keep, enable_async_checkpointing=False
        )
        with writing(self.directory):
            self._manager = ocp.CheckpointManager(self.directory, options=options)
        # One that waits for the thread, whether the thread is at work, and what became of its work.
        self._thread = ThreadPoolExecutor(1)
        self._lock = threading.Lock()
        self._waiting: _Prepared | None = None
        self._writing = False
        self._written: Future[None] | None = None

    @property
    def steps(self) -> list[int]:
        """Steps that are kept, ascending."""
        self.finish()
        return sorted(self._manager.all_steps())

    def reached_preemption(self, step: int) -> bool:
        """Whether all processes of the run agreed to stop at this step, one being asked to."""
        return multiple_processes() and self._manager.reached_preemption(step)

    def save(
        self,
        step: int,
        variables: Mapping[str, Any],
        train: Any,
        meta: Mapping[str, Any],
        *,
        keep: Iterable[int] = (),
    ) -> None:
        """Writes a checkpoint; those before stay until this one is whole.

        Args:
          step: of the whole run.
          variables: the network, all that inference needs.
          train: a tree of what else training needs.
          meta: anything that JSON can hold.
          keep: steps whose checkpoints stay; all others but this one go.

        Raises:
          InputError: it cannot be written, because the disk is full for one.
        """
        self.finish()
        self._write(_prepared(step, variables, train, meta, keep))

    def save_soon(
        self,
        step: int,
        variables: Mapping[str, Any],
        train: Any,
        meta: Mapping[str, Any],
        *,
        keep: Iterable[int] = (),
    ) -> None:
        """As `save`, in a thread of its own; `finish` waits for it.

        Where checkpoints come faster than they can be written, one that still waits makes room for
        the next, unless `keep` names it: then this call waits. With several processes, which write
        a checkpoint together, it is written at once.

        Args:
          step: of the whole run.
          variables: NumPy arrays that nobody changes, and that stay when the step runs on.
          train: may be changed as soon as this returns.
          meta: likewise.
          keep: steps whose checkpoints stay; all others but this one go.

        Raises:
          InputError: this one or the one before cannot be written.
        """
        keep = frozenset(keep)
        if multiple_processes() or (self._waiting is not None and self._waiting.step in keep):
            self.finish()
        checkpoint = _prepared(step, variables, train, meta, keep)
        if multiple_processes():
            self._write(checkpoint)
            return
        with self._lock:
            if self._writing:
                self._waiting = checkpoint
                return
        self.finish()  # which tells of a failure
        self._writing = True
        self._written = self._thread.submit(self._write_on, checkpoint)

    def finish(self) -> None:
        """Returns when all is written.

        Raises:
          InputError: a checkpoint could not be written; the ones before are kept.
        """
        written, self._written = self._written, None
        if written is not None:
            written.result()

    def _write_on(self, checkpoint: "_Prepared | None") -> None:
        """Writes a checkpoint, and what has come to wait meanwhile."""
        try:
            while checkpoint is not None:
                self._write(checkpoint)
                with self._lock:
                    checkpoint, self._waiting = self._waiting, None
                    self._writing = checkpoint is not None
            trim_host_memory()  # of Orbax's copies
        except BaseException:
            with self._lock:
                self._writing, self._waiting = False, None
            raise

    def _write(self, checkpoint: "_Prepared") -> None:
        step, model, train = checkpoint.step, checkpoint.model, checkpoint.train
        self._keep.steps = checkpoint.keep
        # Asked before, because Orbax's threads tell of a full disk in hundreds of lines.
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves((model, train)))
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            raise self._unwritten(
                step, f"it needs {needed / 1e6:.0f} MB, {free / 1e6:.0f} are free"
            )
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    model=ocp.args.StandardSave(model),
                    train=ocp.args.StandardSave(train),
                    meta=ocp.args.JsonSave(checkpoint.meta),
                ),
            )
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) or "RESOURCE_EXHAUSTED" in str(error):
                raise self._unwritten(step, _first_line(error)) from error
            raise

    def _unwritten(self, step: int, reason: str) -> InputError:
        return InputError(
            f"{self.directory}: checkpoint {step} could not be written ({reason}); earlier "
            "checkpoints are kept, make room and start again with the same command"
        )

    def restore(self, step: int) -> Restored:
        """Reads a checkpoint.

        Raises:
          InputError: it cannot be read.
        """
        self.finish()
        items = ocp.args.Composite(
            model=ocp.args.StandardRestore(),
            train=ocp.args.StandardRestore(),
            meta=ocp.args.JsonRestore(),
        )
        try:
            found = self._manager.restore(step, args=items)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self.directory / str(step)}: this checkpoint cannot be read "
                f"({_first_line(error)}); remove that folder to go on from an earlier one"
            ) from error
        model, train = (jax.tree.map(np.asarray, found[name]) for name in ("model", "train"))
        meta = dict(found["meta"])
        places = meta.pop(_PLACES, None)
        if places is not None:  # else a checkpoint from before there was packing
            train = _unpacked(train, places)
        return Restored(step, model, train, meta)


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """A checkpoint as it will be written."""

    step: int
    model: Any
    train: dict[str, np.ndarray]
    meta: dict[str, Any]
    keep: frozenset[int]


def _prepared(
    step: int,
    variables: Mapping[str, Any],
    train: Any,
    meta: Mapping[str, Any],
    keep: Iterable[int],
) -> _Prepared:
    model = jax.tree.map(np.asarray, dict(variables))
    vectors, places = _raveled(by_name(train))
    as_json = json.loads(json.dumps({**meta, _PLACES: places}))
    return _Prepared(step, model, vectors, as_json, frozenset(keep))


def _raveled(leaves: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[list[Any]]]:
    """Arrays one behind the other, a vector for each dtype, and the name and shape of each.

    Orbax takes more than a millisecond for an array, however small; an optimizer has a thousand.
    """
    of_type: dict[str, list[np.ndarray]] = {}
    for leaf in leaves.values():
        of_type.setdefault(leaf.dtype.name, []).append(leaf.ravel())
    vectors = {name: np.concatenate(parts) for name, parts in of_type.items()}
    return vectors, [[n, leaf.dtype.name, list(leaf.shape)] for n, leaf in leaves.items()]


def _unpacked(
    vectors: Mapping[str, np.ndarray], places: Iterable[tuple[str, str, list[int]]]
) -> dict[str, np.ndarray]:
    """The inverse of `_raveled`."""
    taken = dict.fromkeys(vectors, 0)
    leaves = {}
    for name, dtype, shape in places:
        start, size = taken[dtype], math.prod(shape)
        leaves[name] = vectors[dtype][start : start + size].reshape(shape)
        taken[dtype] = start + size
    return leaves


def by_name(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a tree by name, so that a checkpoint depends on no class of optax."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def from_names(leaves: Mapping[str, Any], like: Any) -> Any:
    """The inverse of `by_name`: a tree of the structure of `like`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: leaves[jax.tree_util.keystr(path)], like
    )


def read_model(directory: str | Path, step: int | None = None) -> tuple[dict[str, Any], dict]:
    """The network of a training checkpoint, for the weights converter.

    Args:
      directory: a work directory, its `checkpoints` folder, or one checkpoint in it.
      step: which; by default the one that the run was judged by, or the last one if it was not.

    Returns:
      The variables as NumPy arrays, and what the network is (the fields of `WeightsInfo`). If it
      was judged, `extra` holds its operating point, whose `tta` says how.

    Raises:
      InputError: there is no checkpoint.
    """
    directory = Path(directory)
    if directory.name.isdigit() and (directory / "_CHECKPOINT_METADATA").exists():
        directory, step = directory.parent, int(directory.name)
    if (directory / "checkpoints").is_dir():
        directory = directory / "checkpoints"
    if not any(child.name.isdigit() for child in directory.glob("*")):
        raise InputError(f"{directory}: no checkpoint in it; expected a work directory of main.py")
    judged = _judgement(directory.parent / OPERATING_POINT_FILE)
    checkpoints = Checkpoints(directory)
    if step is None:
        step = judged.get("step", checkpoints.steps[-1])
    if step not in checkpoints.steps:
        raise InputError(
            f"{directory}: no checkpoint of step {step}, which the run was judged by, only of "
            f"{', '.join(map(str, checkpoints.steps))}; run --mode=evaluate again"
        )
    restored = checkpoints.restore(step)
    network = restored.meta["network"]
    if judged.get("step") == step:
        network = {**network, "extra": {**network.get("extra", {}), "operating_point": judged}}
    return restored.variables, network


def _judgement(path: Path) -> dict[str, Any]:
    """What the evaluation of a run decided; {} if it was not evaluated."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); run --mode=evaluate again to write it anew"
        ) from error
    return found if isinstance(found, dict) else {}


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
