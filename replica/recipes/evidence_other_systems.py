"""Where the values of `torchvision`, `caffe-alexnet` and `caffenet` stand: in those systems' files.

Of torchvision 0.28 and Caffe 1.0. `evidence.py` reads it, and says how.
"""

_NOTHING = "nothing of the kind in"

_TORCHVISION = {
    **dict.fromkeys(
        (
            *("vertical_flips", "color_jitter", "pixel_noise", "color_*", "shared_crops"),
            *("block_images", "keeps_gain", "same_map_*", "plateau_*", "max_drops"),
            "stop_patience",
        ),
        f"{_NOTHING} references/classification/presets.py and train.py",
    ),
    **dict.fromkeys(
        ("*.is_local", "lrn_*", "*.normalization"), f"{_NOTHING} models/alexnet.py: no LRN"
    ),
    "towers": "models/alexnet.py: one; it follows One weird trick (1404.5997), not the paper",
    "num_classes": "models/alexnet.py: 1000; here as many as the data has",
    "crop_size": "references/classification/presets.py: 224 of 256",
    **dict.fromkeys(
        (
            *("*.kernel_size", "*.stride", "*.num_kernels", "*.num_units", "*.padding"),
            *("*.reads_both_towers", "activation", "order", "*.pooling", "pool_window"),
            "pool_stride",
        ),
        "models/alexnet.py",
    ),
    "pool_ties": "PyTorch's max_pool2d, of models/alexnet.py: the first",
    "pool_rounding": "PyTorch's max_pool2d, of models/alexnet.py: ceil_mode=False",
    "dropout_keep": "models/alexnet.py: 0.5",
    "*.dropout": "models/alexnet.py: before fc6 and fc7",
    "dropout_scale": "PyTorch's Dropout, of models/alexnet.py",
    "image_order": "references/classification/train.py: a new one in every epoch",
    "random_crops": "references/classification/presets.py: RandomResizedCrop",
    "resized_crops": "references/classification/presets.py: RandomResizedCrop, 0.08 to 1",
    "random_flips": "references/classification/presets.py: half of them",
    "mean": "references/classification/presets.py: one for all places",
    "pixel_mean": "references/classification/presets.py: 0.485, 0.456, 0.406, times 255",
    "pixel_divisor": "references/classification/presets.py: 0.229, 0.224, 0.225, times 255",
    "channels": "references/classification/presets.py: RGB",
    "batch_size": "references/classification/README.md: 32 on each of 8 GPUs",
    "momentum": "references/classification/train.py: 0.9",
    "ema": "references/classification/train.py: off",
    "optimizer": (
        "references/classification/train.py: torch.optim.SGD; here the paper's, equal until a "
        "rate drops (D20)"
    ),
    "weight_decay": "references/classification/train.py: 1e-4",
    "*.weight_decay": "references/classification/train.py: equal for all layers",
    "decay_biases": "references/classification/train.py: all parameters",
    "learning_rate": "references/classification/README.md: --lr 1e-2",
    "*learning_rate": "references/classification/train.py: one for all parameters",
    "epochs": "references/classification/train.py: 90",
    "drop_*": "references/classification/train.py: StepLR, after each 30 epochs, by ten",
    "changes": "references/classification/train.py: none but the drops",
    "*.weight_standard_deviation": (
        "PyTorch's reset_parameters, of models/alexnet.py: even between -1 / sqrt(fan-in) and "
        "1 / sqrt(fan-in); here Gaussian with that deviation (D20)"
    ),
    "*.bias": (
        "PyTorch's reset_parameters, of models/alexnet.py: even, as the weights; here zero (D20)"
    ),
}

_NET, _SOLVER = "bvlc_alexnet/train_val.prototxt", "bvlc_alexnet/solver.prototxt"

_CAFFE = {
    **dict.fromkeys(
        (
            *("vertical_flips", "resized_crops", "color_*", "pixel_noise", "shared_crops"),
            *("block_images", "keeps_gain", "*.is_local", "same_map_*", "pixel_mean"),
        ),
        f"{_NOTHING} {_NET}",
    ),
    **dict.fromkeys(("ema", "plateau_*", "max_drops", "stop_patience"), f"{_NOTHING} {_SOLVER}"),
    "towers": f"{_NET}: group: 2 in conv2, conv4 and conv5",
    "num_classes": f"{_NET}: 1000; here as many as the data has",
    "crop_size": f"{_NET}: 227",
    "conv*.padding": f"{_NET}: none in conv1",
    **dict.fromkeys(
        (
            *("*.kernel_size", "*.stride", "*.num_kernels", "*.num_units", "activation"),
            *("order", "*.pooling", "pool_window", "pool_stride", "*.normalization"),
            *("lrn_n", "lrn_beta", "dropout_keep", "*.dropout", "*.weight_standard_deviation"),
        ),
        _NET,
    ),
    "*.reads_both_towers": f"{_NET}: group: 2 in conv2, conv4 and conv5 alone",
    "lrn_alpha": f"{_NET}: 0.0001; lrn_layer.cpp divides it by the size, 5",
    "lrn_k": "caffe.proto: LRNParameter.k is 1 where train_val.prototxt does not say",
    "lrn_scope": "lrn_layer.cpp: all channels, whatever the groups are",
    "pool_ties": "pooling_layer.cpp: the first",
    "pool_rounding": "pooling_layer.cpp: ceil",
    "dropout_scale": "dropout_layer.cpp: what stays is divided in training",
    "image_order": f"{_NET}: of an LMDB, the same in every epoch",
    "random_crops": "data_transformer.cpp: each image its own",
    "random_flips": f"{_NET}: mirror",
    "mean": f"{_NET}: mean_file, in data_transformer.cpp at the place of the crop",
    "pixel_divisor": f"{_NET}: no scale",
    "channels": "convert_imageset.cpp, io.cpp: BGR, as OpenCV reads",
    "batch_size": f"{_NET}: 256",
    "momentum": _SOLVER,
    "optimizer": "sgd_solver.cpp: the rate is in the velocity",
    "weight_decay": _SOLVER,
    "*.weight_decay": f"{_NET}: decay_mult is 1",
    "decay_biases": f"{_NET}: decay_mult is 0",
    "learning_rate": _SOLVER,
    "*.learning_rate": f"{_NET}: lr_mult is 1",
    "*bias_learning_rate": f"{_NET}: lr_mult is 2",
    "epochs": f"{_SOLVER}: 450,000 steps of 256, 89.9 epochs; published after 360,000",
    "drop_*": f"{_SOLVER}: by ten each 100,000 steps of 256, 19.98 epochs (D20)",
    "changes": f"{_NET}: the biases' rate falls with the weights', as lr_mult is 2",
    "*.bias": f"{_NET}: 0.1 where the paper has 1",
}

_CAFFENET = {
    "order": "bvlc_reference_caffenet/train_val.prototxt: norm1 reads pool1, norm2 reads pool2",
    "*.bias": "bvlc_reference_caffenet/train_val.prototxt, as of its published weights",
}

OTHER_SYSTEMS_EVIDENCE = {
    "torchvision": _TORCHVISION,
    "caffe-alexnet": _CAFFE,
    "caffenet": _CAFFENET,
}
