"""Any number of image files in, a table out: in little memory, and it can be stopped at any time.

Files are decoded by threads ahead of the network, which takes batches of one shape. What is done
is noted batch by batch beside the output, so the same command goes on where it was stopped; the
output itself appears when it is whole.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from tqdm import tqdm

from densenet_flax.common.errors import InputError, Stopped
from densenet_flax.common.prefetch import prefetch
from densenet_flax.inference.batch import table_writer as tables
from densenet_flax.inference.batch.image_files import ImageFile, find_images, patient_of
from densenet_flax.inference.batch.journal import Journal
from densenet_flax.inference.batch.outputs import OutputOptions, partial
from densenet_flax.inference.classifier import Classifier, load_classifier
from densenet_flax.inference.inputs import read_pixels
from densenet_flax.inference.overlay import draw_panel, shrink_to_display
from densenet_flax.inference.saliency import next_unit
from densenet_flax.storage.atomic import atomic_file, writing

CHUNK = 4096  # rows of the table that are in memory at a time


@dataclasses.dataclass(frozen=True)
class Summary:
    """What came of it: rows of the table, by decision, and a line for each file left out."""

    decisions: dict[str, int]
    skipped: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Loaded:
    """An image as the network takes it, and, if a picture is wanted, as it shows it."""

    prepared: np.ndarray
    shown: np.ndarray


def predict(
    network: str, images: str, wanted: OutputOptions, *, batch_size: int | None = None
) -> Summary:
    """Predicts images with a trained network: what `main.py --mode=predict` does.

    Args:
      network: a work directory or a weights file, as for `load_classifier`.
      images: a folder, a file or a pattern, as for `find_images`.
      wanted: what to write.
      batch_size: images at a time; by default that of training, or 32.

    Returns:
      A summary, which is also logged.

    Raises:
      InputError: as `load_classifier`, `find_images` and `predict_files`.
      Stopped: as `predict_files`.
    """
    wanted.check()
    found = find_images(images)
    classifier = load_classifier(network, batch_size=batch_size)
    summary = predict_files(classifier, found, wanted)
    decisions = ", ".join(f"{n} {name}" for name, n in summary.decisions.items())
    logging.info("%s: %d images: %s", wanted.output, sum(summary.decisions.values()), decisions)
    if summary.skipped:
        logging.warning(
            "%d of %d files could not be used and have no row, such as %s",
            len(summary.skipped),
            len(found),
            summary.skipped[0],
        )
    return summary


def predict_files(
    classifier: Classifier, images: Sequence[ImageFile], wanted: OutputOptions
) -> Summary:
    """Predicts every image and writes the table.

    Args:
      classifier: the network.
      images: which files; see `found.find_images`.
      wanted: what to write.

    Returns:
      A summary. Files that cannot be used are logged and have no row.

    Raises:
      InputError: an output cannot be written or is there already, or no file can be used.
      Stopped: SIGINT or SIGTERM; what is done is kept, and the same call goes on.
    """
    wanted.check()
    if wanted.overlays:
        next_unit(classifier.model, wanted.unit)
    journal = Journal(partial(wanted.output), _key(classifier, images, wanted))
    try:
        if not journal.done:
            wanted.check_rest()
        else:
            logging.info("going on after %d of %d images", journal.done, len(images))
        with _stoppable():
            _run(classifier, images, wanted, journal)
            summary = _finish(classifier, images, wanted, journal)
    except KeyboardInterrupt:
        raise Stopped(
            f"stopped; what is done is kept in {journal.path}, and the same command goes on"
        ) from None
    finally:
        journal.close()
    journal.path.unlink(missing_ok=True)
    return summary


def _run(
    classifier: Classifier, images: Sequence[ImageFile], wanted: OutputOptions, journal: Journal
) -> None:
    """Does what is left of the images."""
    features = _open_features(classifier, wanted, journal)
    size = classifier.images_per_batch
    bar = tqdm(total=len(images), initial=journal.done, desc="predict", unit="img", disable=None)
    with bar, features or contextlib.nullcontext():
        waiting: list[tuple[ImageFile, _Loaded | InputError]] = []
        good = 0
        load = _loader(classifier, wanted)
        rest = images[journal.done :]
        for found, loaded in zip(rest, prefetch(load, rest, depth=2 * size), strict=True):
            waiting.append((found, loaded))
            good += isinstance(loaded, _Loaded)
            if isinstance(loaded, InputError):
                with tqdm.external_write_mode():
                    logging.warning("left out: %s", loaded)
            if good == size or len(waiting) >= 4 * size:
                _do(classifier, waiting, wanted, journal, features)
                bar.update(len(waiting))
                waiting, good = [], 0
        if waiting:
            _do(classifier, waiting, wanted, journal, features)
            bar.update(len(waiting))


def _do(
    classifier: Classifier,
    batch: Sequence[tuple[ImageFile, _Loaded | InputError]],
    wanted: OutputOptions,
    journal: Journal,
    features: Any,
) -> None:
    """One batch through the network, and all that is written of it; the journal last."""
    good = [(found, loaded) for found, loaded in batch if isinstance(loaded, _Loaded)]
    rows: Iterator[list[float]] = iter(())
    if good:
        prepared = np.stack([loaded.prepared for _, loaded in good])
        output = classifier.forward(prepared)
        rows = iter(output.probability.tolist())
        if features:
            with writing(features.name):
                features.write(output.features.tobytes())
                features.flush()
                os.fsync(features.fileno())
        if wanted.overlays:
            result = classifier.decide(output.probability)
            maps = classifier.explain_batch(prepared, result.label, output, unit=wanted.unit)
            for i, (found, loaded) in enumerate(good):
                name, p = result.decision[i], result.probability[i, result.label[i]]
                picture = draw_panel(
                    loaded.shown, maps[i], caption=f"called {name}: P({name}) = {p:.3f}"
                )
                with atomic_file(wanted.overlay_of(found)) as temporary:
                    picture.save(temporary, "PNG")
    journal.add(
        [
            [found.name, str(loaded)]
            if isinstance(loaded, InputError)
            else [found.name, next(rows)]
            for found, loaded in batch
        ]
    )


def _loader(
    classifier: Classifier, wanted: OutputOptions
) -> Callable[[ImageFile], _Loaded | InputError]:
    def load(found: ImageFile) -> _Loaded | InputError:
        try:
            pixels = read_pixels(found.path, found.path)
            prepared = classifier.prepare(pixels)
            return _Loaded(prepared, shrink_to_display(pixels) if wanted.overlays else prepared)
        except InputError as error:
            return error

    return load


def _finish(
    classifier: Classifier, images: Sequence[ImageFile], wanted: OutputOptions, journal: Journal
) -> Summary:
    """From the journal to the table, a chunk at a time."""
    skipped = [value for _, value in journal.read() if isinstance(value, str)]
    if len(skipped) == len(images):
        journal.path.unlink(missing_ok=True)  # so that mended files are looked at again
        raise InputError(f"none of the {len(images)} images can be used, such as {skipped[0]}")
    settings, counts = classifier.info.inference, Counter[str]()

    def rows() -> Iterator[tuple[ImageFile, list[float]]]:
        for found, (_, value) in zip(images, journal.read(), strict=True):
            if not isinstance(value, str):
                yield found, value

    def columns() -> Iterator[dict[str, Any]]:
        for some in tables.chunks(rows(), CHUNK):
            result = classifier.decide(np.array([values for _, values in some]))
            counts.update(result.decision.tolist())
            table: dict[str, Any] = {
                "file": [str(found.path) for found, _ in some],
                "patient": [patient_of(found, settings) for found, _ in some],
            }
            for title in ("probability", "calibrated"):
                values = getattr(result, title)
                if len(classifier.class_names) == 2:
                    table[title] = values[:, 1]
                else:
                    for name, column in zip(classifier.class_names, values.T, strict=True):
                        table[f"{title}_{name}"] = column
            yield {**table, "decision": result.decision.tolist()}

    if wanted.embeddings:
        width = classifier.info.layout.features
        names = (str(found.path) for found, _ in rows())
        raw = partial(wanted.embeddings)
        tables.write_features(wanted.embeddings, raw, width, names, CHUNK)
    tables.write_table(wanted.output, columns())
    if wanted.embeddings:
        partial(wanted.embeddings).unlink(missing_ok=True)
    return Summary({name: counts[name] for name in classifier.class_names}, tuple(skipped))


def _open_features(classifier: Classifier, wanted: OutputOptions, journal: Journal) -> Any:
    """The features so far, cut to what the journal knows of; None if none are wanted."""
    if not wanted.embeddings:
        return None
    rows = sum(not isinstance(value, str) for _, value in journal.read())
    path = partial(wanted.embeddings)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab")  # noqa: SIM115
        size = rows * classifier.info.layout.features * 4
        if file.tell() < size:
            file.close()
            raise InputError(f"{path}: shorter than {journal.path} says; remove both")
        file.truncate(size)
    return file


def _key(classifier: Classifier, images: Sequence[ImageFile], wanted: OutputOptions) -> str:
    """A digest of the network, the files and what is made of them."""
    digest = hashlib.sha256()
    leaves = jax.tree_util.tree_leaves_with_path(classifier.variables)
    for path, leaf in leaves:
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).data)
    about = {
        **classifier.info.to_dict(),
        "image_size": classifier.image_size,
        "tta": classifier.tta,
        "overlays": [str(wanted.overlays), wanted.unit] if wanted.overlays else None,
        "embeddings": str(wanted.embeddings),
    }
    digest.update(json.dumps(about, sort_keys=True).encode())
    for found in images:
        with contextlib.suppress(OSError):  # what cannot be read is told of later
            stat = found.path.stat()
            digest.update(f"{stat.st_size} {stat.st_mtime_ns} ".encode())
        digest.update(os.fsencode(found.path) + b"\0")
    return digest.hexdigest()


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM stops as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
