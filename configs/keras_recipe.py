"""The Keras recipe, number for number: DenseNet201, a head of 256, then unfrozen from layer 300.

    python main.py --config=configs/keras_recipe.py --config.data.path=BreaKHis_v1 --workdir=runs/x

Where the recipe splits by image, this splits by patient: the one thing that is not reproduced.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.batch_size = 32
    config.cache = "auto"  # the frozen part once: 'auto' if it fits in memory, 'memory' or 'off'
    config.cache_dir = ""  # prepared data, compiled programs; '' is ~/.cache/densenet_flax
    config.evaluate = "last"  # the checkpoint to test: 'last', or 'best' by validation loss

    config.model = ConfigDict()
    config.model.name = "densenet201"  # or densenet121, densenet169
    config.model.weights = "imagenet"  # or a file, or 'random'
    config.model.hidden = (256,)
    config.model.dropout = 0.5
    config.model.dtype = "float32"  # or 'bfloat16'
    config.model.bn_momentum = 0.99

    config.data = ConfigDict()
    config.data.name = "breakhis"
    config.data.path = ""  # the folder that holds BreaKHis_v1, or BreaKHis_v1.tar.gz
    config.data.image_size = (224, 224)  # height, width
    config.data.magnification = 0  # 40, 100, 200, 400, or 0 for all
    config.data.drawn = ConfigDict()  # of data.name = 'drawn' only

    config.split = ConfigDict()
    config.split.group = "case70"  # who is one patient: case70, slide81 or id82
    config.split.test_fraction = 0.2
    config.split.validation_fraction = 0.15
    config.split.seed = 0

    config.stages = ConfigDict()
    config.stage_order = ("head", "finetune")
    config.stages.head = ConfigDict()
    config.stages.head.unfreeze_from = "head"
    config.stages.head.epochs = 10
    config.stages.head.learning_rate = 1e-3
    config.stages.head.bn_mode = "keras"
    config.stages.finetune = ConfigDict()
    config.stages.finetune.unfreeze_from = "300"  # Keras: model.layers[300:]
    config.stages.finetune.epochs = 10
    config.stages.finetune.learning_rate = 1e-3
    config.stages.finetune.bn_mode = "keras"
    return config
