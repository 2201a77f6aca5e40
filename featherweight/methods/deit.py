# SPDX-License-Identifier: Apache-2.0
"""DeiT's distillation token (Touvron 2021, 2012.12877): a token that learns from a teacher, beside the class token.

The token and its head stay in the model: in evaluation the answer is the mean of the two heads' logits. Works on every
described transformer (`anatomy`), by one token put into the host's own list of blocks; a model that was built with a
distillation token keeps it. Not here: teachers (any classifier), the augmentation recipe (data).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy import Anatomy, Around, anatomy_of, embed_dim, prefix_of, wrap_blocks
from ..errors import OptionError
from ..layers import TwoHeads
from ..surgery import Aside, Edit, all_of, apply, edit_kind, find, put, submodule
from ..train import Pass
from .distill import Distance, Distill, check_teacher, hard, share, taught


class DistillationToken(Around):
    """Puts one learned token behind the class token, before the first block.

    It is learned as a difference from the class token (which is the same for every image there, position included), so
    that a trained host starts with two tokens that agree: from anywhere else, a short training begins by unlearning.

    What the host hands its blocks besides is made for one token less (an attention mask of nothing but ones, where
    transformers is traced), so the blocks are run without it.
    """

    adds = 1

    def __init__(self, blocks: nn.ModuleList, anatomy: Anatomy, embed_dim: int, place: int) -> None:
        super().__init__()
        self.blocks = blocks
        self.anatomy = anatomy
        self.place = place
        self.token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, embed_dim), std=0.02))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        token = x[:, :1] + self.token.to(x.dtype)  # (B, 1, C)
        x = torch.cat([x[:, : self.place], token, x[:, self.place :]], dim=1)  # (B, 1 + N, C)
        for block in self.blocks:
            x = self.anatomy.run(block, x, None)
        return x


class NormWithToken(nn.Module):
    """The host's last norm; hands the distillation token (B, C) to the head, as hosts pass only the class token."""

    def __init__(self, norm: nn.Module, letter: Aside, place: int) -> None:
        super().__init__()
        self.norm = norm
        self.letter = letter
        self.place = place

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        self.letter.token = x[:, self.place]
        return x


class HeadWithToken(nn.Module):
    """Class token (B, C) -> logits (B, K) of the host's head and of the distillation head, made one by `TwoHeads`."""

    def __init__(self, head: nn.Module, head_dist: nn.Linear, letter: Aside) -> None:
        super().__init__()
        self.head = head
        self.head_dist = head_dist
        self.two_heads = TwoHeads()
        self.letter = letter

    def forward(self, x: Tensor) -> Tensor:
        return self.two_heads(self.head(x), self.head_dist(self.letter.take("token")))


class PatchHead(nn.Module):
    """A head of every patch; the distillation token, which the host takes for the first patch, is left out."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x[:, 1:])


@edit_kind
def distillation_token(model: nn.Module) -> nn.Module:
    """The host with one more token and a second head that starts as a copy of the first."""
    if all_of(model, TwoHeads):
        raise OptionError("distillation_token", "this model has a distillation token already")
    if all_of(model, Around):
        raise OptionError("distillation_token", "comes before token sparsification: distill first, then sparsify")
    anatomy, place = anatomy_of(model), prefix_of(model)
    if place != 1:
        raise OptionError(
            "distillation_token", f"needs one class token; {type(model).__name__} has {place} prefix tokens"
        )
    head = submodule(model, anatomy.head)
    if not isinstance(head, nn.Linear):
        raise LookupError(
            f"the classifier of {type(model).__name__} is a {type(head).__name__}, not a linear layer to copy"
        )
    head_dist = nn.Linear(head.in_features, head.out_features, bias=head.bias is not None)
    head_dist.load_state_dict(head.state_dict())
    letter = Aside()
    width = embed_dim(model)
    wrap_blocks(model, lambda blocks: DistillationToken(blocks, anatomy, width, place))
    put(model, anatomy.norm, NormWithToken(submodule(model, anatomy.norm), letter, place))
    if anatomy.aux_head:
        put(model, anatomy.aux_head, PatchHead(submodule(model, anatomy.aux_head)))
    return put(model, anatomy.head, HeadWithToken(head, head_dist, letter))


def plan(model: nn.Module) -> list[Edit]:
    """The edit that adds the token, or nothing for a model that has one."""
    return [] if all_of(model, TwoHeads) else [Edit("", "distillation_token")]


@dataclass(frozen=True)
class TokenDistill(Distill):
    """(1 - alpha) * task(class logits) + alpha * distance(distillation logits, teacher); `hard` is the paper's."""

    distance: Distance = hard

    def prepare(self, model: nn.Module) -> nn.Module:
        """A copy with the token. OptionError for a teacher of other classes."""
        check_teacher(model, self.teacher)
        return apply(model, plan(model))

    def loss(self, terms: dict[str, Tensor], run: Pass) -> dict[str, Tensor]:
        dist_logits = find(run.model, TwoHeads).aside.dist_logits
        answer = taught(dist_logits, run, self.teacher)
        return share(terms, run, self.alpha, self.distance(dist_logits, answer, self.temperature))
