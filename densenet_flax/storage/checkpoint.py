"""Checkpoints of a run, each whole or absent. The only file that knows Orbax.

A checkpoint has three items: `model` (parameters and statistics, all that inference needs),
`train` (the optimizer's state, as one vector for each dtype), and `meta` (the progress of the run
with its history, and what the network is).
"""

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, CustomSteps, LatestN

from densenet_flax.common.errors import InputError
from densenet_flax.common.host_memory import CHECKPOINT_WRITTEN
from densenet_flax.common.reading import check_regular, reading
from densenet_flax.common.sharding import (
    all_processes,
    broadcast,
    is_first_process,
    multiple_processes,
)
from densenet_flax.common.trees import JsonDict, Variables
from densenet_flax.storage.atomic import writing
from densenet_flax.storage.latest_writer import LatestWriter
from densenet_flax.storage.locks import is_locked
from densenet_flax.storage.named_arrays import NamedVector, join, split

# Keys in `meta`: which arrays the vectors of `train` hold, and a checksum of each item.
_TRAIN_ENTRIES = "train_leaves"
_CHECKSUMS = "crc32"

_UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a folder that Orbax has not finished


class DamagedCheckpoint(InputError):
    """A checkpoint is not there, or not as it was written.

    Attributes:
      problem: what is wrong, without what can be done.
    """

    def __init__(self, problem: str, advice: str):
        super().__init__(f"{problem}; {advice}")
        self.problem = problem


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint holds; arrays are NumPy's, so that any number of devices can take them."""

    step: int  # of the whole run
    variables: Variables
    train: dict[str, np.ndarray]  # what else training needs, by name
    meta: JsonDict


# Returns the variables and what else training needs, on the host.
ReadState: TypeAlias = Callable[[], tuple[Variables, Iterable[NamedVector]]]


@dataclasses.dataclass(frozen=True)
class _Snapshot:
    """A checkpoint that will be written: nothing in it is changed by training."""

    step: int
    read: ReadState
    meta: JsonDict
    keep: frozenset[int]


