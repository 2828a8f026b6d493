"""Predictions of any number of image files, in little memory, that can be stopped and resumed.

An image travels from its file to the table in these steps: threads decode and prepare it ahead of
the network (`_load`); the network runs on batches of them (`run_batches`); features, overlays and a
journal entry are written for each batch (`_write`). At the end the table is made from the journal
(`write_tables`), so it appears only when it is complete.
"""

import contextlib
import dataclasses
import functools
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import logging

from densenet_flax.common.console import progress_bar
from densenet_flax.common.errors import InputError, Stopped
from densenet_flax.common.interrupts import sigterm_as_interrupt
from densenet_flax.common.sharding import device_kinds
from densenet_flax.data.images.decode import decoded
from densenet_flax.data.images.formats import png_mark
from densenet_flax.inference.batch.feature_file import FeatureFile
from densenet_flax.inference.batch.image_files import (
    ImageFile,
    find_images,
    patients_from_names,
    with_names_in_data,
)
from densenet_flax.inference.batch.journal import Journal
from densenet_flax.inference.batch.network_batches import (
    Batch,
    LoadedImage,
    hash_variables,
    run_batches,
)
from densenet_flax.inference.batch.outputs import OutputOptions, partial_path
from densenet_flax.inference.batch.overlay_files import (
    check_overlays,
    mark_overlays,
    overlay_names,
)
from densenet_flax.inference.batch.table_writer import (
    Part,
    chunks,
    decided_classes,
    prediction_columns,
    write_features,
    write_table,
)
from densenet_flax.inference.classifier import Classifier, ForwardOutput
from densenet_flax.inference.load import load_classifier
from densenet_flax.inference.overlay import draw_panel, shrink_to_display
from densenet_flax.storage.atomic import atomic_file
from densenet_flax.storage.locks import locked
from densenet_flax.storage.workdir import Workdir

ROWS_PER_CHUNK = 4096  # rows of the table that are in memory at a time


@dataclasses.dataclass(frozen=True)
class Summary:
    """What was predicted.

    Attributes:
      decisions: number of images by decided class; of independent classes an image counts in each
        that is present.
      images: number of images that were predicted.
      skipped: for each file that cannot be read, a line that says why.
    """

    decisions: Mapping[str, int]
    images: int
    skipped: tuple[str, ...]


def predict(
    network: str, images: str, options: OutputOptions, *, batch_size: int | None = None
) -> Summary:
    """Predicts image files with a trained network, as `main.py --mode=predict` does.

    Args and errors are those of `load_classifier`, `find_images` and `predict_files`. The summary
    is also logged.
    """
    options.check()  # before the network is loaded
    files = with_names_in_data(find_images(images), _training_roots(network))
    classifier = load_classifier(network, batch_size=batch_size)
    logging.info("device: %s; %s", device_kinds(), classifier.model.computation)
    summary = predict_files(classifier, files, options)
    decisions = ", ".join(f"{count} {name}" for name, count in summary.decisions.items())
    logging.info("%s: %d images: %s", options.output, summary.images, decisions)
    if skipped := summary.skipped:
        message = "%d of %d files cannot be read and were skipped, such as %s"
        logging.warning(message, len(skipped), len(files), skipped[0])
    return summary


def _training_roots(network: str) -> list[str]:
    """The folders that a run found its tiles in; [] for a weights file, which does not say."""
    data = Workdir(network).read_config().get("data") if Path(network).is_dir() else None
    data = data if isinstance(data, dict) else {}
    # In other data the file names alone say whose the images are.
    paths = [data.get("path"), data.get("test_path")] if data.get("name") == "folder" else []
    return [path for path in paths if isinstance(path, str) and path]


def predict_files(
    classifier: Classifier, files: Sequence[ImageFile], options: OutputOptions
) -> Summary:
    """Predicts image files and writes the table. Unreadable files are logged and have no row.

    Raises:
      InputError: an output exists or cannot be written, or no file can be read.
      Stopped: by SIGINT or SIGTERM. What is done is kept, and the same call resumes.
    """
    options.check()
    width = classifier.count_features(options.unit)  # rejects an unknown unit
    if options.overlays:
        check_overlays(options.overlays, files)
    key, names = _job_digest(classifier, files, options), [file.name for file in files]
    # Before the work begins: a pattern in a weights file may be one that never ends.
    patients = dict(zip(names, patients_from_names(files, classifier.info.inference), strict=True))
    with contextlib.ExitStack() as stack:
        features = None
        if options.embeddings:
            features = FeatureFile(partial_path(options.embeddings), width)
            stack.callback(features.close)
        is_complete = features.has_row if features else lambda entry: True
        journal = Journal(partial_path(options.output), key, names, is_complete)
        stack.callback(journal.close)
        if journal.is_new:
            options.check_other_outputs()
        else:
            logging.info("resuming after %d of %d images", journal.done, len(files))
        journal.begin()
        if features:
            features.drop_rest()
        if options.overlays:
            mark_overlays(options.overlays)
            in_use = "another process is writing pictures into it; wait for it, or choose another"
            stack.enter_context(locked(options.overlays, in_use, file=""))
        job = _Job(classifier, files, options, journal, patients, features)
        try:
            with sigterm_as_interrupt():
                job.process_remaining()
                summary = job.write_tables()
        except KeyboardInterrupt:
            kept = f"what is done is kept in {journal.path}"
            raise Stopped(f"stopped; {kept}; run the same command again to resume") from None
        journal.path.unlink(missing_ok=True)
    return summary


