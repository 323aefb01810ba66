"""Weights and inputs that need no files: every value follows from a name and an index.

The same rule stands in `tests/common/recipe.rs`; both must agree bit for bit.

    seed(name)  = FNV-1a (64 bits) of the UTF-8 name
    u(name, i)  = top 24 bits of splitmix64's finaliser of seed + (i + 1) * 0x9E3779B97F4A7C15, over 2^24: [0, 1)

Values are computed in f64 and rounded once to f32. A parameter's kind follows from its name and rank alone.
"""
import math

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
OFFSET_SCALE = 0.7  # of a deformable layer's offset convolution: offsets of about two pixels


def fnv1a(data: bytes) -> int:
    h = 0xCBF29CE484222325
    for byte in data:
        h = ((h ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return h


def finalise(z: np.ndarray) -> np.ndarray:
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float64) * 2.0 ** -24


def unit(name: str, index: np.ndarray) -> np.ndarray:
    """u(name, i) for an array of indices."""
    with np.errstate(over="ignore"):
        return finalise(np.uint64(fnv1a(name.encode())) + (index.astype(np.uint64) + np.uint64(1)) * GOLDEN)


def span(name: str, shape, knobs: dict) -> tuple[float, float]:
    """(low, width): the parameter is low + width * u."""
    damping = knobs["damping"] if any(name.endswith(suffix) for suffix in knobs["damped"]) else 1.0
    if name.endswith("conv_offset.bias"):
        return -0.5, 1.0
    if name.endswith("running_var"):
        return 0.75, 0.5
    if len(shape) >= 2:
        bound = math.sqrt(6.0 / math.prod(shape[1:])) * damping
        if name.endswith("conv_offset.weight"):
            bound *= OFFSET_SCALE
        return -bound, 2.0 * bound
    if name.endswith("weight"):
        gain = knobs["gain"] * damping
        return 0.75 * gain, 0.5 * gain
    return -0.1, 0.2     # biases and running means


def parameter(name: str, shape, knobs: dict) -> np.ndarray:
    low, width = span(name, shape, knobs)
    out = np.empty(math.prod(shape), np.float32)
    step = 1 << 20
    for start in range(0, out.size, step):
        stop = min(start + step, out.size)
        out[start:stop] = low + width * unit(name, np.arange(start, stop))
    return out.reshape(shape)


def image(shape, scale: float, name: str = "input") -> np.ndarray:
    """Patches of one colour, a third of the shorter side wide, under fine noise.

    Plain noise would average out in the global pooling and leave every input with the same logits.
    """
    n, c, h, w = shape
    fine = unit(name, np.arange(n * c * h * w)).reshape(shape)
    patch = max(1, min(h, w) // 3)
    plane = np.arange(n * c).reshape(n, c, 1, 1)
    row, col = np.arange(h).reshape(1, 1, h, 1) // patch, np.arange(w).reshape(1, 1, 1, w) // patch
    coarse = unit(name + ".coarse", (plane * 64 + row) * 64 + col)
    return (scale * ((2.0 * coarse - 1.0) * 1.5 + (2.0 * fine - 1.0) * 0.5)).astype(np.float32)
