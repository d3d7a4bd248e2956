"""Float64 programs from the paper's sentences and the facts of the 2012 source, in NumPy alone.

They share no code with the product and import nothing of it: the formulas as loops, the whole
network forward and backward, the draws, a run of training, and the test.
"""

import json
from fractions import Fraction

import h5py
import numpy as np


def local_response_norm(x, *, n, k, alpha, beta, towers=1):
    """Paper 3.3 by loops: x of (N, C, P)."""
    images, channels, pixels = x.shape
    per_tower = channels // towers
    y = np.empty_like(x, dtype=np.float64)
    for i in range(images):
        for c in range(channels):
            tower = c // per_tower
            first = max(c - n // 2, tower * per_tower)
            last = min(c + n // 2, tower * per_tower + per_tower - 1)
            for p in range(pixels):
                total = 0.0
                for j in range(first, last + 1):
                    total += float(x[i, j, p]) ** 2
                y[i, c, p] = float(x[i, c, p]) / (k + alpha * total) ** beta
    return y


def local_response_norm_gradient(gradient, x, *, n, k, alpha, beta, towers=1):
    """Each term of the chain rule by loops: dy[c] / dx[j] for every pair in a window."""
    images, channels, pixels = x.shape
    per_tower = channels // towers
    result = np.zeros(x.shape, np.float64)
    for i in range(images):
        for p in range(pixels):
            for c in range(channels):
                tower = c // per_tower
                first = max(c - n // 2, tower * per_tower)
                last = min(c + n // 2, tower * per_tower + per_tower - 1)
                base = k + alpha * sum(float(x[i, j, p]) ** 2 for j in range(first, last + 1))
                for j in range(first, last + 1):
                    term = -2 * alpha * beta * x[i, j, p] * x[i, c, p] * base ** (-beta - 1)
                    if j == c:
                        term += base**-beta
                    result[i, j, p] += gradient[i, c, p] * term
    return result


def sgd(weights, gradients, rates, *, momentum, weight_decay):
    """Paper 5 for one number at a time: the weights and velocities after all steps."""
    w = [float(value) for value in weights]
    v = [0.0] * len(w)
    for gradient, rate in zip(gradients, rates, strict=True):
        for i in range(len(w)):
            v[i] = momentum * v[i] - weight_decay * rate * w[i] - rate * float(gradient[i])
            w[i] = w[i] + v[i]
    return np.array(w), np.array(v)


def crop(image, *, top, left, size, flip):
    """One crop, pixel by pixel."""
    result = np.empty((size, size, 3), np.float64)
    for row in range(size):
        for column in range(size):
            source = left + (size - 1 - column if flip else column)
            result[row, column] = image[top + row, source]
    return result


def augmented(image, mean, shift, *, top, left, size, flip, is_central=False, divisor=1.0):
    """P 2, 4.1: the crop less the mean image at its own place, plus one shift for all pixels.

    S: less the mean's central part, which is not mirrored; divided. In float64, rounded to float32
    after each of the three: (size, size, 3).
    """
    where = {"top": top, "left": left, "size": size, "flip": flip}
    less = crop(mean, **where)
    if is_central:
        down, right = ((side - size) // 2 for side in mean.shape[:2])
        less = mean[down : down + size, right : right + size]
    centered = (crop(image, **where) - less).astype(np.float32)
    shifted = (centered.astype(np.float64) + shift).astype(np.float32)
    return (shifted / np.float64(np.float32(divisor))).astype(np.float32)


def convolution(x, weight, bias, *, stride, groups):
    """A convolution without padding, by loops over outputs: x of (C, H, W)."""
    kernels, inputs, size, _ = weight.shape
    side_h = (x.shape[1] - size) // stride + 1
    side_w = (x.shape[2] - size) // stride + 1
    result = np.empty((kernels, side_h, side_w))
    for kernel in range(kernels):
        first = kernel // (kernels // groups) * inputs
        for row in range(side_h):
            for column in range(side_w):
                patch = x[
                    first : first + inputs,
                    row * stride : row * stride + size,
                    column * stride : column * stride + size,
                ]
                result[kernel, row, column] = (patch * weight[kernel]).sum() + bias[kernel]
    return result


# --- What the paper fixes, read from its text (P and section) or, where the text is silent, from
# --- the facts of the 2012 source (S). Nothing of the product is imported.

TOWERS = 2  # P 3.5, Figure 2
CONVOLUTIONS = ("conv1", "conv2", "conv3", "conv4", "conv5")  # P 3.5
FULLY_CONNECTED = ("fc6", "fc7", "fc8")  # P 3.5
LAYERS = CONVOLUTIONS + FULLY_CONNECTED
NUM_KERNELS = {"conv1": 96, "conv2": 256, "conv3": 384, "conv4": 384, "conv5": 256}  # P 3.5
NUM_UNITS = {"fc6": 4096, "fc7": 4096, "fc8": 1000}  # P 3.5
KERNEL_SIZE = {"conv1": 11, "conv2": 5, "conv3": 3, "conv4": 3, "conv5": 3}  # P 3.5
STRIDE = {"conv1": 4, "conv2": 1, "conv3": 1, "conv4": 1, "conv5": 1}  # P 3.5
# Zeros before and after: 55, 27 and 13 wide maps of Figure 2; conv1 rounds up (S, section 3).
PADDING = {"conv1": (0, 3), "conv2": (2, 2), "conv3": (1, 1), "conv4": (1, 1), "conv5": (1, 1)}
READS_BOTH_TOWERS = ("conv3", *FULLY_CONNECTED)  # P 3.5: the others see their own tower
NORMALIZED = ("conv1", "conv2")  # P 3.5, after the ReLU (P 3.3)
LRN = {"n": 5, "k": 2.0, "alpha": 1e-4, "beta": 0.75}  # P 3.3
POOLED = ("conv1", "conv2", "conv5")  # P 3.5, after the normalization where there is one
POOL_WINDOW, POOL_STRIDE = 3, 2  # P 3.4: z and s
# P says nothing; in S "all" of several equal maxima get the gradient.
POOL_TIES = dict.fromkeys(POOLED, "first")
DROPPED = ("fc6", "fc7")  # P 4.2
DROPOUT_KEEP = 0.5  # P 4.2: at test the outputs are multiplied by it
CROP_SIZE, IMAGE_SIZE = 224, 256  # P 4.1, 2
COLOR_NOISE = 0.1  # P 4.1: standard deviation of each alpha
BATCH_SIZE, MOMENTUM, WEIGHT_DECAY = 128, 0.9, 0.0005  # P 5
STANDARD_DEVIATION = 0.01  # P 5
ONE_BIASES = ("conv2", "conv4", "conv5", "fc6", "fc7")  # P 5
LEARNING_RATE, DROP_FACTOR, NUM_DROPS, NUM_EPOCHS = 0.01, 0.1, 3, 90  # P 5
RECORDED_DROPS = (25, 51, 79)  # S, section 0: configuration 145
PARAMETERS = tuple(f"{layer}.{kind}" for layer in LAYERS for kind in ("weight", "bias"))


# --- The network (P 3), forward and backward. N images, C channels, H rows, W columns, K classes.


def halves(width):
    """The channels of each tower; the first has the smaller half of an odd width."""
    return (slice(0, width // 2), slice(width // 2, width))


def _convolve(x, weight, bias, *, stride, padding):
    before, after = padding
    size = weight.shape[-1]
    padded = np.pad(x, ((0, 0), (0, 0), (before, after), (before, after)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(2, 3))
    windows = windows[:, :, ::stride, ::stride]
    y = np.tensordot(windows, weight, axes=([1, 4, 5], [1, 2, 3])).transpose(0, 3, 1, 2)

    def backward(gradient):
        of_weight = np.tensordot(gradient, windows, axes=([0, 2, 3], [0, 2, 3]))
        of_padded = np.zeros_like(padded)
        rows, columns = gradient.shape[2:]
        for i in range(size):
            for j in range(size):
                share = np.tensordot(gradient, weight[:, :, i, j], axes=([1], [0]))
                of_padded[
                    :, :, i : i + stride * rows : stride, j : j + stride * columns : stride
                ] += share.transpose(0, 3, 1, 2)
        of_x = of_padded[:, :, before : before + x.shape[2], before : before + x.shape[3]]
        return of_x, of_weight, gradient.sum(axis=(0, 2, 3))

    return y + bias[:, None, None], backward


def _normalize(x):
    """P 3.3 inside one tower."""
    reach, channels = LRN["n"] // 2, x.shape[1]

    def window_sums(values):
        ends = [(max(0, c - reach), min(channels, c + reach + 1)) for c in range(channels)]
        return np.stack([values[:, first:last].sum(axis=1) for first, last in ends], axis=1)

    base = LRN["k"] + LRN["alpha"] * window_sums(x**2)
    beta = LRN["beta"]

    def backward(gradient):
        shared = window_sums(gradient * x * base ** (-beta - 1))
        return gradient * base**-beta - 2 * LRN["alpha"] * beta * x * shared

    return x * base**-beta, backward


def _pool(x, *, ties):
    """The maximum of each window; of equal ones the first, row by row, has the gradient, or all."""
    size = POOL_WINDOW
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))
    windows = windows[:, :, ::POOL_STRIDE, ::POOL_STRIDE]
    flat = windows.reshape(*windows.shape[:4], size * size)
    highest = flat.max(axis=-1)
    winners = np.arange(size * size) == flat.argmax(axis=-1)[..., None]
    if ties == "all":
        winners = flat == highest[..., None]

    def backward(gradient):
        of_x = np.zeros_like(x)
        n, c, i, j, place = np.nonzero(winners)
        rows, columns = POOL_STRIDE * i + place // size, POOL_STRIDE * j + place % size
        np.add.at(of_x, (n, c, rows, columns), gradient[n, c, i, j])
        return of_x

    return highest, backward


def network(weights, x, masks=None):
    """The logits of the paper's network (P 3), and the way back.

    Args:
        weights: name -> float64 array, whole tensors, of any widths.
        x: float64 (N, 3, H, W).
        masks: which outputs of fc6 and of fc7 stay in training (P 4.2); None at test.

    Returns:
        Logits (N, K), and a function from their gradient to that of every weight.
    """
    steps = []  # each takes the gradient of its output and gives that of its input
    gradients = {}

    def through(result):
        y, backward = result
        steps.append(backward)
        return y

    def by_tower(function, x):
        parts = [function(x[:, half]) for half in halves(x.shape[1])]
        y = np.concatenate([part for part, _ in parts], axis=1)

        def backward(gradient):
            cut = halves(gradient.shape[1])
            shares = [back(gradient[:, half]) for (_, back), half in zip(parts, cut, strict=True)]
            return np.concatenate(shares, axis=1)

        return y, backward

    def relu(x):
        return np.maximum(x, 0), lambda gradient: gradient * (x > 0)

    def convolution(layer, x):
        weight, bias = weights[f"{layer}.weight"], weights[f"{layer}.bias"]
        assert weight.shape[2:] == (KERNEL_SIZE[layer],) * 2
        sees_all = layer == "conv1" or layer in READS_BOTH_TOWERS  # each tower reads the image
        parts = []
        for kernels, channels in zip(halves(len(weight)), halves(x.shape[1]), strict=True):
            reads = slice(None) if sees_all else channels
            here = {"stride": STRIDE[layer], "padding": PADDING[layer]}
            parts.append((_convolve(x[:, reads], weight[kernels], bias[kernels], **here), reads))

        def backward(gradient):
            of_x = np.zeros_like(x)
            of_weights, of_biases = [], []
            for ((_, back), reads), half in zip(parts, halves(len(weight)), strict=True):
                of_part, of_weight, of_bias = back(gradient[:, half])
                of_x[:, reads] += of_part
                of_weights.append(of_weight)
                of_biases.append(of_bias)
            gradients[f"{layer}.weight"] = np.concatenate(of_weights)
            gradients[f"{layer}.bias"] = np.concatenate(of_biases)
            return of_x

        return np.concatenate([y for (y, _), _ in parts], axis=1), backward

    def linear(layer, x):
        weight, bias = weights[f"{layer}.weight"], weights[f"{layer}.bias"]

        def backward(gradient):
            gradients[f"{layer}.weight"] = gradient.T @ x
            gradients[f"{layer}.bias"] = gradient.sum(axis=0)
            return gradient @ weight

        return x @ weight.T + bias, backward

    for layer in CONVOLUTIONS:
        x = through(relu(through(convolution(layer, x))))
        if layer in NORMALIZED:
            x = through(by_tower(_normalize, x))
        if layer in POOLED:
            x = through(_pool(x, ties=POOL_TIES[layer]))
    maps = x.shape
    x = through((x.reshape(len(x), -1), lambda gradient: gradient.reshape(maps)))
    for layer in FULLY_CONNECTED:
        x = through(linear(layer, x))
        if layer != FULLY_CONNECTED[-1]:
            x = through(relu(x))
        if layer in DROPPED:
            kept = DROPOUT_KEEP if masks is None else masks[DROPPED.index(layer)]
            x = through((x * kept, lambda gradient, kept=kept: gradient * kept))

    def backward(gradient):
        for step in reversed(steps):
            gradient = step(gradient)
        return gradients

    return x, backward


def probabilities(logits):
    """The softmax (P 3.5)."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def losses_and_gradients(weights, x, labels, masks):
    """Each image's loss, the logits, and the gradients of the mean loss (P 3.5, 5)."""
    logits, backward = network(weights, x, masks)
    own = (np.arange(len(labels)), labels)
    shifted = logits - logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[own]
    of_logits = probabilities(logits)
    of_logits[own] -= 1
    return losses, logits, backward(of_logits / len(labels))


def correct(scores, labels, k):
    """How many labels are among the k best; of a tie at the border, the share of orders (S)."""
    total = 0.0
    for row, label in zip(scores, labels, strict=True):
        higher, tied = (row > row[label]).sum(), (row == row[label]).sum()
        total += min(1.0, max(0.0, (k - higher) / tied))
    return total


# --- The draws: Philox4x32-10 and the meaning of its counters, the format of `replica/draws.py`.

INITIALIZATION, CROP, COLOR, DROPOUT, CYCLE, ORDER, BLOCKS = 1, 2, 3, 4, 5, 6, 7


def philox(seed, purpose, counters):
    """Philox4x32-10 (Salmon et al. 2011): four 32-bit words for each counter (..., 4)."""
    low = np.uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = np.moveaxis(np.asarray(counters, np.uint64), -1, 0)
    key = [seed, purpose]
    for _ in range(10):
        one, two = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (two >> np.uint64(32)) ^ c1 ^ np.uint64(key[0]),
            two & low,
            (one >> np.uint64(32)) ^ c3 ^ np.uint64(key[1]),
            one & low,
        )
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return np.stack([c0, c1, c2, c3], axis=-1)


def _gaussian(words):
    """Box and Muller: two words to two numbers, cosine first."""
    u = (words.astype(np.float64) + 0.5) / 2.0**32
    radius, angle = np.sqrt(-2.0 * np.log(u[..., 0::2])), 2.0 * np.pi * u[..., 1::2]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1).reshape(u.shape)


def initial_weights(shapes, deviations, *, seed):
    """P 5: zero-mean Gaussians in float32, biases of one or zero; entry by entry from the seed."""
    weights = {}
    for number, name in enumerate(PARAMETERS):
        layer, kind = name.split(".")
        if kind == "bias":
            weights[name] = np.full(shapes[name], float(layer in ONE_BIASES))
            continue
        blocks = np.arange(-(-int(np.prod(shapes[name])) // 4))
        zeros = np.zeros_like(blocks)
        counters = np.stack([zeros + number, blocks >> 32, blocks, zeros], axis=-1)
        draws = _gaussian(philox(seed, INITIALIZATION, counters)).reshape(-1)
        draws = draws[: np.prod(shapes[name])].astype(np.float32).reshape(shapes[name])
        weights[name] = (draws * np.float32(deviations[layer])).astype(np.float64)
    return weights


def dropout_masks(widths, *, seed, step, rows):
    """P 4.2: which of the outputs of fc6 and fc7 stay; step and rows count from 0."""
    masks = []
    for layer, width in enumerate(widths):
        row, block = np.meshgrid(rows, np.arange(-(-width // 4)), indexing="ij")
        counters = np.stack([row * 0 + step, row * 0 + layer, row, block], axis=-1)
        words = philox(seed, DROPOUT, counters).reshape(len(rows), -1)[:, :width]
        masks.append(words < DROPOUT_KEEP * 2**32)
    return masks


def cycle_order(seed, size):
    """The one order of every epoch (S, section 0): images sorted by their word."""
    blocks = np.arange(-(-size // 4))
    counters = np.stack([blocks * 0, blocks * 0, blocks >> 32, blocks], axis=-1)
    words = philox(seed, CYCLE, counters).reshape(-1)[:size]
    return sorted(range(size), key=lambda i: (words[i], i))


def sorting_words(seed, purpose, epoch, size):
    """One word for each of 0..size - 1, drawn anew for every epoch."""
    words = []
    for i in range(size):
        words.append(int(philox(seed, purpose, [epoch, 0, (i // 4) >> 32, i // 4])[i % 4]))
    return words


def order_at(data, epoch, *, seed, image_order="cycle", block_images=None):
    """Rows in the order of an epoch: the same each time (S), all anew, or anew within blocks."""
    size = len(data["train"][1])
    if image_order == "cycle":
        return cycle_order(data["cycle_seed"], size)
    words = sorting_words(seed, ORDER, epoch, size)
    if image_order == "reshuffle":
        return sorted(range(size), key=lambda i: (words[i], i))
    rows, blocks = list(range(size)), []
    sizes = [block_images] * size if block_images else list(data["shard_sizes"])
    while rows:
        length = sizes.pop(0)
        blocks.append(rows[:length])
        rows = rows[length:]
    of_blocks = sorting_words(seed, BLOCKS, epoch, len(blocks))
    order = []
    for b in sorted(range(len(blocks)), key=lambda b: (of_blocks[b], b)):
        order += sorted(blocks[b], key=lambda i: (words[i], i))
    return order


# --- A run (P 4.1, 5): from the files of a data set to the weights after each step.


def read_data(directory):
    """A data set's parts, statistics and cycle seed, with h5py and json alone."""
    manifest = json.loads((directory / "manifest.json").read_text())
    data = {"cycle_seed": manifest["cycle_seed"], "num_classes": len(manifest["wnids"])}
    for part in ("train", "val"):
        images, labels = [], []
        for entry in manifest["parts"][part]["shards"]:
            with h5py.File(directory / entry["file"], "r") as file:
                images.append(file["images"][:])
                labels.append(file["labels"][:])
        data[part] = (np.concatenate(images), np.concatenate(labels))
        if part == "train":
            data["shard_sizes"] = [len(of_shard) for of_shard in labels]
    with h5py.File(directory / "statistics.h5", "r") as file:
        for name in ("mean_image", "eigenvalues", "eigenvectors"):
            data[name] = file[name][:]
    return data


def training_crop(
    data, row, *, epoch, seed, crop_size, color_noise, crops=True, flips=True, source=None, place=0
):
    """One image of a batch (P 2, 4.1), rounded to float32 where the feed does: (3, H, W).

    With `source`, a dict of the rules that are as in S, section 4: shared_crops, color_scale,
    color_division, mean; `place` is that of the image in the order of the epoch.
    """
    source = source or {}
    image, mean = data["train"][0][row], data["mean_image"]
    # S: one draw for each 32 consecutive images.
    draw = place // source["shared_crops"] if "shared_crops" in source else row
    down, right, flip, _ = (int(w) for w in philox(seed, CROP, [epoch, 0, draw >> 32, draw]))
    places = len(image) - crop_size + 1
    top, left = (down * places >> 32, right * places >> 32) if crops else (places // 2,) * 2
    cut = (slice(top, top + crop_size), slice(left, left + crop_size))
    x = image[cut].astype(np.float32)
    if source.get("mean") != "center":
        x = x - mean[cut]
    if flips and flip % 2:
        x = x[:, ::-1]
    if source.get("mean") == "center":  # S: whatever the position, not mirrored for flips
        x = x - central_mean(mean, crop_size)
    if color_noise:
        randn = _gaussian(philox(seed, COLOR, [epoch, 0, row >> 32, row]))[:3]
        if source.get("color_scale") == "standard-deviations":
            # S: noise = (randn * pca_stdevs) @ eigvecs^T, then coeff * noise, in pixels of 0..255.
            noise = np.zeros(3)
            for i in range(3):
                deviation = 255.0 * data["eigenvalues"][i] ** 0.5
                noise += randn[i] * deviation * data["eigenvectors"][:, i]
            shift = color_noise * noise
        else:
            # Principal components of RGB in [0, 1], scaled back to 0..255.
            shift = 255.0 * (data["eigenvectors"] @ (color_noise * randn * data["eigenvalues"]))
        x = x + shift.astype(np.float32)
        if source.get("color_division"):  # S: crop /= (1 + coeff)
            x = x / np.float32(1 + color_noise)
    return x.astype(np.float32).transpose(2, 0, 1)


def central_mean(mean, crop_size):
    """The central part of the mean image (S)."""
    first = (len(mean) - crop_size) // 2
    return mean[first : first + crop_size, first : first + crop_size]


def even_places(last, number):
    """The pixels at or before places at equal distances from edge to edge; one is in the middle."""
    if number == 1:
        return [last // 2]
    return [int(Fraction(last * i, number - 1)) for i in range(number)]


def views_of(data, images, *, crop_size, ten=False, grid=0, mean="place"):
    """P 4.1: the central crop, or four corners, center and their reflections: (N, V, 3, H, W).

    Or a grid of so many crops a side, line by line, and their reflections. S: the central part of
    the mean image is subtracted from each view, not mirrored.
    """
    last = images.shape[1] - crop_size
    places = [(0, 0), (0, last), (last // 2, last // 2), (last, 0), (last, last)]
    if grid:
        even = even_places(last, grid)
        places = [(top, left) for top in even for left in even]
    x = images.astype(np.float32) - (data["mean_image"] if mean == "place" else 0)
    views = [
        x[:, top : top + crop_size, left : left + crop_size]
        for top, left in (places if ten or grid else places[2:3])
    ]
    if ten or grid:
        views += [view[:, :, ::-1] for view in views]
    if mean == "center":
        views = [view - central_mean(data["mean_image"], crop_size) for view in views]
    return np.stack(views, axis=1).transpose(0, 1, 4, 2, 3).astype(np.float64)


def evaluate(weights, data, *, crop_size, ten=False, grid=0, part="val", mean="place"):
    """P 4.1, 6: mean softmax of each image's views (N, K), with the part's labels."""
    images, labels = data[part]
    crops = views_of(data, images, crop_size=crop_size, ten=ten, grid=grid, mean=mean)
    logits, _ = network(weights, crops.reshape(-1, *crops.shape[2:]))
    return probabilities(logits).reshape(*crops.shape[:2], -1).mean(axis=1), labels


def rates_at(epoch, errors, options):
    """The common learning rate before the first step of an epoch, counted from 1 (P 5, S)."""
    if "drop_epochs" in options:
        drops = sum(drop <= epoch for drop in options["drop_epochs"])
    else:
        drops, best, waited = 0, float("inf"), 0
        for error in errors:
            better = error < best - options["plateau_improvement"]
            best, waited = (error, 0) if better else (best, waited + 1)
            if waited == options["plateau_patience"] and drops < NUM_DROPS:
                drops, waited = drops + 1, 0
    return options["learning_rate"] * DROP_FACTOR**drops


def update(weights, velocities, gradients, rates):
    """P 5, once: each velocity, then each weight; biases do not decay, a rate of 0 freezes (S)."""
    for name, rate in rates.items():
        if rate:
            decay = WEIGHT_DECAY if name.endswith(".weight") else 0.0
            velocities[name] = (
                MOMENTUM * velocities[name] - decay * rate * weights[name] - rate * gradients[name]
            )
            weights[name] = weights[name] + velocities[name]


def train(data, weights, options, velocities=None, first_step=1):
    """A run of `python -m replica.train`, step by step.

    Args:
        data: of `read_data`.
        weights: the first ones; of a run that goes on, with its velocities and its next step.
        options: seed, crop_size, batch_size, steps, learning_rate; drop_epochs, or the plateau
            rule's plateau_patience and plateau_improvement; frozen, (layer, from epoch); own_rate,
            (tensor, from epoch, rate there); noise_off, the epoch from which color noise is 0;
            crops and flips, whether random; ema, the D of an average of the weights, which is what
            validation then tests; image_order and block_images, of `order_at`; source, of
            `training_crop`.

    Yields:
        After each step: a dict of loss, top1_error, top5_error, learning_rate, weights,
        velocities and averages; at an epoch's end also `val`, with the same measures.
    """
    batch_size, seed = options["batch_size"], options["seed"]
    per_epoch = -(-len(data["train"][1]) // batch_size)
    ordered = {name: options[name] for name in ("image_order", "block_images") if name in options}
    weights = {name: weight.astype(np.float64) for name, weight in weights.items()}
    velocities = velocities or {name: np.zeros_like(w) for name, w in weights.items()}
    velocities = {name: v.astype(np.float64) for name, v in velocities.items()}
    keep, averages = options.get("ema", 0.0), dict(weights)
    errors = []
    for step in range(first_step - 1, options["steps"]):
        epoch = step // per_epoch + 1
        order = order_at(data, epoch, seed=seed, **ordered)
        first = step % per_epoch * batch_size
        rows = order[first:][:batch_size]
        noise = 0.0 if epoch >= options.get("noise_off", np.inf) else COLOR_NOISE
        how = {"crop_size": options["crop_size"], "color_noise": noise}
        how |= {name: options.get(name, True) for name in ("crops", "flips")}
        how |= {"epoch": epoch, "seed": seed, "source": options.get("source")}
        x = [training_crop(data, row, place=first + i, **how) for i, row in enumerate(rows)]
        labels = data["train"][1][rows]
        widths = [len(weights[f"{layer}.bias"]) for layer in DROPPED]
        masks = dropout_masks(widths, seed=seed, step=step, rows=np.arange(len(rows)))
        losses, logits, gradients = losses_and_gradients(
            weights, np.stack(x).astype(np.float64), labels, masks
        )
        common = rates_at(epoch, errors, options)
        layer, since = options.get("frozen", ("", 0))
        rates = dict.fromkeys(weights, common)
        if epoch >= since:
            rates |= {name: 0.0 for name in weights if name.split(".")[0] == layer}
        tensor, since, rate = options.get("own_rate", ("", 0, 0.0))
        if tensor and epoch >= since:  # it drops with the others from then on
            rates[tensor] = rate * common / rates_at(since, errors, options)
        update(weights, velocities, gradients, rates)
        averages = {n: keep * averages[n] + (1 - keep) * w for n, w in weights.items()}
        done = {
            **measures(probabilities(logits), labels, losses),
            "learning_rate": common,
            "weights": dict(weights),
            "velocities": dict(velocities),
            "averages": averages,
        }
        if (step + 1) % per_epoch == 0:
            scores, labels = evaluate(averages, data, crop_size=options["crop_size"])
            losses = -np.log(scores[np.arange(len(labels)), labels])
            done["val"] = measures(scores, labels, losses)
            errors.append(done["val"]["top1_error"])
        yield done


def loss_scales(are_finite, scale=65536.0, good_steps=0):
    """The scale of the loss, and the good steps in a row, after each step (the rule of PyTorch)."""
    for is_finite in are_finite:
        good_steps = good_steps + 1 if is_finite else 0
        scale = scale if is_finite else scale / 2
        if good_steps == 2000:
            scale, good_steps = 2 * scale, 0
        yield scale, good_steps


def measures(scores, labels, losses):
    """Mean loss, and the errors of the best and of the five best (P 2)."""
    return {
        "loss": losses.mean(),
        "top1_error": 1 - correct(scores, labels, 1) / len(labels),
        "top5_error": 1 - correct(scores, labels, 5) / len(labels),
    }
