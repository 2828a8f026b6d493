"""Images, labels and patients: from folders and archives to batches, without TensorFlow."""

from densenet_flax.data.batching import batches, check_batch_size, epoch_order
from densenet_flax.data.data_config import DataConfig
from densenet_flax.data.dataset import Dataset
from densenet_flax.data.loading import open_dataset
from densenet_flax.data.splits.policies import make_split
from densenet_flax.data.splits.split import Split, assert_disjoint, load_split
from densenet_flax.data.splits.split_config import SplitConfig
from densenet_flax.data.synthetic.breakhis_tree import write_breakhis_tree
from densenet_flax.data.synthetic.tissue import Stain, draw_stain, draw_tile

__all__ = [
    "DataConfig",
    "Dataset",
    "Split",
    "SplitConfig",
    "Stain",
    "assert_disjoint",
    "batches",
    "check_batch_size",
    "draw_stain",
    "draw_tile",
    "epoch_order",
    "load_split",
    "make_split",
    "open_dataset",
    "write_breakhis_tree",
]
