# SPDX-License-Identifier: Apache-2.0
"""Where the blocks, the MLP, the heads and the norm are in a transformer: data, not code.

A family is described once; every method is written once against the description, so there is family + method, not
family x method. A transformer of your own needs one record: `describe(MyNet, Anatomy(...))`.

Nothing of timm or transformers is imported here: a family is recognised by where its class is defined.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import OptionError
from .recurrence import Looped
from .surgery import all_of, put, submodule

Run = Callable[[nn.Module, Tensor, Tensor | None], Tensor]
Attend = Callable[[Any, Tensor, Tensor, Tensor | None], Tensor]  # a block's parts are its family's own


@dataclass(frozen=True)
class Halves:
    """A block in two, for what has to happen between attention and MLP. Each half has its residual branch whole."""

    attend: Attend  # (block, tokens, the same after `norm`, mask as in run) -> tokens
    mlp: Callable[[Any, Tensor], Tensor]
    norm: str = "norm1"  # path from a block
    key_norm: str = ""  # path of a norm of each head's keys, where there is one


@dataclass(frozen=True)
class Anatomy:
    """One family of transformers. Paths under `blocks` are from the model, the other block paths from a block."""

    blocks: str  # the list of blocks
    norm: str  # the last norm, over all tokens
    head: str  # the classifier
    run: Run  # (block, tokens (B, N, C), additive mask broadcast to (B, h, N, N) or None) -> tokens
    prefix: int | Callable[[nn.Module], int] = 1  # tokens before the patches
    mlp: tuple[str, str] = ("mlp.fc1", "mlp.fc2")
    attention: str = "attn"
    qkv: tuple[str, ...] = ("attn.qkv",)  # one fused layer (q | k | v, each by head), or three
    projection: str = "attn.proj"
    num_heads: str = "num_heads"  # the attention's attribute
    widths: tuple[str, ...] = field(default=())  # further attributes that hold heads x head width
    head_dim: str = ""  # the attribute that holds the width of a head, where there is one
    scale: str = ""  # the attribute that scores are multiplied by, where there is one
    halves: Halves | None = None
    aux_head: str = ""  # a second classifier, of every token behind the prefix
    patches: Callable[[nn.Module], int] | None = None  # tokens behind the prefix, where the model can tell


def _call(block: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    return block(x, mask) if mask is not None else block(x)


def _prefix(model: nn.Module) -> int:
    return int(model.num_prefix_tokens)  # type: ignore[arg-type]


OURS = Anatomy(
    blocks="blocks",
    norm="norm",
    head="head",
    run=_call,
    prefix=_prefix,
    head_dim="head_dim",
    patches=lambda model: math.prod(model.config.grid),  # type: ignore[arg-type, union-attr]
    halves=Halves(
        attend=lambda block, x, y, mask: x + block.drop_path(block.attn(y, mask)),
        mlp=lambda block, x: x + block.drop_path(block.mlp(block.norm2(x))),
    ),
)
LVVIT = replace(
    OURS,
    aux_head="aux_head",
    halves=Halves(
        attend=lambda block, x, y, mask: x + block.drop_path(block.attn(y, mask)) / block.skip_lam,
        mlp=lambda block, x: x + block.drop_path(block.mlp(block.norm2(x))) / block.skip_lam,
    ),
)
TIMM = Anatomy(
    blocks="blocks",
    norm="norm",
    head="head",
    run=lambda block, x, mask: block(x, attn_mask=mask),
    prefix=_prefix,
    patches=lambda model: int(model.patch_embed.num_patches),  # type: ignore[arg-type, union-attr]
    widths=("attn_dim",),
    head_dim="head_dim",
    scale="scale",
    halves=Halves(
        attend=lambda block, x, y, mask: x + block.drop_path1(block.ls1(block.attn(y, attn_mask=mask))),
        mlp=lambda block, x: x + block.drop_path2(block.ls2(block.mlp(block.norm2(x)))),
        key_norm="attn.k_norm",
    ),
)
HF_VIT = Anatomy(
    blocks="vit.layers",
    norm="vit.layernorm",
    head="classifier",
    run=lambda block, x, mask: block(x, attention_mask=mask),
    mlp=("mlp.fc1", "mlp.fc2"),
    attention="attention",
    qkv=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    projection="attention.o_proj",
    num_heads="num_attention_heads",
    head_dim="head_dim",
    scale="scaling",
    patches=lambda model: int(submodule(model, "vit.embeddings.patch_embeddings").num_patches),  # type: ignore[arg-type]
    halves=Halves(
        attend=lambda block, x, y, mask: x + block.dropout(block.attention(y, mask)[0]),
        mlp=lambda block, x: x + block.dropout(block.mlp(block.layernorm_after(x))),
        norm="layernorm_before",
    ),
)


def _no_patches(model: nn.Module) -> int:
    raise LookupError(f"{type(model).__name__} reads text: its tokens are no patches of a picture")


# Text models: for methods that look into blocks or narrow them, not for those that add or drop tokens.
HF_BERT = Anatomy(
    blocks="bert.encoder.layer",
    norm="",  # each block ends with one
    head="classifier",
    run=lambda block, x, mask: block(x, attention_mask=mask),
    prefix=_no_patches,
    mlp=("intermediate.dense", "output.dense"),
    attention="attention.self",
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    projection="attention.output.dense",
    num_heads="num_attention_heads",
    widths=("all_head_size",),
)
HF_DISTILBERT = replace(
    HF_BERT,
    blocks="distilbert.transformer.layer",
    mlp=("ffn.lin1", "ffn.lin2"),
    attention="attention",
    qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    projection="attention.out_lin",
    num_heads="n_heads",
    widths=("dim",),
)
HF_ROBERTA = replace(HF_BERT, blocks="roberta.encoder.layer")
HF_ELECTRA = replace(HF_BERT, blocks="electra.encoder.layer")

_BY_CLASS: dict[type[nn.Module], Anatomy] = {}
_BY_PLACE = {  # module and class name -> record
    ("featherweight.models.vit", "VisionTransformer"): OURS,
    ("featherweight.models.lvvit", "LVViT"): LVVIT,
    ("timm.models.vision_transformer", "VisionTransformer"): TIMM,
    ("timm.models.deit", "VisionTransformerDistilled"): TIMM,
    ("transformers.models.vit.modeling_vit", "ViTForImageClassification"): HF_VIT,
    ("transformers.models.bert.modeling_bert", "BertForSequenceClassification"): HF_BERT,
    ("transformers.models.distilbert.modeling_distilbert", "DistilBertForSequenceClassification"): HF_DISTILBERT,
    ("transformers.models.roberta.modeling_roberta", "RobertaForSequenceClassification"): HF_ROBERTA,
    ("transformers.models.xlm_roberta.modeling_xlm_roberta", "XLMRobertaForSequenceClassification"): HF_ROBERTA,
    ("transformers.models.electra.modeling_electra", "ElectraForSequenceClassification"): HF_ELECTRA,
}
_BY_PLACE |= {  # the same bodies with a head for questions
    (place, name.replace("SequenceClassification", "QuestionAnswering")): replace(record, head="qa_outputs")
    for (place, name), record in _BY_PLACE.items()
    if name.endswith("ForSequenceClassification")
}


def describe(cls: type[nn.Module], anatomy: Anatomy) -> None:
    """From now on models of this class (and of classes made from it) have this anatomy."""
    _BY_CLASS[cls] = anatomy


def anatomy_of(model: nn.Module) -> Anatomy:
    """The model's record. Raises TypeError for a family nobody described."""
    for cls in type(model).__mro__:
        found = _BY_CLASS.get(cls) or _BY_PLACE.get((cls.__module__, cls.__name__))
        if found is not None:
            return found
    known = sorted({f"{place}.{name}" for place, name in _BY_PLACE} | {c.__name__ for c in _BY_CLASS})
    raise TypeError(
        f"no anatomy for {type(model).__name__}; describe it: featherweight.anatomy.describe({type(model).__name__}, "
        f"Anatomy(...)). Known: {', '.join(known)}"
    )


