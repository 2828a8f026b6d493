"""The TFDS builder. It needs no TensorFlow: records are ArrayRecord and images stay encoded."""

import dataclasses
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from densenet_flax.data.breakhis import VERSION
from densenet_flax.data.breakhis.layout import find_source, read_images
from densenet_flax.data.breakhis.names import CLASS_NAMES, class_names, parse_name
from densenet_flax.data.sources.tfds_files import local_files


class Builder(tfds.core.GeneratorBasedBuilder):
    """Breast tumour histology, 82 patients, four magnifications."""

    VERSION = tfds.core.Version(VERSION)
    RELEASE_NOTES: ClassVar[dict[str, str]] = {str(VERSION): "First version."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Ask for BreakHis at
    https://web.inf.ufpr.br/vri/databases/breast-cancer-histopathological-database-breakhis/
    and put `BreaKHis_v1.tar.gz`, or the folder `BreaKHis_v1` it unpacks to, into `manual_dir`.
    """

    # TFDS 4.9.10 finds this by way of importlib_resources, which it does not list as a requirement.
    code_path = epath.Path(__file__)

    def __init__(
        self,
        *,
        source: str | os.PathLike[str] | None = None,
        file_format: str | None = "array_record",
        on_bad_image: str = "error",
        bits: int = 0,
        **kwargs: Any,
    ):
        """Initializes the builder.

        Args:
          source: a folder or archive to read instead of `manual_dir`.
          file_format: of the records. ArrayRecord needs no TensorFlow.
          on_bad_image: 'error', or 'skip' to leave out images that are not whole; `skipped` then
            has a line for each.
          bits: how many bits the values of images with more than 8 use; 0 if unknown.
          **kwargs: as for every TFDS builder.
        """
        super().__init__(file_format=file_format, **kwargs)
        self._source = source
        self._on_bad_image = on_bad_image
        self._bits = bits
        self.skipped: list[str] = []

    def download_and_prepare(self, **kwargs: Any) -> None:
        """Prepares the data set like every TFDS builder, without TensorFlow."""
        with local_files():
            super().download_and_prepare(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=CLASS_NAMES),
            "subtype": tfds.features.ClassLabel(names=class_names("subtype")),
            "magnification": tfds.features.Scalar(np.int32),
            "year": tfds.features.Scalar(np.int32),
            "slide_id": tfds.features.Text(),
            "case": tfds.features.Text(),
            "sequence": tfds.features.Scalar(np.int32),
            "file": tfds.features.Text(),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage="https://web.inf.ufpr.br/vri/databases/breast-cancer-histopathological-database-breakhis/",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        # A single split with everything: the package splits by patient. TFDS reserves the name
        # 'all' and calls a single split 'train'.
        source = find_source(self._source or dl_manager.manual_dir)
        return {"train": self._generate_examples(source)}

    def _generate_examples(self, source: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        skipped = self.skipped if self._on_bad_image == "skip" else None
        for file, data in read_images(source, skipped, self._bits):
            name = parse_name(file)
            assert name is not None  # read_images yields no other names
            # As an array, the image would make TFDS call TensorFlow's encoder.
            yield file, {"image": io.BytesIO(data), "file": file, **dataclasses.asdict(name)}
