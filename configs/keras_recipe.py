"""The Keras recipe, number for number: DenseNet201, a head of 256, then unfrozen from layer 300.

    python main.py --config=configs/keras_recipe.py --config.data.path=BreaKHis_v1 --workdir=runs/x

It differs from the recipe in one thing: patients, not images, are divided among training,
validation and test. Every key of a configuration is described here.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # of initial weights, the order of images, dropout and augmentation
    config.deterministic = False  # on a GPU the same bits each time, with slower kernels
    config.batch_size = 32  # images in a step, over all devices
    # Where the output of the frozen layers is kept, so that it is computed once: 'device',
    # 'memory', 'disk', 'off', or 'auto' for the first of these with enough room.
    config.cache = "auto"
    config.cache_dir = ""  # prepared data, compiled programs; '' is ~/.cache/densenet_flax
    config.log_every = 10  # steps between two lines of metrics.jsonl
    config.tensorboard = False  # also write TensorBoard's files

    config.model = _model()
    config.data = _data()
    config.split = _split()
    config.sampling = "shuffle"  # each image once; or balanced by 'class', 'patient' (docs/data.md)
    config.augment = _augment()
    config.label_smoothing = 0.0  # share of each label that is spread over all classes, below 1
    config.class_weights = "none"  # in the loss: 'balanced', or one number per class, as '1.0,0.5'
    config.ema_decay = 0.0  # of the moving average of the weights, such as 0.99; 0 for none
    # The validation result that ends stages, lowers the rate of 'plateau' and says which epoch is
    # best: 'loss', 'auc' or 'accuracy'.
    config.monitor = "loss"
    config.stage_order = ("head", "finetune")  # names of the blocks in config.stages
    config.stages = ConfigDict()
    config.stages.head = stage("head")
    config.stages.finetune = stage("300")  # Keras: model.layers[300:]

    # These may change between training and --mode=evaluate.
    config.evaluate = "last"  # the checkpoint to test: 'last', or 'best' by config.monitor
    config.threshold = (
        "fixed"  # 0.5; or chosen on validation: 'youden', 'f1', 'sensitivity>=0.95', 'cost=10'
    )
    config.calibration = "temperature"  # or 'platt', 'isotonic' if there are patients enough
    config.tta = False  # average the predictions over the symmetries of each image
    config.explain = "norm"  # the unit whose saliency maps the report shows; '' for none
    return config


def stage(unfreeze_from: str, **changes) -> ConfigDict:
    """A training stage with the recipe's settings, and `changes` to them."""
    config = ConfigDict()
    config.unfreeze_from = unfreeze_from  # unit, Keras layer or its index, 'conv5', 'head', 'all'
    config.bn_mode = "keras"  # which BatchNorms use batch statistics: 'keras', 'frozen', 'live'
    config.duration = "10 epochs"  # or '500 steps', '8000 examples'
    config.learning_rate = 1e-3  # of the last unit, after warm-up
    config.optimizer = "adam"  # or 'adamw', 'sgd', as Keras computes them
    config.schedule = "constant"  # or 'cosine', 'plateau'
    config.warmup = "0 steps"  # linear rise of the learning rate; a duration, or '5%' of the stage
    config.weight_decay = 0.0  # of kernels, decoupled from the gradient
    config.momentum = 0.0  # of sgd
    config.clip_norm = 0.0  # largest global norm of the gradient; 0 for no limit
    config.layer_decay = 1.0  # factor on the learning rate per unit away from the head, up to 1
    config.accumulate = 1  # steps whose gradients make one update
    config.plateau_factor = 0.5  # on the learning rate at each plateau
    config.plateau_patience = 2  # epochs without a better validation result that make a plateau
    config.keep_moments = False  # start with the optimizer's moments of the stage before
    config.patience = 0  # epochs without a better validation result that end the stage; 0: never
    config.restore_best = False  # end with the epoch of the best validation result, not the last
    config.update(changes)
    return config


def _model() -> ConfigDict:
    config = ConfigDict()
    config.name = "densenet201"  # or densenet121, densenet161, densenet169
    config.weights = "imagenet"  # or a weights file, or 'random'
    config.verify_weights = True  # compare a file with what its framework computes, if installed
    config.hidden = (256,)  # sizes of the Dense layers between pooling and the last one
    config.dropout = 0.5  # rate before each Dense layer of the head
    config.dtype = "float32"  # of convolutions and activations; or 'bfloat16', fast on GPU and TPU
    # What gradients compute again and do not keep: 'none', 'bottleneck', 'block'.
    config.remat = "auto"
    config.bn_momentum = 0.99  # share of the running statistics that is kept at each step
    # The fastest on the device; or 'reference', 'fused', 'gpu', 'tpu'.
    config.implementation = "auto"
    return config


