"""The Keras recipe, number for number: DenseNet201, a head of 256, then unfrozen from layer 300.

    python main.py --config=configs/keras_recipe.py --config.data.path=BreaKHis_v1 --workdir=runs/x

Where the recipe splits by image, this splits by patient: the one thing that is not reproduced.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.batch_size = 32
    # The frozen part once: 'auto', where there is room; 'device', 'memory', 'disk' or 'off'.
    config.cache = "auto"
    config.cache_dir = ""  # prepared data, compiled programs; '' is ~/.cache/densenet_flax
    config.log_every = 10  # steps between two lines of metrics
    config.tensorboard = False
    config.evaluate = "last"  # the checkpoint to test: 'last', or 'best' by validation loss
    # Chosen on validation images: 'fixed' (0.5), 'youden' or 'sensitivity>=0.95'.
    config.threshold = "fixed"
    config.tta = False  # judge and predict by the mean over the symmetries of each image
    config.explain = "norm"  # the unit whose maps the report shows; '' for none

    config.model = ConfigDict()
    config.model.name = "densenet201"  # or densenet121, densenet169
    config.model.weights = "imagenet"  # or a file, or 'random'
    config.model.hidden = (256,)
    config.model.dropout = 0.5
    config.model.dtype = "float32"  # or 'bfloat16'
    config.model.remat = "bottleneck"  # or "none", "block": what is not kept but computed again
    config.model.bn_momentum = 0.99
    config.model.implementation = "auto"

    config.data = ConfigDict()
    config.data.name = "breakhis"
    config.data.path = ""  # the folder that holds BreaKHis_v1, or BreaKHis_v1.tar.gz
    config.data.image_size = (224, 224)  # height, width
    config.data.labels = "binary"  # or 'subtype', BreakHis's eight
    config.data.magnification = 0  # 40, 100, 200, 400, or 0 for all
    config.data.require_complete = False  # True: all 7,909 images must be there
    config.data.duplicates = "keep"  # of the images that BreakHis has twice; or 'drop', 'error'
    config.data.on_bad_image = "error"  # or 'skip', which the report counts
    config.data.storage = "array"  # or 'stream': decoded anew each time, for what fits no disk
    config.data.workers = 0  # processes that decode what is streamed; 0: threads
    config.data.csv = ""  # of data.name = 'folder': file, label, patient, site
    config.data.patient_pattern = ""  # of 'folder' without a csv: a regular expression
    config.data.class_names = ()
    config.data.patient_key = ""  # of data.name = 'tfds:…'
    config.data.stain = ConfigDict({"method": "none", "reference": ""})
    config.data.drawn = ConfigDict()  # of data.name = 'drawn' only

    config.split = ConfigDict()
    config.split.policy = "patient"  # or 'official', 'kfold', 'given', or the leaky 'image'
    config.split.fold = 1  # of 'official' and 'kfold'
    config.split.folds = 5  # of 'kfold'
    config.split.group = "case70"  # who is one patient: case70, slide81 or id82
    config.split.mixed_patients = "error"  # of several classes; 'rarest' counts them for that one
    config.split.test_fraction = 0.2
    config.split.validation_fraction = 0.15
    config.split.seed = 0

    config.sampling = "shuffle"  # or 'class', 'patient': rare ones more often; docs/data.md
    # None: the recipe builds a generator and never uses it. The keys are those of AugmentSettings,
    # docs/augmentation.md; `views` is how many views an image has, 0 for a new one in each epoch.
    config.augment = ConfigDict()
    config.augment.views = 0
    config.augment.symmetries = False  # of the square
    config.augment.horizontal_flip = False
    config.augment.vertical_flip = False
    config.augment.rotation_range = 0.0  # degrees
    config.augment.width_shift_range = 0.0
    config.augment.height_shift_range = 0.0
    config.augment.shear_range = 0.0  # degrees
    config.augment.zoom_range = 0.0  # 0.2: from 0.8 to 1.2
    config.augment.fill_mode = "reflect"  # or 'nearest'
    config.augment.brightness_range = ()  # such as (0.8, 1.2)
    config.augment.contrast_range = ()
    config.augment.hed_range = 0.0
    config.augment.stain_jitter = 0.0
    config.augment.stain_statistics = ()  # of the training images, if empty
    config.augment.cutout = 0.0
    config.augment.mixup = 0.0  # of the whole network only: nothing can then be computed once
    config.augment.cutmix = 0.0

    config.label_smoothing = 0.0
    config.class_weights = "none"  # or 'balanced', or '1.0,0.5': once, in the loss
    config.ema_decay = 0.0  # of an average of the weights, such as 0.99; 0 for none

    config.stage_order = ("head", "finetune")
    config.stages = ConfigDict()
    config.stages.head = stage("head")
    config.stages.finetune = stage("300")  # Keras: model.layers[300:]
    return config


def stage(unfreeze_from: str, **changes) -> ConfigDict:
    """A stage with the recipe's settings; see `OptimizerSettings` and `Stage` for what they do."""
    config = ConfigDict()
    config.unfreeze_from = unfreeze_from  # a unit, Keras layer or index, 'conv5', 'head', 'all'
    config.bn_mode = "keras"  # or 'frozen', 'live'
    config.duration = "10 epochs"  # or '500 steps', '8000 examples'
    config.learning_rate = 1e-3
    config.optimizer = "adam"  # or adamw, sgd
    config.schedule = "constant"  # or cosine, plateau
    config.warmup = "0 steps"  # or '5%'
    config.weight_decay = 0.0
    config.momentum = 0.0
    config.clip_norm = 0.0
    config.layer_decay = 1.0
    config.accumulate = 1
    config.plateau_factor = 0.5
    config.plateau_patience = 2
    config.keep_moments = False
    config.patience = 0  # epochs without a lower validation loss before the stage ends; 0: never
    config.restore_best = False
    config.update(changes)
    return config
