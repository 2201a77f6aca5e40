# SPDX-License-Identifier: Apache-2.0
"""CReLU: filters that come in pairs of opposite phase are computed once (Shang 2016, 1603.05201).

A convolution keeps some of its filters; each of the others becomes the output of a kept one, times a learned number,
plus a learned one. With half of the filters kept and -1 for the number this is the paper's layer, the net's own
non-linearity following: half the weights and multiply-adds of the convolution. In a trained net the pairs are those
whose filters point in opposite directions. What comes after the layer sees as many channels as before. Left as they
are: grouped, depthwise and transposed convolutions, and linear layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..convs import shell
from ..errors import OptionError
from ..surgery import Edit, apply, edit_kind, has_values
from .chains import ungrouped
from .plain import plain_layers

Phase = Literal["opposite", "either"]
START = -1.0  # what a filter's output is multiplied by to be its partner's, until it is known better


class PairedConv2d(nn.Module):
    """(B, C, H, W) -> (B, C', H', W') from fewer than C' filters; the other channels are mirrored from theirs."""

    def __init__(self, conv: nn.Conv2d, keep: Sequence[int], partner: Sequence[int]) -> None:
        super().__init__()
        self.in_channels, self.out_channels = conv.in_channels, len(keep) + len(partner)
        self.kernel_size, self.stride, self.padding = conv.kernel_size, conv.stride, conv.padding
        self.conv = conv
        place: dict[str, Any] = {"device": conv.weight.device, "dtype": conv.weight.dtype}
        self.scale = nn.Parameter(torch.full((len(partner), 1, 1), START, **place))
        self.shift = nn.Parameter(torch.zeros(len(partner), 1, 1, **place))
        mirrored = sorted(set(range(self.out_channels)) - set(keep))
        order = torch.tensor([*keep, *mirrored], device="cpu").argsort()
        self.register_buffer("partner", torch.tensor(partner, device="cpu").to(place["device"]), persistent=False)
        self.register_buffer("order", order.to(place["device"]), persistent=False)

    @property
    def weight(self) -> Tensor:
        """The kept filters': hosts look at its type and place."""
        return self.conv.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        mirrored = y[:, self.partner] * self.scale + self.shift  # type: ignore[index]
        return torch.cat([y, mirrored], dim=1)[:, self.order]  # type: ignore[index]

    def extra_repr(self) -> str:
        return f"{len(self.scale)} of {self.out_channels} channels mirrored"


@edit_kind
def pair_filters(layer: nn.Module, keep: Sequence[int], partner: Sequence[int]) -> nn.Module:
    """The convolution with these filters; each other channel, in order, mirrors the kept filter at that place."""
    conv = ungrouped("crelu", layer)
    _check_pairs(keep, partner, conv.out_channels)
    new = shell(conv)
    index = torch.tensor(keep, device=conv.weight.device)
    trains = conv.weight.requires_grad
    new.weight = nn.Parameter(conv.weight.detach()[index].contiguous(), trains)
    if conv.bias is not None:
        new.bias = nn.Parameter(conv.bias.detach()[index].contiguous(), trains)
    new.out_channels = len(keep)
    paired = PairedConv2d(new, keep, partner)
    if has_values(conv.weight):
        _fit(paired, conv, keep, partner)
    paired.scale.requires_grad_(trains)
    paired.shift.requires_grad_(trains)
    return paired


def plan(
    model: nn.Module,
    *,
    similarity: float = 0.9,
    phase: Phase = "opposite",
    first: float = 1.0,
    fresh: bool = False,
    skip: Sequence[str] = (),
) -> list[Edit]:
    """The edits that merge paired filters of convolutions; nothing is touched.

    similarity: least cosine, its sign aside, between two filters that become one; phase "either" pairs those that point
    the same way too. fresh: for training from the start, every convolution keeps its first half, whatever the filters
    are. first: only this share of the convolutions, from the input on; 0 changes nothing. skip: see `plain_layers`.
    Raises OptionError, and LookupError for a model without a convolution for this.
    """
    _check(similarity, phase, first)
    layers = {
        path: layer
        for path, layer in plain_layers(model, skip=skip).items()
        if isinstance(layer, nn.Conv2d) and layer.groups == 1
    }
    if not layers:
        raise LookupError(f"{type(model).__name__} has no plain convolution without groups left to pair filters in")
    edits = []
    for path, layer in list(layers.items())[: round(first * len(layers))]:
        keep, partner = _halves(layer.out_channels) if fresh else _pairs(layer, similarity, phase)
        if partner:
            edits.append(Edit(path, "pair_filters", {"keep": keep, "partner": partner}))
    return edits


def pair(model: nn.Module, **options: Any) -> nn.Module:
    """A copy with paired filters computed once; the options are those of `plan`."""
    return apply(model, plan(model, **options))


def phases(model: nn.Module) -> dict[str, float]:
    """Path of each convolution -> the mean over its filters of the lowest cosine with any other: how paired they are.

    Near -1 every filter has its opposite; random filters in many dimensions are near 0 (the paper's μ).
    """
    found = {}
    for path, layer in plain_layers(model).items():
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.out_channels > 1:
            found[path] = float(_cosines(layer).fill_diagonal_(1.0).amin(1).mean())
    return found


def _cosines(layer: nn.Module) -> Tensor:
    """(C', C') of the filters, in double precision; 0 with a filter that is all zero."""
    rows = layer.weight.detach().double().cpu().flatten(1)  # type: ignore[operator, union-attr]
    rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-30)
    return rows @ rows.T


