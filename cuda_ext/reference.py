"""Each operator in plain PyTorch: slow, obviously right, runs everywhere."""

import torch
import torch.nn.functional as F


def local_response_norm(
    x: torch.Tensor, *, n: int, k: float, alpha: float, beta: float, towers: int = 1
) -> torch.Tensor:
    """The formula of `cuda_ext.local_response_norm`."""
    wide = _by_tower(x, towers)
    base = k + alpha * _window_sums(wide.square(), n)
    return (wide * base.pow(-beta)).reshape(x.shape).to(x.dtype)


def local_response_norm_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    *,
    n: int,
    k: float,
    alpha: float,
    beta: float,
    towers: int = 1,
) -> torch.Tensor:
    """Its gradient: channel j is in the window of channel c exactly where c is in that of j.

    dx[c] = g[c] * b[c] ** -beta - 2 alpha beta x[c] * window sum of g * x * b ** (-beta - 1)
    """
    wide, g = _by_tower(x, towers), _by_tower(gradient, towers)
    base = k + alpha * _window_sums(wide.square(), n)
    through_others = _window_sums(g * wide * base.pow(-beta - 1), n)
    result = g * base.pow(-beta) - 2 * alpha * beta * wide * through_others
    return result.reshape(x.shape).to(x.dtype)