class Checkpoints:
    """The checkpoints of one work directory."""

    def __init__(self, directory: Path, *, read_only: bool = False):
        """Opens, or creates, `directory`; an `InputError` says if that cannot be done.

        `read_only` is for who does not hold the lock of the work directory: nothing is changed, and
        a run may go on there.
        """
        self.directory = directory.resolve()  # Orbax wants absolute paths
        self._read_only = read_only
        self._keep = AnyPreservationPolicy([LatestN(1)])
        _check_tree(directory)
        # Orbax's own asynchronous mode would make each save wait for the one before.
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._keep,
            enable_async_checkpointing=False,
            create=not read_only,  # its own `read_only` warns about itself
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
        read: ReadState,
        meta: Mapping[str, Any],
        *,
        keep: Iterable[int] = (),
        background: bool = False,
    ) -> None:
        """Writes a checkpoint; earlier ones stay until this one is complete.

        Args:
          step: of the whole run.
          read: returns the variables of the network, all that inference needs, and what else
            training needs. In the background it is called by the thread that writes, so that
            nobody waits for copies to the host; what it reads must not change.
          meta: anything that JSON can hold; it may be changed as soon as this returns.
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
        # Through JSON, which copies what the caller goes on to change.
        snapshot = _Snapshot(step, read, json.loads(json.dumps(dict(meta))), keep)
        write = self._writer.submit if background else self._write
        write(snapshot)

    def finish(self) -> None:
        """Returns when all is written; an `InputError` if a checkpoint could not be."""
        self._writer.flush()

    def _write(self, snapshot: _Snapshot) -> None:
        step = snapshot.step
        variables, state = snapshot.read()
        model = jax.tree.map(np.asarray, dict(variables))
        train, entries = join(state)
        # Orbax deletes the others when this one is complete.
        self._keep.policies = [LatestN(1), CustomSteps(sorted(snapshot.keep))]
        trees: dict[str, Any] = {"model": model}
        if train:  # before the first step there is nothing to keep
            trees["train"] = train
        checksums = {n: _tree_checksum(t) for n, t in {**trees, "meta": snapshot.meta}.items()}
        meta = {**snapshot.meta, _TRAIN_ENTRIES: entries, _CHECKSUMS: checksums}
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        items["meta"] = ocp.args.JsonSave(meta)
        # Checked first, because Orbax's threads report a full disk in hundreds of lines.
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves((model, train)))
        try:
            if (free := shutil.disk_usage(self.directory).free) < needed:
                raise OSError(f"it needs {needed / 1e6:.0f} MB, {free / 1e6:.0f} are free")
            self._manager.save(step, args=ocp.args.Composite(**items))
        except Exception as error:
            if not self.directory.is_dir():
                raise InputError(
                    f"{self.directory}: was removed while the run wrote to it; put it back, or "
                    "start the run again"
                ) from error
            if isinstance(error, OSError) or "RESOURCE_EXHAUSTED" in str(error):
                raise self._write_error(step, _first_line(error)) from error
            raise
        jax.monitoring.record_event(CHECKPOINT_WRITTEN)

    def _write_error(self, step: int, reason: str) -> InputError:
        return InputError(
            f"{self.directory}: checkpoint {step} could not be written ({reason}); earlier "
            "checkpoints are kept, make room and run the same command again"
        )

    def restore(self, step: int, *, train: bool = True) -> Restored:
        """Reads a checkpoint.

        Args:
          step: one of `steps`.
          train: whether to read what only training needs. It may be missing, and is then empty.

        Raises:
          DamagedCheckpoint: it is not there, or not as it was written.
        """
        self.finish()
        folder = self.directory / str(step)
        tree = ocp.args.StandardRestore()
        items: dict[str, Any] = {"model": tree, "meta": ocp.args.JsonRestore()}
        if train and (folder / "train").is_dir():
            items["train"] = tree
        try:
            content = self._manager.restore(step, args=ocp.args.Composite(**items))
            facts = dict(content["meta"])
            saved = {n: jax.tree.map(np.asarray, content[n]) for n in items if n != "meta"}
            entries, checksums = facts.pop(_TRAIN_ENTRIES, None), facts.pop(_CHECKSUMS, {})
            # Earlier versions kept none.
            read = {**saved, "meta": facts}
            wrong = [
                n for n, crc in checksums.items() if n in read and _tree_checksum(read[n]) != crc
            ]
            if wrong:
                raise ValueError(f"{' and '.join(wrong)}: not the bytes that were written")
            arrays = saved.get("train", {})
            if entries is not None and "train" in saved:  # else in the first form, by name
                arrays = split(arrays, entries)
        # Orbax raises anything for a file with a flipped bit.
        except Exception as error:
            problem = f"{folder}: this checkpoint cannot be read ({_first_line(error)})"
            advice = "put it back, or remove that folder to go on from an earlier one"
            if not folder.is_dir():
                problem, advice = f"{folder}: this checkpoint is missing", "put it back"
            raise DamagedCheckpoint(problem, self._advice_to_reader() or advice) from error
        return Restored(step, saved["model"], arrays, facts)

    def restore_latest(self, *, train: bool = True, repair: bool = False) -> Restored | None:
        """The newest checkpoint that can be read; a warning says which newer ones cannot.

        Args:
          train: as for `restore`.
          repair: whether to move those aside, as training will write these steps again, and to
            remove what a killed process left.

        Returns:
          None if there is no checkpoint at all.

        Raises:
          DamagedCheckpoint: there are checkpoints, and none can be read.
        """
        if repair and is_first_process():
            self._remove_unfinished()
        steps = self._steps_of_first_process()
        if not steps:
            return None
        restored = self.restore_first(steps[::-1], train=train)
        damaged = [step for step in steps if step > restored.step]
        if damaged and repair and is_first_process():
            self._move_aside(damaged)
        return restored

    def restore_first(self, steps: Sequence[int], *, train: bool = True) -> Restored:
        """The first of several checkpoints that can be read, the same one in all processes.

        A warning says which ones before it cannot.

        Raises:
          DamagedCheckpoint: none can be read.
        """
        for step in steps:
            failure = None
            try:
                restored = self.restore(step, train=train)
            except DamagedCheckpoint as error:
                failure = error
            if all_processes(failure is None):  # they go on from the same one
                if step != steps[0]:
                    logging.warning("taking the checkpoint of step %d instead", step)
                return restored
            if failure is None:
                problem = f"{self.directory / str(step)}: another process cannot read it"
                failure = DamagedCheckpoint(problem, "put it back")
            if step == steps[0]:
                first = failure
            logging.warning("%s", failure.problem)
        others = f", nor can {', '.join(map(str, steps[1:]))}" if steps[1:] else ""
        advice = (
            self._advice_to_reader() or "put it back, or choose another --workdir to start again"
        )
        raise DamagedCheckpoint(first.problem + others, advice)

    def _advice_to_reader(self) -> str:
        is_replaced = self._read_only and is_locked(self.directory.parent)
        return "a run is working in this directory; try again when it is done" * is_replaced

    def _steps_of_first_process(self) -> list[int]:
        # On shared storage one process may see a directory later than another.
        steps = self.steps
        count = int(broadcast(np.array(len(steps))))
        padded = np.resize(steps or [0], count).astype(np.int64)
        return [int(step) for step in broadcast(padded)] if count else []

    def _remove_unfinished(self) -> None:
        for folder in list(self.directory.glob(f"*{_UNFINISHED}*")):
            shutil.rmtree(folder, ignore_errors=True)

    def _move_aside(self, steps: Iterable[int]) -> None:
        aside = self.directory.parent / "damaged_checkpoints"
        with writing(aside):
            aside.mkdir(exist_ok=True)
            for step in steps:
                target = Path(tempfile.mkdtemp(prefix=f"{step}.", dir=aside))
                (self.directory / str(step)).rename(target)
        self._manager.reload()

    def read_meta(self) -> JsonDict:
        """The `meta` of the newest checkpoint where it can be read; {} if there is none."""
        for step in reversed(self.steps):
            # One that is damaged is reported when it is restored.
            with contextlib.suppress(Exception):
                items = ocp.args.Composite(meta=ocp.args.JsonRestore())
                return dict(self._manager.restore(step, args=items)["meta"])
        return {}


def _check_tree(directory: Path) -> None:
    """Refuses what Orbax would wait for without end, or take for something else."""
    # A link to a disk that is not there now would make a run start from the beginning.
    if os.path.lexists(directory) and not directory.is_dir():
        raise InputError(f"{directory}: leads to no folder; put that back, or move this away")
    for path in directory.rglob("*"):
        with reading(path), contextlib.suppress(FileNotFoundError):  # a run replaces it
            if not path.is_dir():
                check_regular(path, path)


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is one checkpoint, named by its step."""
    return folder.name.isdigit() and (folder / "_CHECKPOINT_METADATA").exists()


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _tree_checksum(content: Any) -> int:
    """CRC-32 of a tree of arrays and JSON values: their names, dtypes, shapes and bytes."""
    crc = 0
    for path, leaf in jax.tree.leaves_with_path(content):
        crc = zlib.crc32(jax.tree_util.keystr(path).encode(), crc)
        if isinstance(leaf, np.ndarray):
            crc = zlib.crc32(f"{leaf.dtype}{leaf.shape}".encode(), crc)
            crc = zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data, crc)
        else:
            crc = zlib.crc32(json.dumps(leaf).encode(), crc)
    return crc
