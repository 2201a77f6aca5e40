# SPDX-License-Identifier: Apache-2.0
"""What golden files of plain models ask: which of our numbers belongs to which digest. DeiT, LV-ViT, SReT."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fill
import torch
from golden_case import Case
from torch import Tensor, nn

from featherweight import official, official_names


@contextmanager
def watched(model: nn.Module, places: Mapping[str, str]) -> Iterator[dict[str, Tensor]]:
    """While inside, what the modules at these official paths return is kept under the given names."""
    seen: dict[str, Tensor] = {}
    handles = []
    for name, place in places.items():
        try:
            module = model.get_submodule(place)
        except AttributeError:
            continue

        def keep(_module: nn.Module, _args: Any, output: Any, name: str = name) -> None:
            seen[name] = output

        handles.append(module.register_forward_hook(keep))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def stand_in(
    case: Case, model: nn.Module, *, scaled: tuple[str, ...] = (), **rules: Callable[..., Tensor]
) -> nn.Module:
    """A copy with the file's stand-in weights, through a file in the official layout and the reader.

    scaled: entries that are a thousandth. rules: part of a name -> (name, shape) -> values in place of the usual ones.
    """
    keep = case.reference.get("keep", ())
    names = official_names.of(model)
    own = model.state_dict()
    aliases = dict(case.reference.get("aliases", ()))
    state: dict[str, Tensor] = {}
    for key, shape, dtype in case.reference["state_dict"]:
        prefix = next((alias for alias in aliases if key.startswith(f"{alias}.")), None)
        first = key if prefix is None else aliases[prefix] + key.removeprefix(prefix)
        rule = next((make for part, make in rules.items() if part in key), None)
        if first in state:
            state[key] = state[first]
        elif rule is not None:
            state[key] = rule(key, shape)
        elif any(part in key for part in keep):
            mine = own.get(official_names.ours(key, names))  # an index table that timm computes is in no file of ours
            state[key] = torch.zeros(shape, dtype=getattr(torch, dtype)) if mine is None else mine.clone()
        else:
            state[key] = fill.tensor(key, shape, getattr(torch, dtype))
        if key in scaled:
            state[key] = state[key] * 1e-3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "official.pth"
        torch.save({"model": state}, path)
        return official.load(model, path, tell=lambda text: case.wrong.append(f"adapted: {text}"))


def answers(case: Case, model: nn.Module) -> Tensor:
    """What the model says of the file's pictures in evaluation."""
    model.eval()
    if case.compiled:
        torch.compiler.reset()
        model.compile(fullgraph=True)
    return model(image(case))


def image(case: Case) -> Tensor:
    source = case.reference["input"]
    return fill.image(source["image_name"], source["shape"])


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@torch.no_grad()
def vit(case: Case, model: nn.Module) -> None:
    """DeiT and LV-ViT without a method."""
    places = {
        "patch_embed": "patch_embed", "after_block0": "blocks.0", "tokens_after_norm": "norm",
        "head_cls": "head", "head_dist": "head_dist", "head_aux": "aux_head",
    }  # fmt: skip
    loaded = stand_in(case, model).eval()
    case.equal("params", parameters(loaded))
    with watched(loaded, places) as seen:
        logits = answers(case, loaded)
    tokens = seen["tokens_after_norm"]
    case.inside(
        "outputs",
        {**seen, "logits": logits, "eval_average": logits, "features_cls": tokens[:, 0], "features_dist": tokens[:, 1]},
    )
    if probe := case.reference.get("eps_probe"):
        scaled = stand_in(case, model, scaled=tuple(probe["scaled_by_1e-3"])).eval()
        case.compare("eps_probe.logits", answers(case, scaled))
    if mixed := case.reference.get("train_mix_token"):
        for mode in ("bn_batch", "bn_frozen"):
            training = in_training(stand_in(case, model), norms=mode == "bn_batch")
            logits = training(image(case), box=mixed["bbox_h0_w0_h1_w1"])
            case.inside(f"train_mix_token.{mode}", {"head_cls": logits, "head_aux": training.aside.aux_logits})


def in_training(model: nn.Module, *, norms: bool) -> nn.Module:
    """The model in training without stochastic depth, its batch norms on the batch's statistics or on their own."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train(norms)
        elif type(module).__name__ == "DropPath":  # ours, and timm's: its Swin has 0.1 unless told otherwise
            module.eval()
    return model


@torch.no_grad()
def sret(case: Case, model: nn.Module) -> None:
    """SReT, with the permutations that the file names."""
    name = case.reference["name"]
    sizes = [len(permutation.order) for permutation in model.permutations()]
    named = [fill.normal(f"{name}:perm{k}", (n,)).argsort(stable=True) for k, n in enumerate(sizes)]
    orders = {"identity_permutation": [torch.arange(n) for n in sizes], "fixed_permutation": named}
    loaded = stand_in(case, model).eval()
    case.equal("params", parameters(loaded))
    outputs = case.reference["outputs"]
    for place in [key for key in orders if key in outputs] or [""]:
        loaded.set_permutations(orders.get(place, orders["identity_permutation"]))
        case.inside(f"outputs.{place}".rstrip("."), _sret_parts(case, loaded))

    def coefficient(key: str, shape: list[int]) -> Tensor:
        return 1 + 0.1 * fill.normal(key, shape)

    for place, rules in (("outputs_lrc", {"coefficient": coefficient}), ("eps_probe", {})):
        if place in case.reference:
            scaled = tuple(case.reference[place].get("scaled_by_1e-3", ()))
            other = stand_in(case, model, scaled=scaled, **rules).eval()
            other.set_permutations(orders["identity_permutation"])
            case.inside(place, _sret_parts(case, other))


def _sret_parts(case: Case, model: nn.Module) -> dict[str, Tensor]:
    stages = range(len(model.transformers))
    places = {"stem": "patch_embed", "features": "norm"}
    places |= {f"stage{k}_out": f"transformers.{k}" for k in stages} | {f"pool{k}": f"pools.{k}" for k in stages}
    inputs: dict[str, Tensor] = {}
    handles = []
    for k in stages:

        def keep(_module: nn.Module, args: tuple[Tensor], k: int = k) -> None:
            inputs[f"stage{k}_in"] = args[0]

        handles.append(model.transformers[k].register_forward_pre_hook(keep))
    with watched(model, places) as seen:
        logits = answers(case, model)
    for handle in handles:
        handle.remove()
    return {**seen, **inputs, "logits": logits}
