"""Slides in, a folder of results out: what `main.py --mode=slide` does.

    DIR/slides.csv               a row for each slide: its verdict, or why there is none
    DIR/NAME/slide.json          the same of one slide, which says that it is done
    DIR/NAME/tiles.parquet …     what is known about its tiles

A slide is the work of one process, which locks its folder. So several processes, on one machine or
on several that share the folder, divide the slides among them if they run the same command.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from densenet_flax.common.errors import InputError, Stopped, WriteError
from densenet_flax.common.interrupts import sigterm_as_interrupt
from densenet_flax.common.sharding import device_kinds
from densenet_flax.common.trees import JsonDict
from densenet_flax.data.sources.files import OUTPUT_MARK
from densenet_flax.inference.batch.network_batches import hash_variables
from densenet_flax.inference.batch.table_writer import decided_classes
from densenet_flax.inference.classifier import Classifier
from densenet_flax.inference.load import load_classifier
from densenet_flax.inference.slides.field import resolve_field
from densenet_flax.inference.slides.predict_slide import JOURNAL, OUTPUTS, SlidePredictor
from densenet_flax.inference.slides.reader import import_openslide
from densenet_flax.inference.slides.slide_files import SlideFile, find_slides
from densenet_flax.inference.slides.slide_options import SlideOptions
from densenet_flax.inference.slides.slide_result import SlideNetwork, SlideResult
from densenet_flax.inference.slides.slide_tables import (
    DONE,
    FAILED,
    failed_row,
    slide_row,
    write_slides,
)
from densenet_flax.storage.atomic import writing
from densenet_flax.storage.json_files import read_json_object, write_json_object
from densenet_flax.storage.locks import LockedError, locked

TABLE, RECORD = "slides.csv", "slide.json"
_IN_USE = "another process predicts this slide"
# Seconds between two states of the table while slides are being predicted.
_TABLE_INTERVAL = 10.0


@dataclasses.dataclass(frozen=True)
class SlideSummary:
    """What became of the slides of a job.

    Attributes:
      done: names of those that are predicted.
      failed: for each of the others a line that says why not, by name.
      elsewhere: names of those that other processes are predicting.
    """

    done: tuple[str, ...]
    failed: dict[str, str]
    elsewhere: tuple[str, ...]

    def check(self) -> None:
        """Raises InputError if slides have failed, with their number and the first reason."""
        if self.failed:
            name, problem = next(iter(self.failed.items()))
            total = len(self.done) + len(self.failed) + len(self.elsewhere)
            raise InputError(
                f"{len(self.failed)} of {total} slides failed, such as {name}: {problem}; "
                f"{TABLE} says why each of them did"
            )


def predict_slides(
    network: str, slides: str, options: SlideOptions, *, batch_size: int | None = None
) -> SlideSummary:
    """Predicts slides with a trained network, as `main.py --mode=slide` does.

    A slide that cannot be predicted is logged and has a row that says why; the others are done.

    Args:
      network: what `load_classifier` takes.
      slides: a folder, a file or a pattern.
      options: how they are read and where the results go.
      batch_size: tiles at a time, as in `load_classifier`.

    Raises:
      InputError: an option or the network cannot be used, there is no slide, the output is that of
        another job, or it cannot be written.
      Stopped: by SIGINT or SIGTERM. What is done is kept, and the same call resumes.
    """
    options.check()
    import_openslide()
    files = find_slides(slides)
    if options.tissue and options.tissue.is_file() and len(files) > 1:
        raise InputError(
            f"--tissue={options.tissue}: is of one slide, and --slides={slides} are {len(files)}; "
            "give a folder with a file of each slide's name"
        )
    classifier = load_classifier(network, batch_size=batch_size)
    field = resolve_field(classifier.info.inference, classifier.image_size, options.field, network)
    logging.info("device: %s; %s", device_kinds(), classifier.model.computation)
    predictor = SlidePredictor(classifier, field, options, _network_facts(classifier, network))
    return _Job(predictor, files).run()


def _network_facts(classifier: Classifier, network: str) -> SlideNetwork:
    point, classes = classifier.operating_point, classifier.class_names
    has_threshold = len(classes) == 2 and not classifier.is_multilabel
    return SlideNetwork(
        description=f"{classifier.info.network} of {network}",
        class_names=classes,
        threshold=point.threshold if has_threshold else None,
        temperature=point.temperature,
        is_multilabel=classifier.is_multilabel,
    )


class _Job:
    """The slides of one call of `predict_slides`."""

    def __init__(self, predictor: SlidePredictor, files: Sequence[SlideFile]):
        self._predictor, self._files = predictor, files
        self._options, self._output = predictor.options, predictor.options.output
        self._digest = hash_variables(predictor.classifier.variables)
        settings = {
            **predictor.classifier.describe(),
            "field_um": predictor.field.size_um,
            "tile_mpp": predictor.field.mpp,
        }
        self._digest.update(json.dumps(settings, sort_keys=True).encode())
        self._started, self._table_written = time.time(), 0.0
        # Content of records by path, with the time of the file that was read.
        self._records: dict[Path, tuple[int, JsonDict]] = {}

    def run(self) -> SlideSummary:
        """Predicts the slides that are not done; errors are those of `predict_slides`."""
        self._check_output()
        remaining = list(self._files)
        try:
            with sigterm_as_interrupt():
                # What another process has is looked at again at the end: it may have been killed.
                for _ in range(2):
                    remaining = [file for file in remaining if not self._process(file)]
        except KeyboardInterrupt:
            self._write_table()
            raise Stopped(
                f"stopped; what is done is kept in {self._output}; run the same command again to "
                "resume"
            ) from None
        self._write_table()
        return self._summary(remaining)

    def _check_output(self) -> None:
        """Rejects a folder with the results of another job, and marks a new one."""
        done = 0
        for file in self._files:
            if self._is_done(file):
                done += 1
            elif not self._options.overwrite and self._has_other_results(file):
                raise InputError(
                    f"--output={self._output}: {self._folder(file)} has the results of another "
                    "network, other options or an earlier state of the slide; choose another "
                    "folder, or replace them with --overwrite"
                )
        if done:
            logging.info("%d of %d slides are done already", done, len(self._files))
        with writing(self._output):
            self._output.mkdir(parents=True, exist_ok=True)
            # So that the pictures in it are not taken for slides or tiles.
            if not any(self._output.iterdir()):
                (self._output / OUTPUT_MARK).touch()

    def _process(self, file: SlideFile) -> bool:
        """Predicts a slide that is not done; returns False if another process has it."""
        try:
            with locked(self._folder(file), _IN_USE):
                if not self._is_done(file) and not self._failed_lately(file):
                    self._predict(file)
        except LockedError:
            return False
        if time.monotonic() - self._table_written > _TABLE_INTERVAL:
            self._write_table()
        return True

    def _predict(self, file: SlideFile) -> None:
        """Predicts a slide and writes its record."""
        folder = self._folder(file)
        with writing(folder):
            (folder / RECORD).unlink(missing_ok=True)  # it is about files that are replaced now
        content: JsonDict
        try:
            key = self._key(file)
            result = self._predictor.predict(file, folder, key)
            content = {"key": f"{key} {self._options.verdict}", **slide_row(result)}
            _log(result)
        except WriteError:  # of a full disk: no other slide would fare better
            raise
        except InputError as error:
            logging.warning("%s: failed: %s", file.name, error)
            content = failed_row(str(error))
        names = {"slide": file.name, "file": str(file.path)}
        write_json_object(folder / RECORD, {**names, **content}, indent=2)
        if content["status"] == DONE:
            (folder / JOURNAL).unlink(missing_ok=True)

    def _folder(self, file: SlideFile) -> Path:
        return self._output / file.name

    def _key(self, file: SlideFile) -> str:
        """A digest of all that the probabilities of a slide depend on."""
        digest = self._digest.copy()
        facts = [self._options.describe(file.name), file.path.name, file.state()]
        digest.update(json.dumps(facts).encode())
        return digest.hexdigest()

    def _is_done(self, file: SlideFile) -> bool:
        """Whether all files about a slide are there, of this job and of the slide as it is."""
        folder = self._folder(file)
        with contextlib.suppress(InputError):  # the slide cannot even be looked up
            return self._record(folder / RECORD).get(
                "key"
            ) == f"{self._key(file)} {self._options.verdict}" and all(
                (folder / name).is_file() for name in OUTPUTS
            )
        return False

    def _failed_lately(self, file: SlideFile) -> bool:
        """Whether a slide has failed since this job began; others are tried again."""
        path = self._folder(file) / RECORD
        is_failed = self._record(path).get("status") == FAILED
        return is_failed and path.stat().st_mtime > self._started

    def _has_other_results(self, file: SlideFile) -> bool:
        folder = self._folder(file)
        status = self._record(folder / RECORD).get("status")
        if status is None and not (folder / JOURNAL).exists():
            return any((folder / name).exists() for name in OUTPUTS)
        return status == DONE and all((folder / name).is_file() for name in OUTPUTS)

    def _record(self, path: Path) -> JsonDict:
        """The content of a record; {} if there is none, or it is damaged."""
        try:
            time_ns = path.stat().st_mtime_ns
        except OSError:
            return {}
        if self._records.get(path, (0, {}))[0] != time_ns:
            content: JsonDict = {}
            try:
                content = read_json_object(path, "the slide is predicted again")
            except InputError as error:
                logging.warning("%s", error)
            self._records[path] = time_ns, content
        return self._records[path][1]

    def _write_table(self) -> None:
        """Writes the table of all slides in the folder, also of those of other jobs."""
        while True:
            try:
                with locked(self._output, _IN_USE):
                    records = [self._record(path) for path in self._output.rglob(RECORD)]
                    rows = [
                        {name: value for name, value in record.items() if name != "key"}
                        for record in records
                        if record
                    ]
                    if rows:
                        rows.sort(key=lambda row: str(row.get("slide")))
                        write_slides(self._output / TABLE, rows)
                break
            except LockedError:  # another process writes it, which takes no time
                time.sleep(0.05)
        self._table_written = time.monotonic()

    def _summary(self, elsewhere: Sequence[SlideFile]) -> SlideSummary:
        """Counts the slides, of which other processes had the last ones."""
        records = {f.name: self._record(self._folder(f) / RECORD) for f in self._files}
        done = tuple(name for name in records if records[name].get("status") == DONE)
        failed = {
            name: str(record["problem"])
            for name, record in records.items()
            if record.get("status") == FAILED
        }
        names = tuple(file.name for file in elsewhere if file.name not in {*done, *failed})
        message = "%s: %d of %d slides are done, %d failed, %d are with other processes"
        counts = len(done), len(self._files), len(failed), len(names)
        logging.info(message, self._output / TABLE, *counts)
        return SlideSummary(done, failed, names)


def _log(result: SlideResult) -> None:
    verdict = result.verdict
    k = int(verdict.label[0])
    counts = decided_classes(result.prediction)
    tiles = ", ".join(f"{counts.count(name)} {name}" for name in result.network.class_names)
    damaged = f"; {len(result.damaged)} damaged ones are left out" * bool(len(result.damaged))
    logging.info(
        "%s: %s (P(%s) = %.3f); %d tiles: %s%s",
        result.name,
        verdict.decision[0] or "none",
        verdict.class_names[k],
        verdict.probability[0, k],
        len(result.grid),
        tiles,
        damaged,
    )