def _by_tower(x: torch.Tensor, towers: int) -> torch.Tensor:
    """(N, C, ...) to (N, towers, C / towers, the rest), in the type of the computation."""
    wide = x if x.dtype == torch.float64 else x.float()
    rest = x[0, 0].numel() if x.shape[0] and x.shape[1] else 0
    return wide.reshape(x.shape[0], towers, x.shape[1] // towers, rest)


def _window_sums(values: torch.Tensor, n: int) -> torch.Tensor:
    """Sums over the n channels around each channel of its tower; beyond the ends are zeros."""
    channels = values.shape[2]
    reach = min(n // 2, max(channels - 1, 0))
    padded = F.pad(values, (0, 0, reach, reach))
    total = torch.zeros_like(values)
    for i in range(2 * reach + 1):
        total += padded[:, :, i : i + channels]
    return total


def same_map_norm(x: torch.Tensor, *, n: int, k: float, alpha: float, beta: float) -> torch.Tensor:
    """The formula of `cuda_ext.same_map_norm`."""
    wide = _wide(x)
    return (wide * (k + alpha * _square_sums(wide.square(), n)).pow(-beta)).to(x.dtype)


def same_map_norm_backward(
    gradient: torch.Tensor, x: torch.Tensor, *, n: int, k: float, alpha: float, beta: float
) -> torch.Tensor:
    """Its gradient; a place is in the window of another exactly where that is in its own.

    dx = g * b ** -beta - 2 alpha beta x * window sum of g * x * b ** (-beta - 1)
    """
    wide, g = _wide(x), _wide(gradient)
    base = k + alpha * _square_sums(wide.square(), n)
    through_others = _square_sums(g * wide * base.pow(-(beta + 1)), n)
    return (g * base.pow(-beta) - 2 * alpha * beta * wide * through_others).to(x.dtype)


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _square_sums(values: torch.Tensor, n: int) -> torch.Tensor:
    """Sums over the n x n places around each place of a map; beyond its border are zeros."""
    for dimension in (2, 3):
        size = values.shape[dimension]
        reach = min(n // 2, max(size - 1, 0))
        border = (reach, reach) if dimension == 3 else (0, 0, reach, reach)
        padded = F.pad(values, border)
        values = sum(
            (padded.narrow(dimension, i, size) for i in range(2 * reach + 1)),
            torch.zeros_like(values),
        )
    return values


def max_pool2d(x: torch.Tensor, *, window: int, stride: int) -> torch.Tensor:
    """The maxima of `cuda_ext.max_pool2d`, the same for both rules of ties."""
    best, _ = _largest(_wide(x), window, stride)
    return best.to(x.dtype)


def max_pool2d_backward(
    gradient: torch.Tensor, x: torch.Tensor, *, window: int, stride: int, all_ties: bool
) -> torch.Tensor:
    """Its gradient; a place adds up that of its windows row by row."""
    wide = _wide(x)
    best, first = _largest(wide, window, stride)
    winners = [
        value == best if all_ties else first == place
        for place, value in enumerate(_places(wide, window, stride))
    ]
    return _unpooled(_wide(gradient), winners, x.shape, window, stride).to(x.dtype)


def relu_lrn_pool(
    x: torch.Tensor,
    *,
    window: int,
    stride: int,
    relu_first: bool,
    all_ties: bool,
    **letters: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The three steps of `cuda_ext.relu_lrn_pool`, and the places that get each window's gradient.

    Those are int16 with a bit for each place of the window, row by row from bit 0 on.
    """
    y = local_response_norm(x.relu() if relu_first else x, **letters)  # type: ignore[arg-type]
    wide = _wide(y)
    best, first = _largest(wide, window, stride)
    bits = torch.zeros_like(first)
    for place, value in enumerate(_places(wide, window, stride)):
        wins = value == best if all_ties else first == place
        bits = bits + (wins.to(bits.dtype) << place)
    if not relu_first:
        bits = torch.where(best <= 0, 0, bits)
        best = best.relu()
    return best.to(x.dtype), bits.to(torch.int16)


def relu_lrn_pool_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    winners: torch.Tensor,
    *,
    window: int,
    stride: int,
    relu_first: bool,
    **letters: float,
) -> torch.Tensor:
    """Its gradient, from the places that the forward pass kept; sums are rounded once."""
    wide = _wide(x)
    each = [(winners.to(torch.int32) >> place) & 1 == 1 for place in range(window * window)]
    pooled = _unpooled(_wide(gradient), each, x.shape, window, stride)
    seen = wide.relu() if relu_first else wide
    result = local_response_norm_backward(pooled, seen, **letters)  # type: ignore[arg-type]
    if relu_first:
        result = torch.where(wide <= 0, 0, result)
    return result.to(x.dtype)


def _places(x: torch.Tensor, window: int, stride: int) -> list[torch.Tensor]:
    """Of all windows the values in each place, row by row."""
    rows, columns = ((size - window) // stride * stride + 1 for size in x.shape[2:])
    return [
        x[:, :, i : i + rows : stride, j : j + columns : stride]
        for i in range(window)
        for j in range(window)
    ]


def _largest(x: torch.Tensor, window: int, stride: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Each window's maximum, and which place has it first; NaN counts as larger than what it meets.

    As in PyTorch: of several NaN the last one stays.
    """
    best, first = None, torch.zeros(0)
    for place, value in enumerate(_places(x, window, stride)):
        if best is None:
            best = torch.full_like(value, -torch.inf)
            first = torch.zeros_like(value, dtype=torch.int32)
        is_larger = (value > best) | value.isnan()
        best = torch.where(is_larger, value, best)
        first = torch.where(is_larger, place, first)
    assert best is not None
    return best, first


def _unpooled(
    gradient: torch.Tensor,
    winners: list[torch.Tensor],
    shape: torch.Size,
    window: int,
    stride: int,
) -> torch.Tensor:
    """Each window's gradient added to the places that win it."""
    total = gradient.new_zeros(shape)
    rows, columns = ((size - 1) * stride + 1 for size in gradient.shape[2:])
    # From the last place on: what a place adds up comes from its first window first.
    for place in reversed(range(window * window)):
        i, j = divmod(place, window)
        passed = torch.where(winners[place], gradient, 0)
        total[:, :, i : i + rows : stride, j : j + columns : stride] += passed
    return total


@torch.no_grad()
def momentum_sgd_(
    weights: list[torch.Tensor],
    velocities: list[torch.Tensor],
    gradients: list[torch.Tensor],
    learning_rates: torch.Tensor,
    momentum: float,
    weight_decays: torch.Tensor,
) -> None:
    """One step of gradient descent with momentum, in place (paper 5); see `cuda_ext`."""
    numbers = zip(learning_rates, weight_decays, strict=True)
    for weight, velocity, gradient, (rate, decay) in zip(
        weights, velocities, gradients, numbers, strict=True
    ):
        # The constants as numbers of the weights' type: they are not read back from a GPU.
        step, shrink = rate.to(weight.dtype), (decay * rate).to(weight.dtype)
        moved = momentum * velocity - shrink * weight - step * gradient
        velocity.copy_(torch.where(rate == 0, velocity, moved))
        weight.add_(torch.where(rate == 0, torch.zeros_like(velocity), velocity))


def philox_dropout(
    x: torch.Tensor,
    key: tuple[int, int],
    step: torch.Tensor,
    layer: int,
    rows: torch.Tensor,
    first_unit: int,
    threshold: int,
) -> torch.Tensor:
    """The words of `cuda_ext.philox_dropout`, and what stays of x; those below `threshold` do."""
    stop = first_unit + x.shape[1]
    words = torch.arange(first_unit // 4, (stop + 3) // 4, device=x.device)
    counter = [step.reshape(1, 1), torch.full_like(step, layer), rows[:, None], words[None, :]]
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    key0, key1 = key
    for _ in range(10):
        # int64 wraps around: the bits of the two words are those of the product.
        high, low = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c2 = (low >> 32 & _WORD) ^ c1 ^ key0, (high >> 32 & _WORD) ^ c3 ^ key1
        c1, c3 = low & _WORD, high & _WORD
        key0, key1 = key0 + 0x9E3779B9 & _WORD, key1 + 0xBB67AE85 & _WORD
    drawn = torch.stack((c0, c1, c2, c3), dim=-1).flatten(1)
    first = first_unit % 4
    return x * (drawn[:, first : first + x.shape[1]] < threshold)


_WORD = (1 << 32) - 1


def split_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    stride: int,
    padding: tuple[int, int],
    towers: int = 1,
    activation: str = "none",
) -> torch.Tensor:
    """The formula of `cuda_ext.split_conv2d`: of each place its patch, and its products."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    num_kernels, channels, height, width = weight.shape
    before, after = padding
    padded = F.pad(x.to(wide), (before, after, before, after))
    rows = (padded.shape[2] - height) // stride + 1
    columns = (padded.shape[3] - width) // stride + 1
    patches = F.unfold(padded, (height, width), stride=stride)
    patches = patches.view(x.shape[0], towers, channels * height * width, rows * columns)
    kernels = weight.to(wide).reshape(towers, num_kernels // towers, -1)
    y = torch.einsum("tki,ntip->ntkp", kernels, patches)
    y = y.reshape(x.shape[0], num_kernels, rows, columns)
    if bias is not None:
        y = y + bias.to(wide).view(-1, 1, 1)
    return (y.relu() if activation == "relu" else y).to(x.dtype)


def finish_products(
    y: torch.Tensor, others: torch.Tensor, bias: torch.Tensor | None, relu: bool
) -> torch.Tensor:
    """What `cuda_ext.split_conv2d_add_` makes of both halves' products, rounded once."""
    wide = torch.float64 if y.dtype == torch.float64 else torch.float32
    total = y.to(wide) + others.to(wide)
    if bias is not None:
        total = total + bias.to(wide).view(-1, 1, 1)
    return (total.relu() if relu else total).to(y.dtype)


def augment_batch_(
    images: list[torch.Tensor],
    places: torch.Tensor,
    mean_image: torch.Tensor | None,
    shifts: torch.Tensor | None,
    out: torch.Tensor,
    parallel: bool,
    is_central: bool = False,
    divisor: float = 1.0,
) -> None:
    """The formula of `cuda_ext.augment_batch`, image by image; fills `out`."""
    size = out.shape[2]
    height, width = images[0].shape[1:3] if mean_image is None else mean_image.shape[:2]
    is_cut = images[0].shape[1:3] != (height, width)
    counts = [len(part) for part in images]
    for n, (index, top, left, flip) in enumerate(places.tolist()):
        fits = 0 <= top <= height - size and 0 <= left <= width - size
        if not (0 <= index < sum(counts) and fits and flip in (0, 1)):
            raise RuntimeError(
                f"augment_batch: expected places of {sum(counts)} images of {height} x {width}, "
                f"got index {index}, top {top}, left {left}, flip {flip}"
            )
        part = 0
        while index >= counts[part]:
            index, part = index - counts[part], part + 1
        rows, columns = slice(top, top + size), slice(left, left + size)
        image = images[part][index]
        value = (image if is_cut else image[rows, columns]).float()
        if is_central:
            top, left = (height - size) // 2, (width - size) // 2
            value = value.flip(1) if flip else value
        if mean_image is not None:
            value = value - mean_image[top : top + size, left : left + size]
        if shifts is not None:
            value = value + shifts[n]
        # By a tensor there: a GPU multiplies by the inverse of a number, which has other bits.
        value = value / torch.full((), divisor, device=out.device)
        out[n] = (value.flip(1) if flip and not is_central else value).permute(2, 0, 1)
