"""Checkpoints of a run, each whole or absent. The only file that knows Orbax.

A checkpoint has three items: `model` (parameters and statistics, all that inference needs),
`train` (the optimizer's state, as one vector for each dtype), and `meta` (the progress of the run
with its history, and what the network is).
"""

import dataclasses
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, CustomSteps, LatestN

from densenet_flax.common.errors import InputError
from densenet_flax.common.host_memory import CHECKPOINT_WRITTEN
from densenet_flax.common.sharding import multiple_processes
from densenet_flax.common.trees import JsonDict, Variables
from densenet_flax.storage.atomic import writing
from densenet_flax.storage.latest_writer import LatestWriter
from densenet_flax.storage.named_arrays import NamedVector, join, split

_TRAIN_ENTRIES = "train_leaves"  # key in `meta`: which arrays the vectors of `train` hold


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint holds; arrays are NumPy's, so that any number of devices can take them."""

    step: int  # of the whole run
    variables: Variables
    train: dict[str, np.ndarray]  # what else training needs, by name
    meta: JsonDict


@dataclasses.dataclass(frozen=True)
class _Snapshot(Restored):
    """A checkpoint as it will be written: copies that training does not change."""

    keep: frozenset[int]


class Checkpoints:
    """The checkpoints of one work directory."""

    def __init__(self, directory: Path):
        """Opens, or creates, `directory`; an `InputError` says if that cannot be done."""
        self.directory = directory.resolve()  # Orbax wants absolute paths
        self._keep = AnyPreservationPolicy([LatestN(1)])
        # Orbax's own asynchronous mode would make each save wait for the one before.
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._keep, enable_async_checkpointing=False
        )
        with writing(self.directory):
            self._manager = ocp.CheckpointManager(self.directory, options=options)
        self._writer = LatestWriter[_Snapshot](lambda snapshot: self._write(snapshot))

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
        variables: Variables,
        train: Iterable[NamedVector],
        meta: Mapping[str, Any],
        *,
        keep: Iterable[int] = (),
        background: bool = False,
    ) -> None:
        """Writes a checkpoint; earlier ones stay until this one is complete.

        Args:
          step: of the whole run.
          variables: the network, all that inference needs, as NumPy arrays that nobody changes.
          train: what else training needs; it may be changed as soon as this returns.
          meta: anything that JSON can hold; likewise.
          keep: steps whose checkpoints stay; all others but this one are deleted.
          background: whether to return before it is written.

        Raises:
          InputError: this one, or one in the background before it, cannot be written.
        """
        # Where checkpoints come faster than they can be written, one that waits makes room for the
        # next, unless `keep` names it. Several processes always wait: they write it together.
        keep = frozenset(keep)
        waiting = self._writer.waiting
        background = background and not multiple_processes()
        if not background or (waiting is not None and waiting.step in keep):
            self.finish()
        vectors, entries = join(train)
        # Through JSON, which copies what the caller goes on to change.
        meta_copy = json.loads(json.dumps({**meta, _TRAIN_ENTRIES: entries}))
        model = jax.tree.map(np.asarray, dict(variables))
        write = self._writer.submit if background else self._write
        write(_Snapshot(step, model, vectors, meta_copy, keep))

    def finish(self) -> None:
        """Returns when all is written; an `InputError` if a checkpoint could not be."""
        self._writer.flush()

    def _write(self, snapshot: _Snapshot) -> None:
        step = snapshot.step
        # Orbax deletes the others when this one is complete.
        self._keep.policies = [LatestN(1), CustomSteps(sorted(snapshot.keep))]
        # Checked first, because Orbax's threads report a full disk in hundreds of lines.
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves((snapshot.variables, snapshot.train)))
        if (free := shutil.disk_usage(self.directory).free) < needed:
            reason = f"it needs {needed / 1e6:.0f} MB, {free / 1e6:.0f} are free"
            raise self._write_error(step, reason)
        items = ocp.args.Composite(
            model=ocp.args.StandardSave(snapshot.variables),
            train=ocp.args.StandardSave(snapshot.train),
            meta=ocp.args.JsonSave(snapshot.meta),
        )
        try:
            self._manager.save(step, args=items)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) or "RESOURCE_EXHAUSTED" in str(error):
                raise self._write_error(step, _first_line(error)) from error
            raise
        jax.monitoring.record_event(CHECKPOINT_WRITTEN)

    def _write_error(self, step: int, reason: str) -> InputError:
        return InputError(
            f"{self.directory}: checkpoint {step} could not be written ({reason}); earlier "
            "checkpoints are kept, make room and run the same command again"
        )

    def restore(self, step: int) -> Restored:
        """Reads a checkpoint; an `InputError` says if it cannot be read."""
        self.finish()
        tree, meta = ocp.args.StandardRestore(), ocp.args.JsonRestore()
        items = ocp.args.Composite(model=tree, train=tree, meta=meta)
        try:
            content = self._manager.restore(step, args=items)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self.directory / str(step)}: this checkpoint cannot be read "
                f"({_first_line(error)}); remove that folder to resume from an earlier one"
            ) from error
        model, train = (jax.tree.map(np.asarray, content[name]) for name in ("model", "train"))
        facts = dict(content["meta"])
        entries = facts.pop(_TRAIN_ENTRIES, None)
        if entries is not None:  # else the first form of a checkpoint, with an array for each name
            train = split(train, entries)
        return Restored(step, model, train, facts)


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is one checkpoint, named by its step."""
    return folder.name.isdigit() and (folder / "_CHECKPOINT_METADATA").exists()


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