def _pairs(layer: nn.Module, similarity: float, phase: Phase) -> tuple[list[int], list[int]]:
    """The filters that stay, and for each other one the place of its partner among them; most similar first."""
    cosines = _cosines(layer)
    likeness = (-cosines if phase == "opposite" else cosines.abs()).triu(1)
    partners: dict[int, int] = {}
    kept: set[int] = set()
    order = likeness.flatten().argsort(descending=True)
    for flat in order[: int((likeness >= similarity).sum())].tolist():
        one, other = divmod(flat, len(cosines))
        if one in partners:
            one, other = other, one
        if one in partners or other in partners or other in kept:
            continue
        kept.add(one)
        partners[other] = one
    keep = [i for i in range(len(cosines)) if i not in partners]
    place = {filter_: position for position, filter_ in enumerate(keep)}
    return keep, [place[partners[i]] for i in sorted(partners)]


def _halves(channels: int) -> tuple[list[int], list[int]]:
    keep = -(-channels // 2)
    return list(range(keep)), list(range(channels - keep))


@torch.no_grad()
def _fit(paired: PairedConv2d, conv: nn.Conv2d, keep: Sequence[int], partner: Sequence[int]) -> None:
    """Numbers with which a mirrored channel is nearest to what its own filter gave; -1 for filters that are no pair."""
    weight = conv.weight.detach().double().flatten(1)
    kept = weight[list(keep)][list(partner)]
    own = weight[sorted(set(range(conv.out_channels)) - set(keep))]
    size = kept.square().sum(1)
    scale = (own * kept).sum(1) / size.clamp(min=1e-30)
    related = scale.abs() * size.sqrt() > 0.5 * own.norm(dim=1)  # a cosine above one half
    scale = torch.where(related, scale, START)
    paired.scale.copy_(scale.reshape(-1, 1, 1))
    if conv.bias is not None:
        bias = conv.bias.detach().double()
        others = bias[sorted(set(range(conv.out_channels)) - set(keep))]
        paired.shift.copy_((others - scale * bias[list(keep)][list(partner)]).reshape(-1, 1, 1))


def _check(similarity: float, phase: str, first: float) -> None:
    if not isinstance(similarity, (int, float)) or not 0 < similarity <= 1:
        raise OptionError("similarity", f"{similarity!r} is not in (0, 1]; it is a cosine without its sign")
    if phase not in get_args(Phase):
        raise OptionError("phase", f"{phase!r} is not one of {', '.join(get_args(Phase))}")
    if isinstance(first, bool) or not isinstance(first, (int, float)) or not 0 <= first <= 1:
        raise OptionError("first", f"{first!r} is not in [0, 1]; it is a share of the convolutions")


def _check_pairs(keep: Sequence[int], partner: Sequence[int], channels: int) -> None:
    """The lists may come from a file."""
    for name, some in (("keep", keep), ("partner", partner)):
        if not isinstance(some, (list, tuple)) or not all(type(i) is int for i in some):
            raise OptionError("crelu", f"{name} must be a list of whole numbers")
    rising = sorted(set(keep)) == list(keep) and len(keep) > 0 and keep[0] >= 0 and keep[-1] < channels
    if not rising or len(keep) + len(partner) != channels or not all(0 <= i < len(keep) for i in partner):
        text = f"keep must rise within 0 to {channels - 1}, and partner name a kept filter for each other one"
        raise OptionError("crelu", text)