def prefix_of(model: nn.Module) -> int:
    """How many tokens stand before the patches when the blocks run."""
    prefix = anatomy_of(model).prefix
    return (prefix(model) if callable(prefix) else prefix) + sum(around.adds for around in _innermost(model)[1])


class Around(nn.Module):
    """A module that stands in the host's list of blocks and runs the blocks that it took from there.

    Hosts call each member of their list with the tokens first and take the tokens back.
    """

    blocks: nn.ModuleList
    adds = 0  # tokens that it puts before the patches
    counts = False  # it treats block 3 unlike block 2, so that nothing may come between it and the host's own blocks

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        raise TypeError(f"{type(self).__name__} has no forward")


class EveryToken(nn.Module):
    """Stands around one block and knows how many tokens there are, so that none may go before it: grouping."""

    block: nn.Module


def wrap_blocks(model: nn.Module, make: Callable[[nn.ModuleList], Around]) -> nn.Module:
    """Put one module in place of the host's own blocks, in this very model; what stands around them stays."""
    return replace_blocks(model, lambda blocks: [_fitting(make(nn.ModuleList(blocks)))])


def replace_blocks(model: nn.Module, make: Callable[[list[nn.Module]], list[nn.Module]]) -> nn.Module:
    """Put other modules in place of the host's own blocks, in this very model; what stands around them stays."""
    path, outside = _innermost(model)
    for other in outside:
        if other.counts:
            text = f"treats each block by its number, so it comes last; {type(model).__name__} has it already"
            raise OptionError(type(other).__name__, text)
    old = submodule(model, path)
    new = make(list(old.children()))
    return put(model, path, nn.Sequential(*new) if isinstance(old, nn.Sequential) else nn.ModuleList(new))


