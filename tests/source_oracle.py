"""The 2012 source in float64 NumPy, column by column, from the facts of its files alone.

S: a section of those facts. It imports nothing of the product, and of `oracles.py` the draws and
the images, which share nothing with it either. Columns a and b are the two GPUs of 2012; each has
arrays of its own, and a layer that reads both has a matrix for each of them.
"""

from math import ceil

import numpy as np
import oracles

# S 1 and 9: filter size, stride, padding of each convolution of configuration 145.
CONVOLUTIONS = {
    "conv1": (11, 4, 0),
    "conv2": (5, 1, 2),
    "conv3": (3, 1, 1),
    "conv4": (3, 1, 1),
    "conv5": (3, 1, 1),
}
# S 0, 1, 2: what follows each of them. The ReLU of conv1 and of conv5 is their pooling layer's.
FOLLOWED_BY = {
    "conv1": ("cmrnorm", "pool", "relu"),
    "conv2": ("relu", "cmrnorm", "rnorm", "pool"),
    "conv3": ("relu",),
    "conv4": ("relu",),
    "conv5": ("pool", "relu"),
    "conv6": ("relu",),
}
CROSS_MAP = {"size": 5, "scale": 1e-4, "pow": 0.75, "min_div": 2.0}  # S 1, 2; scale / size
SAME_MAP = {"size": 5, "scale": 1e-3, "pow": 0.75, "min_div": 1.0}  # S 1, 2; scale / size ** 2
POOL = (3, 2)  # S 1: sizeX and stride
KEEP = 0.5  # S 6
DROPPED = ("fc6", "fc7")
# S 1: standard deviations and first biases.
DEVIATION = {"conv3": 0.03, "conv4": 0.03, "conv5": 0.03, "conv6": 0.03}  # others: 0.01
ONE_BIASES = ("conv2", "conv4", "conv5", "conv6", "fc6", "fc7")
MOMENTUM, WEIGHT_DECAY = 0.9, 0.0005  # S 5


class Net:
    """A configuration: which layers it has, and which of them read both columns (S 1, 7)."""

    def __init__(self, name="source-2012"):
        self.columns = 1 if name == "source-2012-half" else 2
        self.convolutions = dict(CONVOLUTIONS)
        self.followed_by = dict(FOLLOWED_BY)
        self.fully_connected = ["fc6", "fc7", "fc8"]
        self.pool = POOL
        self.meetings = {"conv3", "conv6", "fc6", "fc7", "bottleneck", "fc8"}
        if name.endswith("conv6"):  # S 1, 146: over both columns, after pool3
            self.convolutions["conv6"] = (3, 1, 1)
        if name.startswith("source-2011"):  # S 1, 146-2011: a linear bottleneck
            self.fully_connected.insert(2, "bottleneck")
        if name.endswith("no-overlap"):  # S 1, 147
            self.pool = (2, 2)
            self.convolutions |= {"conv2": (5, 1, 1), "conv5": (3, 1, 0)}
        if name.endswith("no-norm"):  # S 0, 1, 148: the same-map one, too
            self.followed_by |= {"conv1": ("pool", "relu"), "conv2": ("relu", "pool")}
        if name.endswith("no-communication"):  # S 1, 150; each logit is over both all the same
            self.meetings = {"fc8"}

    @property
    def layers(self):
        return [*self.convolutions, *self.fully_connected]


