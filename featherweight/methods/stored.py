# SPDX-License-Identifier: Apache-2.0
"""Linear and convolution layers whose weight is kept in 16, 8, 4, 2 or 1 bits and computed with as floats.

A `StoredLinear` or `StoredConv2d` holds a store, a module without parameters whose buffers are the weight as it lies in
the file and whose call gives the floats. The exported file holds the same few bytes and the operators that unpack them,
which both runtimes carry out once when they load it: a smaller file, not a faster one. With `inputs` the layer also
rounds what it is given to 8 bits. Not here: which values are best (`weight_only`, `qat`, `adaround` ...).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import OptionError
from ..surgery import edit_kind, has_values
from .int8 import Quantizer, convolve, take_shape
from .rounding import bits_of, fitted, fitted_between

SMALLEST_STEP = 2.0**-14  # below it, 16 bits lose digits: the steps are then kept in 32

# Two operators of their own, so that export sees them as what they are -----------------------------------------------
_LIBRARY = torch.library.Library("featherweight", "FRAGMENT")
_LIBRARY.define("unpack(Tensor packed, int bits) -> Tensor")
_LIBRARY.define("widen(Tensor half) -> Tensor")


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Codes (rows, n) below 2**bits, uint8 -> (rows, bytes); the first code in the lowest bits, rows filled with 0."""
    each = 8 // bits
    filled = F.pad(codes, (0, -codes.shape[1] % each)).unflatten(1, (-1, each))  # (rows, bytes, each)
    shifts = torch.arange(0, 8, bits, dtype=torch.int32, device=codes.device)
    return (filled.int() << shifts).sum(-1).to(torch.uint8)


def unpack_codes(packed: Tensor, bits: int) -> Tensor:
    """Bytes (rows, bytes) -> the codes in them as float32 (rows, bytes * 8 / bits)."""
    shifts = torch.arange(0, 8, bits, dtype=torch.int32, device=packed.device)
    return ((packed[..., None].int() >> shifts) & ((1 << bits) - 1)).flatten(1).float()


_LIBRARY.impl("unpack", unpack_codes, "CompositeExplicitAutograd")
_LIBRARY.impl("widen", lambda half: half.float(), "CompositeExplicitAutograd")


def group_of(count: int, group: int | None) -> int:
    """The largest divisor of a row's length that is at most `group`; the whole row where there is no sensible one."""
    if group is None or group >= count:
        return count
    found = next(size for size in range(group, 0, -1) if count % size == 0)
    return found if 4 * found >= group else count


# Stores ---------------------------------------------------------------------------------------------------------------
class HalfStore(nn.Module):
    """A weight in 16 bits."""

    narrow: Tensor

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.stands_for = {"narrow": weight.numel()}
        self.register_buffer("narrow", weight.detach().to(dtype))

    def forward(self) -> Tensor:
        weight: Tensor = torch.ops.featherweight.widen(self.narrow)
        return weight


