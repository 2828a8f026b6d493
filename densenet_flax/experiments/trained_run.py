"""A trained run as one object: its history, its report, its network."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from densenet_flax.common.errors import InputError
from densenet_flax.common.trees import JsonDict
from densenet_flax.data.loading import image_options
from densenet_flax.data.sources.arrays import remove_subset, write_subset
from densenet_flax.data.sources.image_set import image_set, number_labels
from densenet_flax.experiments import run as experiment_run
from densenet_flax.experiments.command_line import apply_overrides, as_overrides
from densenet_flax.experiments.experiment import Experiment
from densenet_flax.experiments.from_config import resolve
from densenet_flax.experiments.session import session
from densenet_flax.inference.classifier import Classifier
from densenet_flax.inference.load import load_classifier
from densenet_flax.storage.atomic import writing
from densenet_flax.storage.checkpoint import Checkpoints
from densenet_flax.storage.json_files import read_json_object
from densenet_flax.storage.workdir import Workdir
from densenet_flax.weights.load import read_weights
from densenet_flax.weights.save import save_weights


class Run:
    """The run of a work directory: what `fine_tune` returns, or `Run("runs/quickstart")` opens.

        run.evaluate(X_test, y_test, patients=test_patients)
        run.classifier.predict(images)
        run.report("report/")
        run.save("model.safetensors")

    Attributes:
      workdir: its directory.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        verbose: bool = True,
        temporary: tempfile.TemporaryDirectory[str] | None = None,
    ):
        """Opens a run.

        Args:
          workdir: the work directory.
          verbose: whether `evaluate` shows progress.
          temporary: removed with this object.

        Raises:
          InputError: there is no trained network in the directory.
        """
        self._directory = Workdir(workdir)
        self.workdir = self._directory.path
        if not self._directory.has_begun:
            raise InputError(f"{self.workdir}: no trained network in it; expected a work directory")
        self._verbose, self._temporary = verbose, temporary
        self._classifier: Classifier | None = None

    def __repr__(self) -> str:
        return f"Run({str(self.workdir)!r}), {len(self.history['epoch'])} epochs"

    @property
    def history(self) -> dict[str, list[Any]]:
        """What was measured after each epoch, a list for each of the names in `metrics.jsonl`.

        Keras's 'loss', 'accuracy', 'val_loss' and 'val_accuracy' are 'train_loss',
        'train_accuracy', 'validation_loss' and 'validation_accuracy' here, an AUC named 'auc' is
        'validation_auc'; 'stage' is the name of the stage of each epoch.
        """
        epochs = Checkpoints(self._directory.checkpoints).read_meta()["position"]["history"]
        # Epochs of an earlier version have fewer.
        names = dict.fromkeys(name for epoch in epochs for name in epoch) or ["epoch"]
        return {name: [epoch.get(name) for epoch in epochs] for name in names}

    @property
    def classifier(self) -> Classifier:
        """The trained network with its classes, preprocessing, threshold and temperature.

        It is that of the last epoch, or the best one, as `config.evaluate` says.
        """
        if self._classifier is None:
            self._classifier = load_classifier(self.workdir)
        return self._classifier

    def evaluate(
        self,
        images: Any = None,
        labels: Any = None,
        *,
        patients: Any = None,
        batch_size: int | None = None,
        overrides: Mapping[str, Any] | None = None,
        **keys: Any,
    ) -> JsonDict:
        """Tests the network and writes the report.

        Threshold and temperature are chosen on the validation images, before the test.

        Args:
          images: to test on, in the forms of `fine_tune`; they take the place of those given
            before. None for those of the run: of its data set, or given before.
          labels: their classes; None with a DataFrame.
          patients: whose they are; no patient may be in training or validation.
          batch_size: of the evaluation, by default that of training.
          overrides: other values for 'evaluate', 'threshold', 'calibration', 'tta' and 'explain'.
          **keys: the same, as keywords.

        Returns:
          The content of the report's `metrics.json`.

        Raises:
          InputError: what can be corrected, in one line.
        """
        changes = {**(overrides or {}), **keys}
        config = apply_overrides(self._directory.require_config(), as_overrides(changes), flag="")
        with session(config, verbose=self._verbose):
            self._classifier = None  # it may be another checkpoint
            if images is None and labels is None:
                return experiment_run.evaluate(config, str(self.workdir), batch_size=batch_size)
            with self._directory.lock():
                self._write_test_images(resolve(config), images, labels, patients)
            try:
                return experiment_run.evaluate(config, str(self.workdir), batch_size=batch_size)
            except InputError:  # such as a patient who was in training: the run is as it was
                remove_subset(Path(config.data.path), "test")
                raise

    def report(self, directory: str | os.PathLike[str]) -> Path:
        """Copies the report of the last evaluation; returns the path of its `report.html`.

        Raises:
          InputError: there was no evaluation, or the directory cannot be written.
        """
        if not (self._directory.report / "report.html").is_file():
            raise InputError("no report yet: call run.evaluate(X_test, y_test, patients=…) before")
        target = Path(directory).expanduser()
        with writing(target):
            shutil.copytree(self._directory.report, target, dirs_exist_ok=True)
        return target / "report.html"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one `.safetensors` file with all that `load_classifier` needs.

        Raises:
          InputError: the file cannot be written.
        """
        variables, info = read_weights(self.workdir)
        save_weights(Path(path).expanduser(), variables, info)

    def _write_test_images(
        self, experiment: Experiment, images: Any, labels: Any, patients: Any
    ) -> None:
        """Makes images the test subset, if they are a test of this network."""
        data, root = experiment.data, Path(experiment.data.path)
        given = image_set(images, labels, patients, "test images", data.columns)
        if data.name != "arrays" or "test" in _saved_subsets(self._directory):
            raise InputError(
                "images: this run tests on images of its own data; call run.evaluate() without "
                "any, or run.classifier.predict(images)"
            )
        (numbers,), _ = number_labels([given], data.class_names, data.similar_names)
        for number, name in enumerate(data.class_names):
            if number not in numbers:
                raise InputError(f"test images: there is none of class {name!r}; add some")
        write_subset(root, "test", given, numbers, image_options(data))


def _saved_subsets(directory: Workdir) -> set[str]:
    """The subsets that `split.json` lists."""
    return set(read_json_object(directory.split, "put it back")["files"].values())