def split(array, columns, axis=0):
    """What each column has of a whole tensor; the first has the smaller half of an odd width."""
    width = array.shape[axis]
    return np.split(array, [width // 2] if columns == 2 else [], axis=axis)


# --- Operations of one column; each gives its result and the way back.


def convolve(x, weight, bias, *, stride, padding):
    """S 3: 1 + ceil((2 * padding + side - filter) / stride) places; beyond the image are zeros."""
    images, channels, side, _ = x.shape
    filters, size = len(weight), weight.shape[-1]
    places = 1 + ceil((2 * padding + side - size) / stride)
    reach = (places - 1) * stride + size
    around = np.zeros((images, channels, max(reach, side + padding), max(reach, side + padding)))
    around[:, :, padding : padding + side, padding : padding + side] = x
    y = np.zeros((images, filters, places, places))
    for i in range(places):
        for j in range(places):
            patch = around[:, :, i * stride : i * stride + size, j * stride : j * stride + size]
            y[:, :, i, j] = patch.reshape(images, -1) @ weight.reshape(filters, -1).T

    def back(of_y):
        of_around, of_weight = np.zeros_like(around), np.zeros((filters, weight[0].size))
        for i in range(places):
            for j in range(places):
                cut = np.s_[:, :, i * stride : i * stride + size, j * stride : j * stride + size]
                of_weight += of_y[:, :, i, j].T @ around[cut].reshape(images, -1)
                of_patch = of_y[:, :, i, j] @ weight.reshape(filters, -1)
                of_around[cut] += of_patch.reshape(images, channels, size, size)
        of_x = of_around[:, :, padding : padding + side, padding : padding + side]
        return of_x, of_weight.reshape(weight.shape), of_y.sum(axis=(0, 2, 3))

    return y + bias[:, None, None], back


def _divided(x, near, *, size, scale, divisor, pow, min_div):
    """x * (min_div + scale / divisor * sum over `near` of x ** 2) ** -pow, and its gradient.

    `near` is symmetric: whoever is in my window has me in his.
    """
    denominator = min_div + scale / divisor * near(x**2)

    def back(of_y):
        through = near(of_y * x * denominator ** (-pow - 1))
        return of_y * denominator**-pow - 2 * scale / divisor * pow * x * through

    return x * denominator**-pow, back


def cross_map(x):
    """S 2: channels of this column alone; the window is cut off, the divisor is not."""
    reach = CROSS_MAP["size"] // 2

    def near(values):
        total = np.zeros_like(values)
        for f in range(values.shape[1]):
            total[:, f] = values[:, max(0, f - reach) : f + reach + 1].sum(axis=1)
        return total

    return _divided(x, near, divisor=CROSS_MAP["size"], **CROSS_MAP)


def same_map(x):
    """S 2: a square window around each place of a map, cut off at the border."""
    reach = SAME_MAP["size"] // 2

    def near(values):
        total = np.zeros_like(values)
        for i in range(values.shape[2]):
            for j in range(values.shape[3]):
                rows, columns = (slice(max(0, at - reach), at + reach + 1) for at in (i, j))
                total[:, :, i, j] = values[:, :, rows, columns].sum(axis=(2, 3))
        return total

    return _divided(x, near, divisor=SAME_MAP["size"] ** 2, **SAME_MAP)


def max_pool(x, *, size, stride):
    """S 3: ceil((side - size) / stride) + 1 windows, cut off; every tied maximum has a gradient."""
    side = x.shape[2]
    places = ceil((side - size) / stride) + 1
    y = np.zeros((*x.shape[:2], places, places))

    def windows():
        for i in range(places):
            for j in range(places):
                rows, columns = (slice(at * stride, at * stride + size) for at in (i, j))
                yield i, j, np.s_[:, :, rows, columns]

    for i, j, cut in windows():
        y[:, :, i, j] = x[cut].max(axis=(2, 3))

    def back(of_y):
        of_x = np.zeros_like(x)
        for i, j, cut in windows():
            here = np.s_[:, :, i : i + 1, j : j + 1]
            of_x[cut] += (x[cut] == y[here]) * of_y[here]
        return of_x

    return y, back


def relu(x):
    """S 3: the gradient passes where the activity is positive."""
    return np.maximum(x, 0), lambda of_y: of_y * (x > 0)


# --- The network


def run(net, weights, images, masks=None):
    """The logits, and a function from their gradient to that of every weight.

    Args:
        net: the configuration.
        weights: name -> float64 array, both columns together, the first column first.
        images: float64 (N, 3, side, side), of which every column has all.
        masks: of fc6 and of fc7, whole; None at test, when outputs are multiplied (S 6).
    """
    number = net.columns
    way_back, gradients = [], {}
    columns = [images] * number

    def products(layer, columns, multiply):
        """A layer's products: own inputs, or those of both columns by a matrix for each (S 7)."""
        nonlocal way_back
        meets = layer in net.meetings and number == 2
        rows = split(weights[f"{layer}.weight"], number)
        biases = split(weights[f"{layer}.bias"], number)
        results, backs = [], []
        for own, (matrix, bias) in enumerate(zip(rows, biases, strict=True)):
            if not meets:
                y, back = multiply(columns[own], matrix, bias)
                results.append(y)
                backs.append([(own, back)])
                continue
            parts = split(matrix, 2, axis=1)
            done = [multiply(x, part, 0 * bias) for x, part in zip(columns, parts, strict=True)]
            shape = (-1, *[1] * (done[0][0].ndim - 2))
            results.append(done[0][0] + done[1][0] + bias.reshape(shape))
            backs.append([(other, back) for other, (_, back) in enumerate(done)])

        def back(of_results):
            of_columns = [np.zeros_like(x) for x in columns]
            of_weight, of_bias = [], []
            for of_y, reads in zip(of_results, backs, strict=True):
                of_parts = []
                for other, one_back in reads:
                    of_x, of_part, of_own_bias = one_back(of_y)
                    of_columns[other] += of_x
                    of_parts.append(of_part)
                of_weight.append(np.concatenate(of_parts, axis=1))
                of_bias.append(of_own_bias)
            gradients[f"{layer}.weight"] = np.concatenate(of_weight)
            gradients[f"{layer}.bias"] = np.concatenate(of_bias)
            return of_columns

        way_back.append(back)
        return results

    def each(operation, columns):
        done = [operation(x) for x in columns]
        way_back.append(lambda of: [back(g) for (_, back), g in zip(done, of, strict=True)])
        return [y for y, _ in done]

    def dropped(columns, kept):
        way_back.append(lambda of: [g * mask for g, mask in zip(of, kept, strict=True)])
        return [x * mask for x, mask in zip(columns, kept, strict=True)]

    operations = {
        "relu": relu,
        "cmrnorm": cross_map,
        "rnorm": same_map,
        "pool": lambda x: max_pool(x, size=net.pool[0], stride=net.pool[1]),
    }
    for layer, (size, stride, padding) in net.convolutions.items():
        assert weights[f"{layer}.weight"].shape[2:] == (size, size)
        columns = products(
            layer,
            columns,
            lambda x, w, b, how=(stride, padding): convolve(x, w, b, stride=how[0], padding=how[1]),
        )
        for name in net.followed_by[layer]:
            columns = each(operations[name], columns)
    columns = each(lambda x: (x.reshape(len(x), -1), lambda g: g.reshape(x.shape)), columns)

    def linear(x, weight, bias):
        return x @ weight.T + bias, lambda g: (g @ weight, g.T @ x, g.sum(axis=0))

    for layer in net.fully_connected:
        columns = products(layer, columns, linear)
        if layer in DROPPED:
            columns = each(relu, columns)
            kept = [KEEP] * number if masks is None else split(masks[layer], number, axis=1)
            columns = dropped(columns, kept)

    def back(of_logits):
        of = split(of_logits, number, axis=1)
        for step in reversed(way_back):
            of = step(of)
        return gradients

    return np.concatenate(columns, axis=1), back


def losses_and_gradients(net, weights, images, labels, masks):
    """-log p of each image, the logits, and the gradients of its mean over the batch (S 5)."""
    logits, back = run(net, weights, images, masks)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = powers / powers.sum(axis=1, keepdims=True)
    one_hot = np.eye(p.shape[1])[labels]
    return -np.log((p * one_hot).sum(axis=1)), logits, back((p - one_hot) / len(labels))


def first_weights(net, shapes, *, seed):
    """S 1: initW * randn and initB, with the draws of `oracles.py`, numbered layer by layer."""
    weights, number = {}, 0
    for layer in net.layers:
        shape = shapes[f"{layer}.weight"]
        blocks = np.arange(-(-int(np.prod(shape)) // 4))
        counters = np.stack([0 * blocks + number, 0 * blocks, blocks, 0 * blocks], axis=-1)
        words = oracles.philox(seed, oracles.INITIALIZATION, counters)
        randn = oracles._gaussian(words).reshape(-1)[: np.prod(shape)].astype(np.float32)
        deviation = np.float32(DEVIATION.get(layer, 0.01))
        weights[f"{layer}.weight"] = (deviation * randn).astype(np.float64).reshape(shape)
        weights[f"{layer}.bias"] = np.full(shapes[f"{layer}.bias"], float(layer in ONE_BIASES))
        number += 2
    return weights


def rates_of(schedule, epoch, layers):
    """S 5: what each tensor is learned with in an epoch, counted from 1; 0 where it is frozen.

    Args:
        schedule: weights and biases, the first rates; drops, the epochs at which the weights' is
            divided by ten; conv1, (epoch, its weights' rate from there on); freeze, the epoch from
            which conv1 stays as it is; biases_drop, the epoch from which the biases have 0.002.
        epoch: counted from 1.
        layers: their names.
    """
    weights = schedule["weights"] / 10 ** sum(drop <= epoch for drop in schedule["drops"])
    biases = schedule["biases"]
    if epoch >= schedule.get("biases_drop", np.inf):
        biases = 0.002
    rates = {}
    for layer in layers:
        rates |= {f"{layer}.weight": weights, f"{layer}.bias": biases}
    since, rate = schedule.get("conv1", (np.inf, 0))
    if epoch >= since:
        rates["conv1.weight"] = rate
    if epoch >= schedule["freeze"]:
        rates |= {"conv1.weight": 0.0, "conv1.bias": 0.0}
    return rates


IMAGES = {  # S 0, 4
    "shared_crops": 32,
    "color_scale": "standard-deviations",
    "color_division": True,
    "mean": "center",
}


def train(data, net, weights, schedule, *, seed, crop_size, batch_size, steps, noise=0.1):
    """Training step by step: fixed order, shared crops, noise, dropout, update (S 4 to 6).

    Yields:
        After each step: the mean loss, weights and increments; at an epoch's end the errors on the
        validation images, too.
    """
    per_epoch = ceil(len(data["train"][1]) / batch_size)
    order = oracles.cycle_order(data["cycle_seed"], len(data["train"][1]))
    weights = {name: weight.copy() for name, weight in weights.items()}
    increments = {name: np.zeros_like(weight) for name, weight in weights.items()}
    for step in range(steps):
        epoch, first = step // per_epoch + 1, step % per_epoch * batch_size
        rows = order[first : first + batch_size]
        is_noisy = epoch < schedule.get("noise_off", np.inf)
        images = [
            oracles.training_crop(
                data,
                row,
                epoch=epoch,
                seed=seed,
                crop_size=crop_size,
                color_noise=noise if is_noisy else 0.0,
                source=IMAGES,
                place=first + i,
            )
            for i, row in enumerate(rows)
        ]
        widths = [len(weights[f"{layer}.bias"]) for layer in DROPPED]
        masks = oracles.dropout_masks(widths, seed=seed, step=step, rows=np.arange(len(rows)))
        losses, _, gradients = losses_and_gradients(
            net,
            weights,
            np.stack(images).astype(np.float64),
            data["train"][1][rows],
            dict(zip(DROPPED, masks, strict=True)),
        )
        for name, rate in rates_of(schedule, epoch, net.layers).items():
            if rate == 0:  # S 5: no gradient, no update, no decay, the increment stays
                continue
            decay = WEIGHT_DECAY if name.endswith("weight") else 0.0
            increments[name] = (
                MOMENTUM * increments[name] - rate * gradients[name] - decay * rate * weights[name]
            )
            weights[name] = weights[name] + increments[name]
        done = {"loss": losses.mean(), "weights": dict(weights), "velocities": dict(increments)}
        if (step + 1) % per_epoch == 0:
            crops = oracles.views_of(
                data, data["val"][0], crop_size=crop_size, ten=False, mean="center"
            )
            logits, _ = run(net, weights, crops[:, 0])
            scores, labels = oracles.probabilities(logits), data["val"][1]
            of_labels = -np.log(scores[np.arange(len(labels)), labels])
            done["val"] = oracles.measures(scores, labels, of_labels)
        yield done