def _data() -> ConfigDict:
    config = ConfigDict()
    config.name = "breakhis"  # or 'folder', 'drawn' (synthetic tiles), 'tfds:<name>'
    config.path = ""  # of breakhis: BreaKHis_v1, a folder above it, or BreaKHis_v1.tar.gz
    config.image_size = (224, 224)  # height, width in pixels
    config.labels = "binary"  # or 'subtype', BreakHis's eight
    config.magnification = 0  # of breakhis: 40, 100, 200, 400, or 0 for all
    config.require_complete = False  # refuse to start unless all 7,909 images of BreakHis are there
    config.duplicates = "keep"  # of images with the same pixels; or 'drop', 'error'
    config.on_bad_image = "error"  # or 'skip': the report says how many
    config.bits = 0  # that values of more than 8 bits use, such as 12 in 16; 0 if unknown
    # Micrometers per pixel of the tiles on disk, one number or (down, across); for slides.
    config.mpp = config_dict.placeholder(object)
    config.storage = "array"  # resized once, on disk; or 'stream': decoded whenever it is needed
    config.workers = 0  # processes that decode streamed images; 0 for threads
    config.csv = ""  # of folder: a table with the columns file, label, patient, site, split
    config.columns = ConfigDict()  # what they are called; '' recognizes them, 'none' ignores one
    config.columns.update(file="", label="", patient="", site="", split="")
    config.test_path = ""  # of folder without csv: a second folder, with the images to test on
    config.label_level = config_dict.placeholder(int)  # of folder: which folder is the class
    config.label_pattern = ""  # of folder: regular expression that finds the class in a path
    config.patient_pattern = ""  # of folder without csv: regular expression that finds the patient
    config.similar_names = "error"  # of classes or patients, as P3 and p3; or 'merge', 'keep'
    config.class_names = ()  # of folder: in the order of their labels (docs/data.md)
    config.earlier_rules = False  # of folder: every top folder is a class, as in earlier versions
    config.patient_key = ""  # of tfds: the feature that names the patient
    config.stain = ConfigDict({"method": "none", "reference": ""})  # docs/data.md
    config.drawn = ConfigDict()  # of drawn: the parameters of write_breakhis_tree
    return config


def _split() -> ConfigDict:
    config = ConfigDict()
    config.policy = "patient"  # 'official', 'kfold', 'given', 'auto', or 'image', which leaks
    config.fold = 1  # of official, kfold and stated folds, from 1
    config.folds = 5  # of kfold and stated folds
    config.group = "case70"  # which images are of one patient: 'case70', 'slide81' or 'id82'
    config.mixed_patients = "error"  # with images of several classes; or 'rarest' (docs/splits.md)
    config.ignore_given = False  # make a new split although the data states one
    config.allow_copies = False  # of folder: the same pixels in several subsets are no error
    config.test_fraction = 0.2  # of the patients of each class
    config.validation_fraction = 0.15  # of the other patients of each class
    config.seed = 0  # the same seed makes the same split
    return config


def _augment() -> ConfigDict:
    """No augmentation: the recipe builds a generator and never uses it. docs/augmentation.md."""
    config = ConfigDict()
    config.views = 0  # augmented views of each image; 0 for a new one in every epoch
    config.symmetries = False  # of the square: rotations by 90 degrees and mirror images
    config.horizontal_flip = False
    config.vertical_flip = False
    config.rotation_range = 0.0  # degrees in either direction
    config.width_shift_range = 0.0  # share of the width in either direction
    config.height_shift_range = 0.0  # share of the height in either direction
    config.shear_range = 0.0  # degrees in either direction
    config.zoom_range = 0.0  # 0.2: from 0.8 to 1.2
    config.fill_mode = "reflect"  # what is shown beyond the border; or 'nearest'
    config.brightness_range = ()  # lowest and highest factor, such as (0.8, 1.2)
    config.contrast_range = ()  # lowest and highest factor
    config.hed_range = 0.0  # strength of the change of each dye, such as 0.05
    config.stain_jitter = 0.0  # from 0 to 1, how far colors move to those of another slide
    config.stain_statistics = ()  # of the colors of slides; () measures the training images
    config.cutout = 0.0  # side of the erased square, as a share of each side
    config.mixup = 0.0  # alpha of MixUp; the output of frozen layers can then not be cached
    config.cutmix = 0.0  # alpha of CutMix; likewise
    return config
