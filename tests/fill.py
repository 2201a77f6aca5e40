# SPDX-License-Identifier: Apache-2.0
"""Deterministic stand-in weights and inputs, so that a reference result can be
stored as a few numbers instead of a checkpoint.

Every tensor's values depend only on its name and shape. ``RandomState`` is
NumPy's frozen legacy generator: its stream is the same on every platform and
in every NumPy release.
"""
import math
import zlib

import numpy as np
import torch


def normal(name: str, shape) -> torch.Tensor:
    """Standard-normal float32 values of `shape`, seeded by `name`."""
    rs = np.random.RandomState(zlib.crc32(name.encode()))
    return torch.from_numpy(np.asarray(rs.standard_normal(tuple(shape)), dtype=np.float32).reshape(tuple(shape)))


def tensor(name: str, shape, dtype=torch.float32) -> torch.Tensor:
    """The stand-in for the state-dict entry `name`: sensible scales, so that a
    deep network filled with it neither explodes nor dies."""
    shape = tuple(shape)
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype)
    last = name.rsplit(".", 1)[-1]
    z = normal(name, shape)
    if last == "running_var":
        t = 1.0 + 0.1 * z.abs()
    elif last == "running_mean":
        t = 0.1 * z
    elif len(shape) >= 2 and last in ("weight", "qkv", "proj"):
        t = z / math.sqrt(max(1, math.prod(shape[1:])))
    elif last == "weight":  # a norm's scale
        t = 1.0 + 0.1 * z
    elif last == "bias":
        t = 0.1 * z
    else:  # tokens, position embeddings, learnable scalars
        t = 0.1 * z
    return t.to(dtype)


def fill_(state_dict: dict, keep=()) -> dict:
    """A new state dict with every entry replaced by its stand-in, but for the
    names that contain one of `keep` (buffers with a meaning: anchors, strides,
    index tables, learnable residual coefficients)."""
    return {
        k: (v.clone() if any(s in k for s in keep) else tensor(k, v.shape, v.dtype))
        for k, v in state_dict.items()
    }


def image(name: str, shape) -> torch.Tensor:
    """An input image batch in [0, 1): smooth enough to look like an image."""
    rs = np.random.RandomState(zlib.crc32(("image:" + name).encode()))
    b, c, h, w = shape
    coarse = torch.from_numpy(rs.random_sample((b, c, 8, 8)).astype(np.float32))
    fine = torch.from_numpy(rs.random_sample((b, c, h, w)).astype(np.float32))
    up = torch.nn.functional.interpolate(coarse, size=(h, w), mode="bilinear", align_corners=False)
    return (0.8 * up + 0.2 * fine).clamp(0, 1)


def digest(t: torch.Tensor, n: int = 16) -> dict:
    """What a reference file stores of a tensor: shape, moments, and `n` values
    at fixed places spread over it."""
    f = t.detach().double().flatten()
    idx = torch.linspace(0, f.numel() - 1, min(n, f.numel())).round().long()
    return {
        "shape": list(t.shape),
        "mean": f.mean().item(),
        "std": f.std(unbiased=False).item(),
        "l2": f.norm().item(),
        "at": idx.tolist(),
        "values": f[idx].tolist(),
    }
