"""Where the values of the earlier projects' recipes stand: in those projects' files.

Of Omer-alt/AlexNet (95bab2f), ellaelu/alexnet-implementation (a0543df), Vidit-01/
alexnet-2012-implementation (1e8f9fc) and GnyaneshB/AlexNet-Implementation-through-a-Transfer-
Learning-Approach-from-Scratch (9e49d7d). `evidence.py` reads it, and says how.
"""

_NOTHING = dict.fromkeys(
    (
        *("vertical_flips", "color_scale", "color_division", "color_noise", "shared_crops"),
        *("block_images", "keeps_gain", "*.is_local", "same_map_*", "ema", "plateau_*"),
        *("max_drops", "changes", "pool_ties", "pool_rounding", "channels", "mean"),
        *("resized_crops", "color_jitter", "pixel_noise", "lrn_*", "drop_*", "*.normalization"),
        *("stop_patience", "*.dropout"),
    ),
    "nothing of the kind there; or PyTorch's own",
)
_OF_PYTORCH = {
    "optimizer": "torch.optim.SGD; here the paper's, equal until a rate drops (D20)",
    "decay_biases": "torch.optim.SGD decays all parameters that it is given",
    "*.weight_decay": "torch.optim.SGD decays all parameters that it is given",
    "*learning_rate": "torch.optim.SGD has one for all parameters",
    "dropout_keep": "PyTorch's Dropout: 0.5",
    "dropout_scale": "PyTorch's Dropout: in training",
    "image_order": "PyTorch's DataLoader, shuffle=True: a new one in every epoch",
    "*.weight_standard_deviation": (
        "PyTorch's reset_parameters: even between -1 / sqrt(fan-in) and 1 / sqrt(fan-in); here "
        "Gaussian with that deviation (D20)"
    ),
    "*.bias": "PyTorch's reset_parameters: even, as the weights; here zero (D20)",
}
_NETWORK = (
    *("*.kernel_size", "*.stride", "*.num_kernels", "*.num_units", "*.padding", "activation"),
    *("order", "*.pooling", "pool_window", "pool_stride", "*.reads_both_towers", "towers"),
)


def _of_network(file: str) -> dict[str, str]:
    return dict.fromkeys(_NETWORK, file) | {"num_classes": f"{file}; here as many as the data has"}


# --- Each project's own

_FIRST_NET, _FIRST_TRAINING = "model/AlexNet.py", "utils/train.py"
_IMAGENET_ONE_GPU = {
    "conv1.padding": f"{_FIRST_NET}: none, maps of 54 x 54; mended: the paper's 55 x 55 (D2)",
    **_of_network(_FIRST_NET),
    "lrn_alpha": f"{_FIRST_NET}: 0.0001, which PyTorch's LocalResponseNorm divides by 5",
    **dict.fromkeys(("lrn_*", "*.normalization"), _FIRST_NET),
    "*.dropout": f"{_FIRST_NET}: before fc6 and fc7",
    "crop_size": "main.py: Resize((224, 224)), which squashes",
    "color_jitter": "its training transform: 0.2, 0.2, 0.2, 0.1; mended: not in validation",
    "random_*": "its training transform: half of them are reflected; no crops",
    "pixel_mean": "main.py: 0.485, 0.456, 0.406, times 255",
    "pixel_divisor": "main.py: 0.229, 0.224, 0.225, times 255",
    "batch_size": "main.py: 32",
    **dict.fromkeys(("momentum", "weight_decay", "learning_rate"), _FIRST_TRAINING),
    "epochs": "its table: 22 in 58.6 hours",
    **dict.fromkeys(
        ("drop_*", "plateau_*", "max_drops"),
        f"{_FIRST_TRAINING}: by hand; mended: the rule of `paper` (D4)",
    ),
    **_OF_PYTORCH,
    "*.weight_standard_deviation": (
        f"{_FIRST_NET}: 0.01, in a function that nothing calls; so PyTorch's reset_parameters"
    ),
    **_NOTHING,
}

_SECOND_NET = "torchvision's models/alexnet.py, which its notebook trains"
_TINY10 = {
    "fc8.num_units": f"{_SECOND_NET}: 200 logits for ten classes; mended: ten",
    **_of_network(_SECOND_NET),
    "*.dropout": f"{_SECOND_NET}: before fc6 and fc7",
    "crop_size": "loading_data.ipynb: CenterCrop(150), zeros around 64 x 64; mended: scaled up",
    "random_*": "loading_data.ipynb: half of them are reflected; no crops",
    "pixel_mean": "loading_data.ipynb: 0.485, 0.456, 0.406, times 255",
    "pixel_divisor": "loading_data.ipynb: 0.229, 0.224, 0.225, times 255",
    "batch_size": "its table: 12",
    **dict.fromkeys(("learning_rate", "momentum", "drop_factor"), "results.csv: the best of 12"),
    "weight_decay": "its grid has none: PyTorch's default, 0",
    "epochs": "its table: 35",
    **dict.fromkeys(
        ("drop_rule", "drop_epochs", "plateau_*", "max_drops"),
        "its scheduler took the loss for an epoch, three times an epoch; mended: the rule of "
        "`paper`, by the validation error (D4)",
    ),
    **_OF_PYTORCH,
    **_NOTHING,
}

