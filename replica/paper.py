"""Every number that the paper states, with its section: Krizhevsky, Sutskever, Hinton, NIPS 2012.

This project chooses nothing here. What the network does is in `replica/recipes`, which takes its
values from here wherever the paper states one.
"""

# --- 2 The dataset
IMAGE_SIZE = 256  # the shorter side, and the side of the central patch

# --- 3.1 to 3.5 The architecture. Channels are those of the whole layer, both towers together.
NUM_TOWERS = 2
CROP_SIZE = 224
CONV_KERNELS = (96, 256, 384, 384, 256)
CONV_KERNEL_SIZES = (11, 5, 3, 3, 3)
CONV_STRIDES = (4, 1, 1, 1, 1)
FC_UNITS = (4096, 4096)
NUM_CLASSES = 1000
# Layers that read both towers (Figure 2): conv3 and the fully connected ones.
READS_BOTH_TOWERS = ("conv3", "fc6", "fc7", "fc8")
# --- 3.3 Local response normalization, after conv1 and conv2; alpha is on the plain sum.
LRN_K = 2.0
LRN_N = 5
LRN_ALPHA = 1e-4
LRN_BETA = 0.75
LRN_AFTER = ("conv1", "conv2")
# --- 3.4 Overlapping pooling, after the two normalizations and after conv5.
POOL_WINDOW = 3
POOL_STRIDE = 2
POOL_AFTER = ("conv1", "conv2", "conv5")

# --- 4 Reducing overfitting
AUGMENTATION_FACTOR = 2048  # 4.1: 32 * 32 positions and their reflections
COLOR_NOISE_STANDARD_DEVIATION = 0.1  # 4.1: of each alpha
TEST_VIEWS = 10  # 4.1: four corners and the center, and their reflections
DROPOUT_KEEP = 0.5  # 4.2: at test, outputs are multiplied by it
DROPOUT_AFTER = ("fc6", "fc7")

# --- 5 Details of learning
BATCH_SIZE = 128
MOMENTUM = 0.9
WEIGHT_DECAY = 0.0005
WEIGHT_STANDARD_DEVIATION = 0.01
ONE_BIASES = ("conv2", "conv4", "conv5", "fc6", "fc7")  # the other biases start at zero
LEARNING_RATE = 0.01
LEARNING_RATE_FACTOR = 0.1
NUM_DROPS = 3
NUM_EPOCHS = 90  # "roughly 90 cycles"
TRAINING_TIME, TRAINING_DEVICES = "5 to 6 days", "2 x NVIDIA GTX 580"  # with 3 GB each

# --- What the paper says of the whole network (abstract, Figure 2)
CLAIMED_PARAMETERS = 60_000_000
CLAIMED_NEURONS = 650_000
CLAIMED_INPUT = 150_528
CLAIMED_LAYER_NEURONS = {
    "conv1": 253_440,
    "conv2": 186_624,
    "conv3": 64_896,
    "conv4": 64_896,
    "conv5": 43_264,
    "fc6": 4096,
    "fc7": 4096,
    "fc8": 1000,
}

# --- What it says of data and of single parts
CLAIMED_CONV_SHARE = 0.01  # of the parameters, at most, in each convolutional layer (1)
CLAIMED_TRAIN_IMAGES, CLAIMED_VAL_IMAGES, CLAIMED_TEST_IMAGES = 1_200_000, 50_000, 150_000  # 2
CLAIMED_SPEED_OF_RELU = 6  # times that of tanh (3.1), until this training error (Figure 1)
FIGURE_1_TRAINING_ERROR = 0.25
# By how many points a part lowers the top-1 error.
POINTS_OF_TWO_TOWERS = 1.7  # 3.2, against half the kernels
POINTS_OF_NORMALIZATION = 1.4  # 3.3
POINTS_OF_NORMALIZATION_CIFAR10 = 2.0  # 3.3, from 13 % to 11 %
POINTS_OF_OVERLAP = 0.4  # 3.4
POINTS_OF_COLOR_NOISE = 1.0  # 4.1, "over 1 %"
POINTS_OF_A_MIDDLE_LAYER = 2.0  # 7, "about 2 %"

# --- 6 Results, as fractions (Tables 1 and 2), ten-crop unless said
ERRORS_2012_VAL = (0.407, 0.182)  # one network, ILSVRC-2012 validation, top-1 and top-5
ERRORS_2012_VAL_CONV6 = (0.390, 0.166)  # the same, pre-trained on ImageNet Fall 2011 (1 CNN*)
ERRORS_2010_TEST = (0.375, 0.170)
ERRORS_2010_TEST_CENTER = (0.390, 0.183)
