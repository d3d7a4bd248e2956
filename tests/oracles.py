"""Float64 loops straight from the formulas; they share no code with the product."""

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
