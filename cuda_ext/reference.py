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
