from .common.errors import InputError as InputError
from .experiments.fine_tune import fine_tune as fine_tune
from .experiments.trained_run import Run as Run
from .inference.load import load_classifier as load_classifier
from .models.densenet import DenseNet as DenseNet
from .models.densenet import DenseNet121 as DenseNet121
from .models.densenet import DenseNet161 as DenseNet161
from .models.densenet import DenseNet169 as DenseNet169
from .models.densenet import DenseNet201 as DenseNet201
from .models.frontier import trainable_mask as trainable_mask
from .models.nnx_module import to_nnx as to_nnx
from .models.preprocessing import preprocess_input as preprocess_input
from .weights import load_weights as load_weights

__version__: str