class PackedStore(nn.Module):
    """A weight (rows, ...) as codes of few bits, with one step for each group of `group` values of a row.

    levels: of the grid, see `rounding`. symmetric=False: 16 levels whose zero may lie anywhere, one per group.
    """

    packed: Tensor  # (rows, bytes), uint8
    scale: Tensor  # (rows, groups), float16 or, where that would be 0, float32
    zero: Tensor | None  # (rows, groups), uint8

    def __init__(self, weight: Tensor, *, levels: int, group: int | None = None, symmetric: bool = True) -> None:
        super().__init__()
        self.shape, self.levels, self.bits = tuple(weight.shape), levels, bits_of(levels)
        self.count = weight[0].numel()
        self.stands_for = {"packed": weight.numel()}
        self.group = group_of(self.count, group)
        grid = (len(weight), self.count // self.group)
        where = weight.device
        packed = torch.zeros(len(weight), -(-self.count * self.bits // 8), dtype=torch.uint8, device=where)
        self.register_buffer("packed", packed)
        self.register_buffer("scale", torch.ones(grid, dtype=torch.float16, device=where))
        self.register_buffer("zero", None if symmetric else torch.zeros(grid, dtype=torch.uint8, device=where))
        if has_values(weight):
            self.fit(weight)

    def rows(self, weight: Tensor) -> Tensor:
        """The weight by groups (rows, groups, group), float32."""
        return weight.detach().float().flatten(1).unflatten(1, (-1, self.group))

    def fit(self, weight: Tensor) -> None:
        """Take the values nearest to this weight."""
        rows = self.rows(weight)
        if self.zero is not None:
            codes, step, zero = fitted_between(rows, self.levels)
            self.zero = zero.squeeze(-1).to(torch.uint8)
        else:
            codes, step = fitted(rows, self.levels)
        self.set(codes, step)

    def set(self, codes: Tensor, step: Tensor) -> None:
        """Codes (rows, groups, group) and steps (rows, groups, 1); what a zero stands for stays."""
        self.packed = pack_codes(codes.flatten(1), self.bits)
        short = step.squeeze(-1).half()
        fits = bool(short.isfinite().all()) and bool((short >= SMALLEST_STEP).all())
        self.scale = short if fits else step.squeeze(-1).float()

    def codes(self) -> Tensor:
        """As floats (rows, groups, group)."""
        flat = torch.ops.featherweight.unpack(self.packed, self.bits)
        found: Tensor = flat[:, : self.count].unflatten(1, (-1, self.group))
        return found

    def middle(self) -> Tensor | float:
        """The code of 0."""
        return (self.levels - 1) / 2 if self.zero is None else torch.ops.featherweight.widen(self.zero)[..., None]

    def step(self) -> Tensor:
        """Steps (rows, groups, 1), float32."""
        scale = self.scale if self.scale.dtype == torch.float32 else torch.ops.featherweight.widen(self.scale)
        return scale[..., None]

    def forward(self) -> Tensor:
        return ((self.codes() - self.middle()) * self.step()).reshape(self.shape)

    def extra_repr(self) -> str:
        return f"{self.shape}, {self.levels} levels, groups of {self.group}"


Store = HalfStore | PackedStore


# Layers ---------------------------------------------------------------------------------------------------------------
class StoredLinear(nn.Module):
    """A linear layer with a store."""

    bias: Tensor | None

    def __init__(self, layer: nn.Linear, store: Store, *, inputs: bool | int = False) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.store = store
        self.bias = _kept(layer.bias)
        self.input = _rounding(inputs)

    @property
    def weight(self) -> Tensor:
        """As floats: hosts look at its type to know what to feed in."""
        return self.store()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.input(x), self.store(), self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}"


class StoredConv2d(nn.Module):
    """A convolution with a store."""

    bias: Tensor | None

    def __init__(self, layer: nn.Conv2d, store: Store, *, inputs: bool | int = False, output: bool = False) -> None:
        super().__init__()
        take_shape(self, layer)
        self.store = store
        self.bias = _kept(layer.bias)
        self.input = _rounding(inputs)
        self.output = Quantizer() if output else nn.Identity()

    @property
    def weight(self) -> Tensor:
        """As floats, see `StoredLinear.weight`."""
        return self.store()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.output(convolve(self, self.input(x), self.store()))
        return result

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, {self.kernel_size}"


def _rounding(inputs: bool | int) -> nn.Module:
    """What rounds a layer's inputs: to 256 values, or to so many."""
    if inputs is False or inputs == 0:
        return nn.Identity()
    return Quantizer(levels=256 if inputs is True else inputs)


def _kept(bias: Tensor | None) -> nn.Parameter | None:
    return None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)


def with_store(layer: nn.Module, store: Store, *, inputs: bool | int = False, output: bool = False) -> nn.Module:
    """The layer that computes the same with this store; OptionError for another than linear and 2d convolution."""
    if isinstance(layer, nn.Linear):
        return StoredLinear(layer, store, inputs=inputs)
    if isinstance(layer, nn.Conv2d):
        return StoredConv2d(layer, store, inputs=inputs, output=output)
    text = f"a {type(layer).__name__} has no form in few bits; linear and 2d convolution layers have"
    raise OptionError("stored", text)


@edit_kind
def packed(
    module: nn.Module,
    levels: int,
    group: int | None = None,
    symmetric: bool = True,
    inputs: bool | int = False,
    output: bool = False,
) -> nn.Module:
    """The layer with the nearest weight of so many levels.

    inputs: round what it gets, to 256 values or to so many; their range comes with the state dict.
    """
    weight = _weight(module)
    if not isinstance(levels, int) or not 2 <= levels <= 256:
        raise OptionError("packed", f"levels: {levels!r} is not a number from 2 to 256")
    if group is not None and (not isinstance(group, int) or group < 8 or group * bits_of(levels) % 8):
        raise OptionError("packed", f"group: {group!r} is not a multiple of 8")
    store = PackedStore(weight, levels=levels, group=group, symmetric=symmetric)
    return with_store(module, store, inputs=inputs, output=output)


HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@edit_kind
def half(module: nn.Module, dtype: str) -> nn.Module:
    """The layer with its weight in 16 bits."""
    if dtype not in HALVES:
        raise OptionError("half", f"dtype: {dtype!r} is not one of {', '.join(HALVES)}")
    return with_store(module, HalfStore(_weight(module), HALVES[dtype]))


def _weight(module: nn.Module) -> Tensor:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        raise OptionError("stored", f"a {type(module).__name__} has no weight to store")
    return weight
