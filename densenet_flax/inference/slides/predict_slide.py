"""One slide: opened, its tiles predicted with a journal so that a stopped job resumes, judged."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging

from densenet_flax.common.console import progress_bar
from densenet_flax.common.errors import InputError
from densenet_flax.inference.batch.journal import Journal
from densenet_flax.inference.batch.network_batches import LoadedImage, run_batches
from densenet_flax.inference.classifier import Classifier
from densenet_flax.inference.slides.field import Field, FieldReader
from densenet_flax.inference.slides.grid import TileGrid, make_grid
from densenet_flax.inference.slides.heatmap_files import write_heatmap
from densenet_flax.inference.slides.qupath_objects import write_geojson
from densenet_flax.inference.slides.slide import Slide, open_slide
from densenet_flax.inference.slides.slide_files import SlideFile
from densenet_flax.inference.slides.slide_options import SlideOptions
from densenet_flax.inference.slides.slide_result import SlideNetwork, SlideResult
from densenet_flax.inference.slides.slide_tables import write_tiles
from densenet_flax.inference.slides.tissue import TissueMask, find_tissue
from densenet_flax.inference.slides.tissue_files import read_tissue
from densenet_flax.inference.slides.verdict import slide_verdict
from densenet_flax.inference.slides.viewer import write_viewer

TILES, GEOJSON, VIEWER = "tiles.parquet", "tiles.geojson", "slide.html"
HEATMAP, HEATMAP_PYRAMID = "heatmap.png", "heatmap.ome.tiff"
OUTPUTS = (TILES, GEOJSON, HEATMAP, HEATMAP_PYRAMID, VIEWER)
JOURNAL = f"{TILES}.partial"

# Pixels of tiles that are read at a time, of 3 bytes each and some copies.
_MAX_PIXELS_IN_FLIGHT = 2**26


@dataclasses.dataclass(frozen=True)
class SlidePredictor:
    """A network and the options with which it predicts slides.

    Attributes:
      classifier: the network.
      field: what it sees at a time.
      options: of the job.
      network: as the files about a slide state it.
    """

    classifier: Classifier
    field: Field
    options: SlideOptions
    network: SlideNetwork

    def predict(self, file: SlideFile, folder: Path, key: str) -> SlideResult:
        """Predicts a slide and writes all files about it; tiles that are done already stay.

        Args:
          file: the slide.
          folder: for its files.
          key: a digest of what the probabilities depend on.

        Raises:
          InputError: the slide cannot be read, has no tissue, or changed meanwhile.
          WriteError: a file cannot be written.
          KeyboardInterrupt: what is done stays in the journal.
        """
        state = file.state()
        slide, tissue = self._open(file)
        try:
            reader = FieldReader(slide, self.field)
            grid = make_grid(
                slide,
                self.field.size_um,
                tissue,
                stride=self.options.stride,
                min_tissue=self.options.min_tissue,
            )
            names = _tile_names(grid)
            journal = Journal(folder / JOURNAL, key, names)
            try:
                self._predict_tiles(file, reader, grid, names, journal)
                result = self._result(file, slide, grid, tissue, journal)
                if file.state() != state:
                    journal.path.unlink(missing_ok=True)
                    raise InputError(
                        f"{file.path}: changed while it was read; predict it again once it is whole"
                    )
                self._write(folder, result, slide)
            finally:
                journal.close()
        finally:
            slide.close()
        return result

    def _open(self, file: SlideFile) -> tuple[Slide, TissueMask]:
        """Opens a slide and finds its tissue."""
        try:
            slide = open_slide(file.path, self.options.mpp)
            try:
                given = self.options.tissue_of(file.name)
                tissue = read_tissue(given, slide) if given else find_tissue(slide)
            except BaseException:
                slide.close()
                raise
        except (InputError, MemoryError):
            raise
        # Libraries document no exceptions, and a damaged slide must not end a job of a hundred.
        except Exception as error:
            raise InputError(f"{file.path}: cannot be read ({error!r})") from error
        return slide, tissue

    def _predict_tiles(
        self,
        file: SlideFile,
        reader: FieldReader,
        grid: TileGrid,
        names: Sequence[str],
        journal: Journal,
    ) -> None:
        """Predicts the tiles that the journal does not have yet."""
        y, x, done = grid.y, grid.x, journal.done

        def load(tile: int) -> LoadedImage | InputError:
            try:
                prepared = self.classifier.prepare(reader.read(y[tile], x[tile]), file.path)
            except InputError as error:
                return error
            return LoadedImage(prepared, prepared)

        if journal.is_new and journal.path.stat().st_size:
            logging.warning(
                "%s: the slide, the network or the options are not those that it was begun with; "
                "all its tiles are predicted",
                file.name,
            )
        if done:
            logging.info("%s: resuming after %d of %d tiles", file.name, done, len(grid))
        pixels = reader.shape[0] * reader.shape[1]
        batches = run_batches(
            self.classifier,
            range(done, len(grid)),
            load,
            size=lambda tile: pixels,
            max_size=_MAX_PIXELS_IN_FLIGHT,
        )
        with progress_bar(len(grid), file.name, "tile", initial=done) as progress:
            for batch in batches:
                output = batch.output() if batch.output else None
                journal.append(batch.entries(names.__getitem__, output))
                progress.update(len(batch.items))

    def _result(
        self,
        file: SlideFile,
        slide: Slide,
        grid: TileGrid,
        tissue: TissueMask,
        journal: Journal,
    ) -> SlideResult:
        """What is known about the slide, from the journal."""
        probability = np.full((len(grid), len(self.classifier.class_names)), np.nan)
        problems = []
        for tile, entry in enumerate(journal.entries()):
            if isinstance(entry.value, str):
                problems.append(entry.value)
            else:
                probability[tile] = entry.value
        readable = ~np.isnan(probability[:, 0])
        if not readable.any():
            journal.path.unlink(missing_ok=True)  # so that a repaired slide is read again
            raise InputError(f"none of its {len(grid)} tiles can be read, such as {problems[0]}")
        tiles = self.classifier.decide(probability[readable])
        return SlideResult(
            name=file.name,
            path=file.path,
            size=slide.size,
            mpp=slide.mpp,
            mpp_source=slide.mpp_source,
            field_um=self.field.size_um,
            grid=grid.select(readable),
            prediction=tiles,
            verdict=slide_verdict(self.classifier, tiles, self.options.verdict),
            rule=self.options.verdict,
            damaged=grid.select(~readable),
            problems=tuple(problems),
            tissue=tissue,
            network=self.network,
        )

    def _write(self, folder: Path, result: SlideResult, slide: Slide) -> None:
        """Writes all files about a slide."""
        write_tiles(folder / TILES, result)
        write_geojson(folder / GEOJSON, result)
        write_heatmap(folder / HEATMAP, folder / HEATMAP_PYRAMID, result, slide)
        write_viewer(folder / VIEWER, result, slide)


def _tile_names(grid: TileGrid) -> list[str]:
    """What the tiles of a grid are called in the journal: their row and column."""
    return [f"{y},{x}" for y, x in zip(grid.rows.tolist(), grid.columns.tolist(), strict=True)]