_THIRD_NET, _THIRD_TRAINING = "models/alexnet_baseline.py", "train.py"
_TINY = {
    **_of_network(_THIRD_NET),
    "crop_size": "utils/transforms_baseline.py: 227 of 256",
    "random_*": "utils/transforms_baseline.py: none",
    "pixel_*": (
        "readme.md says normalized, utils/transforms_baseline.py divides by 255 alone; mended: "
        "ImageNet's mean and deviation, as of torchvision"
    ),
    **dict.fromkeys(
        ("batch_size", "momentum", "weight_decay", "learning_rate", "epochs"),
        f"{_THIRD_TRAINING}: its defaults",
    ),
    "drop_*": f"{_THIRD_TRAINING}: none",
    **_OF_PYTORCH,
    **_NOTHING,
}
_JITTER = {
    "color_jitter": "utils/transforms_pixel.py: ColorJitter(0.2, 0.2, 0.2, 0.02); gray in 5 % left "
    "out, as no field has it",
    "pixel_noise": "readme.md: random noise; no file has any, here 5 of 255",
}
_CROPS = {"random_*": "utils/transforms_complete.py: RandomCrop(227), half of them reflected"}
_BATCH_NORM = {"*.normalization": "models/alexnet_batchnorm.py: behind the ReLU of conv1 and conv2"}
_COMBINED = {
    **_JITTER,
    **_CROPS,
    **_BATCH_NORM,
    **dict.fromkeys(
        ("drop_*", "plateau_*", "max_drops"),
        "train_fast.py: ReduceLROnPlateau, half after more than three epochs, down to 1e-6",
    ),
    "stop_patience": (
        "train_fast.py: after three drops, which its count, as it falls in between, never reaches"
    ),
    "*.dropout": "models/alexnet_big.py: behind fc6 and fc7",
}

_FIFTH_NET, _FIFTH_TRAINING = "AlexNet.py", "train_test.py"
_CIFAR10 = {
    **_of_network(_FIFTH_NET),
    "*.dropout": f"{_FIFTH_NET}: before fc6 and fc7",
    **dict.fromkeys(
        ("crop_size", "random_*", "resized_crops", "pixel_mean", "pixel_divisor"),
        f"{_FIFTH_TRAINING}: RandomResizedCrop(224), half of them reflected, normalized",
    ),
    **dict.fromkeys(("batch_size", "momentum", "learning_rate", "epochs"), _FIFTH_TRAINING),
    "weight_decay": f"{_FIFTH_TRAINING}: PyTorch's default, 0",
    "drop_*": f"{_FIFTH_TRAINING}: none",
    **_OF_PYTORCH,
    **_NOTHING,
}

# --- The narrow ones

_NARROW = {
    **dict.fromkeys(
        (
            *("crop_size", "conv1.kernel_size", "conv1.stride", "conv1.padding"),
            *("*.num_kernels", "fc6.num_units", "fc7.num_units"),
        ),
        "this project's: narrow, for pictures of 64 x 64",
    ),
    "*.weight_standard_deviation": "this project's: sqrt(2 / fan-in), and 0.01 in the last layer",
}
_NARROW_TRAINING = dict.fromkeys(
    ("epochs", "drop_rule", "drop_epochs", "drop_factor"), "this project's: minutes on a processor"
)
_NARROW_PIXELS = {
    "color_*": "this project's: the paper's color noise in place of torchvision's jitter",
}
_WIDE_VARIANTS: dict[str, dict[str, str]] = {
    "tiny-crop": {"random_*": "experiments/alexnet-spatialcrop.txt: random crops alone"},
    "tiny-pixels": _JITTER,
    "tiny-dropout": {"*.dropout": "models/alexnet_dropout.py: behind fc6 and fc7"},
    "tiny-batch-norm": _BATCH_NORM,
    "tiny-large": _COMBINED,
    "tiny-small": {
        "fc6": "models/alexnet_small.py",
        "fc6.num_units": "models/alexnet_small.py: 2000",
        "*.dropout": "models/alexnet_small.py: behind fc6",
        **_COMBINED,
    },
    "tiny-average-pooling": {
        "conv5.*pool*": "models/alexnet_gap.py: after conv5 its mean; readme.md: at once",
        "*.dropout": "models/alexnet_gap.py: between two uses of one layer; mended: before it",
        **_COMBINED,
    },
}

EARLIER_PROJECTS_EVIDENCE: dict[str, dict[str, str]] = {
    "imagenet-one-gpu": _IMAGENET_ONE_GPU,
    "imagenet-one-gpu-64": {**_NARROW_PIXELS, **_NARROW},
    "tiny10": _TINY10,
    "tiny10-64": _NARROW,
    "tiny-baseline": _TINY,
    "tiny-baseline-64": {**_NARROW, **_NARROW_TRAINING},
    **_WIDE_VARIANTS,
    **{
        f"{name}-64": {**_NARROW_PIXELS, **_NARROW, **_NARROW_TRAINING}
        if "color_jitter" in of
        else {**_NARROW, **_NARROW_TRAINING}
        for name, of in _WIDE_VARIANTS.items()
    },
    "cifar10-transfer": _CIFAR10,
    "cifar10-transfer-64": {
        "batch_size": "this project's: minutes on a processor",
        "resized_crops": "this project's: plain crops, which need no torchvision",
        **_NARROW,
        **_NARROW_TRAINING,
    },
}
EARLIER_PROJECTS_MADE_FROM = {
    **dict.fromkeys(_WIDE_VARIANTS, "tiny-baseline"),
    **{
        name: name.removesuffix("-64") for name in EARLIER_PROJECTS_EVIDENCE if name.endswith("-64")
    },
}