@dataclasses.dataclass(frozen=True)
class _Job:
    """The steps of one call of `predict_files`."""

    classifier: Classifier
    files: Sequence[ImageFile]
    options: OutputOptions
    journal: Journal
    patients: Mapping[str, str]
    features: FeatureFile | None  # None if they are not asked for

    def process_remaining(self) -> None:
        """Predicts the files that the journal does not have yet."""
        files, done = self.files[self.journal.done :], self.journal.done
        unit = self.options.unit if self.features else "norm"
        with progress_bar(len(self.files), "predict", initial=done) as progress:
            # The network takes the next batch while the files of this one are written.
            for batch in run_batches(self.classifier, files, self._load, unit=unit):
                self._write(batch)
                progress.update(len(batch.items))

    def _load(self, file: ImageFile) -> LoadedImage | InputError:
        try:
            with decoded(file.path, file.path, self.classifier.info.inference.bits) as pixels:
                prepared = self.classifier.prepare(pixels)
                displayed = shrink_to_display(pixels) if self.options.overlays else prepared
        except InputError as error:
            return error
        return LoadedImage(prepared, displayed)

    def _write(self, batch: Batch[ImageFile]) -> None:
        """Waits for the output of the network and writes all about a batch."""
        output = batch.output() if batch.output else None
        checksums = None
        if output and self.features:
            checksums = self.features.append(output.features)
        if output and self.options.overlays:
            self._write_overlays(self.options.overlays, batch, output)
        # The journal comes last: after a kill before this line the batch is processed again, and
        # what it had appended to the features is dropped.
        self.journal.append(batch.entries(lambda file: file.name, output, checksums))

    def _write_overlays(
        self,
        folder: Path,
        batch: Batch[ImageFile],
        output: ForwardOutput,
    ) -> None:
        prediction, unit = self.classifier.decide(output.probability), self.options.unit
        class_names, decisions = prediction.class_names, prediction.decision
        assert batch.prepared is not None
        maps = self.classifier.explain_batch(
            batch.prepared, prediction.label, output, unit=unit, method=self.options.maps
        )
        for i, (file, image) in enumerate(batch.readable):
            # The map explains one class, also where several or none are present.
            explained = class_names[prediction.label[i]]
            p = prediction.probability[i, prediction.label[i]]
            caption = f"called {decisions[i] or 'none'}: P({explained}) = {p:.3f}"
            panel = draw_panel(image.displayed, maps[i], caption=caption)
            with atomic_file(folder / self._pictures[file.name]) as temporary:
                panel.save(temporary, "PNG", pnginfo=png_mark())

    @functools.cached_property
    def _pictures(self) -> dict[str, str]:
        return overlay_names(file.name for file in self.files)

    def _predicted(self) -> Iterator[tuple[ImageFile, list[float]]]:
        """The files that the journal has probabilities of."""
        for file, entry in zip(self.files, self.journal.entries(), strict=False):
            if not isinstance(entry.value, str):
                yield file, entry.value

    def write_tables(self) -> Summary:
        """Writes the table and the embeddings from what is on disk; InputError if it is nothing."""
        values = (entry.value for entry in self.journal.entries())
        skipped = [value for value in values if isinstance(value, str)]
        if len(skipped) == len(self.files):
            self.journal.path.unlink(missing_ok=True)  # so that repaired files are read again
            message = f"none of the {len(self.files)} images can be read, such as {skipped[0]}"
            raise InputError(message)
        # The table comes last: as long as it is missing, the same command resumes.
        embeddings = self.options.embeddings
        width = self.classifier.count_features(self.options.unit)
        if embeddings:
            paths = (str(file.path) for file, _ in self._predicted())
            write_features(embeddings, partial_path(embeddings), width, paths, ROWS_PER_CHUNK)
        counts = Counter[str]()
        write_table(self.options.output, self._table_parts(counts))
        if embeddings:
            partial_path(embeddings).unlink(missing_ok=True)
        decisions = {name: counts[name] for name in self.classifier.class_names}
        return Summary(decisions, len(self.files) - len(skipped), tuple(skipped))

    def _table_parts(self, counts: Counter[str]) -> Iterator[Part]:
        """Yields the table part by part, and counts the decisions."""
        for chunk in chunks(self._predicted(), ROWS_PER_CHUNK):
            prediction = self.classifier.decide(np.array([row for _, row in chunk]))
            counts.update(decided_classes(prediction))
            yield {
                "file": [str(file.path) for file, _ in chunk],
                "patient": [self.patients[file.name] for file, _ in chunk],
                **prediction_columns(prediction),
            }


def _job_digest(classifier: Classifier, files: Sequence[ImageFile], options: OutputOptions) -> str:
    """A digest of the network, the files and the outputs: a job resumes only if it is the same."""
    # The values of the network and not its file name: a retrained network is another job.
    digest = hash_variables(classifier.variables)
    settings = {
        **classifier.describe(),
        "overlays": [str(options.overlays), options.unit] if options.overlays else None,
        "embeddings": str(options.embeddings),
    }
    if options.overlays and options.maps != "cam":
        settings["maps"] = options.maps
    if options.embeddings and options.unit != "norm":  # else as before there was a choice
        settings["features"] = options.unit
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for file in files:
        with contextlib.suppress(OSError):  # a file that cannot be read is reported when it is due
            # Size and time stand for the content, which may be terabytes.
            stat = file.path.stat()
            digest.update(f"{stat.st_size} {stat.st_mtime_ns} ".encode())
        digest.update(os.fsencode(file.path) + b"\0")
    return digest.hexdigest()