def _fitting(around: Around) -> Around:
    if around.counts and all_of(around, EveryToken):
        text = "changes the number of tokens, which attention in groups cannot follow; use one of the two"
        raise OptionError(type(around).__name__, text)
    return around


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """Path -> the host's own blocks, in order, whatever stands around them; one that runs several times is one."""
    path, _ = _innermost(model)
    found = {}
    for name, block in submodule(model, path).named_children():
        place = f"{path}.{name}"
        while isinstance(block, (Looped, EveryToken)):
            place, block = f"{place}.block", block.block
        found[place] = block
    return found


def _innermost(model: nn.Module) -> tuple[str, tuple[Around, ...]]:
    """Path of the list that holds the host's own blocks, and what stands around it, outermost first."""
    path, around = anatomy_of(model).blocks, []
    while isinstance(first := next(submodule(model, path).children()), Around):
        around.append(first)
        path = f"{path}.0.blocks"
    return path, tuple(around)


def embed_dim(model: nn.Module) -> int:
    """Width C of the tokens, read from the first MLP."""
    block = next(iter(blocks_of(model).values()))
    return int(submodule(block, anatomy_of(model).mlp[0]).in_features)  # type: ignore[arg-type]


def mean_key(block: nn.Module, anatomy: Anatomy, y: Tensor) -> Tensor:
    """Normed tokens (B, N, C) -> the mean of each one's keys over the heads (B, N, d), without a gradient.

    Of a plain layer the mean of the heads' weights is taken first, which is the same and a small product. Raises
    LookupError for a family whose record has no halves.
    """
    if anatomy.halves is None:
        raise LookupError("the family's record has no halves: Anatomy(..., halves=Halves(attend, mlp))")
    heads = int(getattr(submodule(block, anatomy.attention), anatomy.num_heads))
    layer = submodule(block, anatomy.qkv[len(anatomy.qkv) // 3])  # the one, or the second of three
    norm = submodule(block, anatomy.halves.key_norm) if anatomy.halves.key_norm else nn.Identity()
    parts = 1 if len(anatomy.qkv) == 3 else 3
    with torch.no_grad():
        if type(layer) is nn.Linear and isinstance(norm, nn.Identity):
            weight = _of_keys(layer.weight, parts, heads).mean(0)  # (d, C)
            bias = None if layer.bias is None else _of_keys(layer.bias, parts, heads).mean(0)
            return F.linear(y, weight, bias)
        keys = layer(y).unflatten(-1, (parts, heads, -1))[..., parts // 2, :, :]  # (B, N, h, d)
        return norm(keys).mean(-2)


def _of_keys(weight: Tensor, parts: int, heads: int) -> Tensor:
    """Rows of q | k | v -> those of k, by head (h, d, ...)."""
    return weight.unflatten(0, (parts, heads, -1))[parts // 2]
