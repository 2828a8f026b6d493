from .data_config import DataConfig as DataConfig
from .dataset import Dataset as Dataset
from .loading import open_dataset as open_dataset
from .splits.policies import make_split as make_split
from .splits.split import Split as Split
from .splits.split import load_split as load_split
from .splits.split_config import SplitConfig as SplitConfig
from .synthetic.breakhis_tree import write_breakhis_tree as write_breakhis_tree
