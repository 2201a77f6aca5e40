# SPDX-License-Identifier: Apache-2.0
"""The laws that hold for every method on every family.

The input is untouched; a neutral setting is the identity; saving and loading is exact; `finish` leaves no scaffold; a
model in training can be copied; an exported file agrees; methods compose, and a wrong order says the right one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fill
import laws_of_bits
import pytest
import torch
from families import FAMILIES, IMAGES, PLAIN, SIZE, SRET, Family, Images, everything, same
from torch import nn

from featherweight import artifact
from featherweight.anatomy import anatomy_of, blocks_of
from featherweight.errors import OptionError
from featherweight.methods import (
    crelu,
    deit,
    dynamicvit,
    equivariant,
    fuse,
    grouping,
    lowrank,
    mixed_depth,
    prune,
    quantize,
    recursion,
    repair,
    share,
    structured,
    tome,
    write_out,
)
from featherweight.methods.attention_transfer import AttentionTransfer
from featherweight.methods.channels import prune_channels
from featherweight.methods.deit import TokenDistill
from featherweight.methods.dist import DIST
from featherweight.methods.distill import Distill
from featherweight.methods.dkd import DKD
from featherweight.methods.drop_blocks import drop_blocks
from featherweight.methods.dynamicvit import DynamicViT
from featherweight.methods.fitnets import FitNets
from featherweight.methods.gradual import GradualPruning
from featherweight.methods.masks import KeepMasks
from featherweight.methods.mean_teacher import MeanTeacher
from featherweight.methods.minilm import MiniLM
from featherweight.methods.mixed_depth import MixedDepth
from featherweight.methods.mutual import Mutual
from featherweight.methods.one import ONE
from featherweight.methods.overparameterize import Overparameterize
from featherweight.methods.rkd import RKD
from featherweight.methods.similarity import SimilarityPreserving
from featherweight.methods.slimming import Slimming
from featherweight.methods.sparsify import sparsify
from featherweight.methods.swa import SWA
from featherweight.methods.tinybert import TinyBERT
from featherweight.methods.token_labelling import TokenLabelling
from featherweight.methods.widths import narrow_heads_and_tokens
from featherweight.surgery import Edit, Tap, all_of, apply, edits_of
from featherweight.train import Method, fit

Change = Callable[[nn.Module, Family], nn.Module]


def batches() -> list[dict[str, torch.Tensor]]:
    return list(Images().epoch(0))


def with_token(model: nn.Module, family: Family) -> nn.Module:
    new = apply(model, deit.plan(model))
    with torch.no_grad():  # new weights are small; these are seen in the answer
        for name, parameter in new.named_parameters():
            if name not in dict(model.named_parameters()) and parameter.shape == (1, 1, parameter.shape[-1]):
                parameter.copy_(fill.tensor("token", parameter.shape))
    return new


def with_fewer_tokens(model: nn.Module, family: Family) -> nn.Module:
    return apply(model, dynamicvit.plan(model, keep=0.7))


def middle(model: nn.Module) -> str:
    """The path of a block or layer in the middle."""
    return list(blocks_of(model))[1] if not hasattr(model, "features") else "features.3"


def last_part(model: nn.Module) -> list[str]:
    """Paths from the last block to the classifier."""
    if hasattr(model, "features"):
        return ["features.3", "classifier"]
    anatomy = anatomy_of(model)
    return [list(blocks_of(model))[-1], anatomy.norm, anatomy.head]


CHANGES: dict[str, Change] = {
    "deit": with_token,
    "dynamicvit": with_fewer_tokens,
    "tome": lambda model, family: apply(model, tome.plan(model, r=[3, 0, 2])),
    "prune": lambda model, family: prune.prune(model, mlp=0.5, heads=0.25),
    "prune by taylor": lambda model, family: prune.prune(
        model, mlp=0.25, heads=0.5, importance="taylor", uniform=False, batches=Images(), task=family.task
    ),
    "quantize": lambda model, family: quantize.quantize(model, batches(), family.task),
    "recursion": lambda model, family: recursion.share(model, loops=3, nll_ratio=0.5, coefficients=True),
    "grouping": lambda model, family: grouping.group(model, groups=4),
}
NEUTRAL: dict[str, Change] = {
    "sparsify": lambda model, family: sparsify(model, sparsity=0.0),
    "prune channels": lambda model, family: prune_channels(model, IMAGES, ratio=0.0),
    "narrow heads and tokens": lambda model, family: narrow_heads_and_tokens(model, IMAGES),
    "drop blocks": lambda model, family: drop_blocks(model, count=0, batches=batches(), task=family.task),
    "dynamicvit": lambda model, family: apply(model, dynamicvit.plan(model, keep=1.0)),
    "tome": lambda model, family: apply(model, tome.plan(model, r=0)),
    "prune": lambda model, family: prune.prune(model, mlp=0.0, heads=0.0),
    "quantize": lambda model, family: quantize.quantize(model, batches(), family.task, bits=32),
    "recursion": lambda model, family: recursion.share(model, loops=1),
    "grouping": lambda model, family: grouping.group(model, groups=1),
    "low rank": lambda model, family: lowrank.factorize(model, keep=1.0),
    "structured": lambda model, family: structured.structure(model, keep=1.0),
    "crelu": lambda model, family: crelu.pair(model, fresh=True, first=0.0),
    "write out": lambda model, family: write_out.written_out(model),
    "equivariant": lambda model, family: equivariant.equivariant(model, group="none"),
    "share": lambda model, family: share.share(model, bits=32),
    "repair": lambda model, family: repair.repair(model, family.make(), batches(), family.task),
    "mixed depth": lambda model, family: mixed_depth.cut(recursion.share(model, loops=1, unique=3, nll_ratio=1.0)),
}
CHANGES["sparsify"] = lambda model, family: sparsify(model, sparsity=0.5, scope="lamp")
EVERYWHERE = tuple(CHANGES)
CHANGES["sparsify 2:4"] = lambda model, family: sparsify(model, pattern="2:4")
CHANGES["prune channels"] = lambda model, family: prune_channels(model, IMAGES, ratio=0.5, round_to=4)
CHANGES["narrow heads and tokens"] = lambda model, family: narrow_heads_and_tokens(
    model, IMAGES, head_width=0.5, embed=0.5, round_to=4
)
CHANGES["drop blocks"] = lambda model, family: drop_blocks(model, count=1, batches=batches(), task=family.task)
CHANGES["cut to fewer passes"] = lambda model, family: mixed_depth.cut(model, loops=2)
CHANGES["dynamicvit by threshold"] = lambda model, family: apply(model, dynamicvit.plan(model, threshold=0.45))
CHANGES["dynamicvit by attention"] = lambda model, family: apply(model, dynamicvit.plan(model, score="attention"))
CHANGES["fuse"] = lambda model, family: fuse.fuse(model, IMAGES)
CHANGES["fuse, quantize"] = lambda model, family: quantize.quantize(fuse.fuse(model, IMAGES), batches(), family.task)
CHANGES["branches"] = lambda model, family: apply(
    model, [Edit("", "branches", {"at": last_part(model), "count": 2, "features": 32 if family.transformer else 8})]
)
CHANGES["low rank"] = lambda model, family: lowrank.factorize(model, ranks="share", keep=0.3)
CHANGES["low rank, on data"] = lambda model, family: lowrank.factorize(model, batches=batches(), task=family.task)
CHANGES["cp"] = lambda model, family: lowrank.factorize(model, ranks="share", keep=0.5, conv="cp")
CHANGES["monarch"] = lambda model, family: structured.structure(model, keep=0.5)
CHANGES["kronecker"] = lambda model, family: structured.structure(model, matrix="kronecker", keep=0.5)
CHANGES["circulant"] = lambda model, family: structured.structure(model, matrix="circulant", convolutions=True)
CHANGES["toeplitz"] = lambda model, family: structured.structure(model, matrix="toeplitz", keep=0.5)
CHANGES["butterfly"] = lambda model, family: structured.structure(model, matrix="butterfly", keep=0.9)
CHANGES["acdc"] = lambda model, family: structured.structure(model, matrix="acdc", depth=2)
CHANGES["crelu"] = lambda model, family: crelu.pair(model, fresh=True)
CHANGES["p4"] = lambda model, family: equivariant.equivariant(model)
CHANGES["p4, written out, quantize"] = lambda model, family: quantize.quantize(
    write_out.written_out(equivariant.equivariant(model)), batches(), family.task
)
CHANGES["share"] = lambda model, family: share.share(model, bits=4, scaled=True)
CHANGES["sparsify, share"] = lambda model, family: share.share(sparsify(model, sparsity=0.5), bits=3, scaled=False)
OTHERS = [("share", name) for name in ("ours", "lvvit", "timm", "transformers", "sret")]
OTHERS += [("sparsify, share", "timm"), ("sparsify, share", "plain")]
OTHERS += [("branches", "plain"), ("branches", "timm"), ("quantize", "plain"), ("cut to fewer passes", "sret")]
OTHERS += [("fuse", "plain"), ("fuse", "lvvit"), ("fuse", "sret"), ("fuse, quantize", "plain")]
OTHERS += [
    ("dynamicvit by threshold", "ours"),
    ("dynamicvit by threshold", "lvvit"),
    ("dynamicvit by attention", "timm"),
]
OTHERS += [("low rank", name) for name in ("ours", "timm", "transformers", "plain")]
OTHERS += [("low rank, on data", "transformers"), ("cp", "sret"), ("monarch", "ours")]
OTHERS += [("kronecker", "timm"), ("circulant", "plain"), ("toeplitz", "lvvit")]
OTHERS += [("butterfly", "transformers"), ("acdc", "ours"), ("crelu", "plain"), ("crelu", "sret"), ("p4", "plain")]
OTHERS += [("p4, written out, quantize", "plain")]
CHANGES.update(laws_of_bits.CHANGES)
NEUTRAL.update(laws_of_bits.NEUTRAL)
OTHERS += laws_of_bits.CASES
OTHERS += [("sparsify", "plain"), ("sparsify 2:4", "ours"), ("prune channels", "plain")]
OTHERS += [("prune channels", "ours"), ("prune channels", "transformers"), ("drop blocks", "ours")]
OTHERS += [("narrow heads and tokens", "timm"), ("drop blocks", "transformers")]
CASES = [(change, name) for change in EVERYWHERE for name in FAMILIES] + OTHERS
ALL = {**FAMILIES, "plain": PLAIN, "sret": SRET}


@dataclass(frozen=True)
class Training:
    """A method in training: made with a teacher, on every family, on some, or also on any module."""

    make: Callable[[nn.Module], Method]
    anything: bool = False
    families: tuple[str, ...] = tuple(FAMILIES)


METHODS = {
    "distill": Training(lambda teacher: Distill(teacher, alpha=0.5, temperature=2.0), anything=True),
    "deit": Training(lambda teacher: TokenDistill(teacher)),
    "dynamicvit": Training(lambda teacher: DynamicViT(teacher)),
    "dynamicvit alone": Training(lambda teacher: DynamicViT()),
    "dynamicvit gathered": Training(lambda teacher: DynamicViT(teacher, train="gather"), families=("ours", "lvvit")),
    "token labelling": Training(lambda teacher: TokenLabelling(), families=("lvvit",)),
    "mixed depth": Training(lambda teacher: MixedDepth(), families=("sret",)),
    "mixed depth, taught": Training(lambda teacher: MixedDepth(teach=1.0), families=("sret",)),
    "dkd": Training(lambda teacher: DKD(teacher), families=("transformers",), anything=True),
    "dist": Training(lambda teacher: DIST(teacher), families=("ours",)),
    "attention transfer": Training(
        lambda teacher: AttentionTransfer(teacher, {middle(teacher): middle(teacher)}), families=("timm", "plain")
    ),
    "similarity": Training(
        lambda teacher: SimilarityPreserving(teacher, {middle(teacher): middle(teacher)}), families=("lvvit",)
    ),
    "rkd": Training(lambda teacher: RKD(teacher, {middle(teacher): middle(teacher)}), families=("transformers",)),
    "fitnets": Training(
        lambda teacher: FitNets(teacher, middle(teacher), middle(teacher), (3, SIZE, SIZE)), families=("ours", "plain")
    ),
    "tinybert": Training(lambda teacher: TinyBERT(teacher)),
    "minilm": Training(lambda teacher: MiniLM(teacher)),
    "one": Training(
        lambda teacher: ONE(tuple(last_part(teacher)), 2, features=8 if hasattr(teacher, "features") else 32),
        families=(*FAMILIES, "plain"),
    ),
    "one, ensemble": Training(
        lambda teacher: ONE(tuple(last_part(teacher)), 2, deploy="ensemble", features=32), families=("ours",)
    ),
    "mutual": Training(lambda teacher: Mutual((teacher,)), families=("transformers",), anything=True),
    "mean teacher": Training(lambda teacher: MeanTeacher(), families=("lvvit",), anything=True),
    "overparameterize": Training(
        lambda teacher: Overparameterize("dbb", gamma=1.0), families=("lvvit", "plain", "sret")
    ),
    "swa": Training(lambda teacher: SWA(0.0, 0.0, batches(), PLAIN.task), families=("ours", "plain")),
    "gradual pruning": Training(lambda teacher: GradualPruning(0.5), anything=True, families=("transformers",)),
    "movement pruning": Training(lambda teacher: GradualPruning(0.5, importance="movement"), families=("ours",)),
    "keep masks": Training(lambda teacher: KeepMasks(), families=("ours",)),
    "slimming": Training(lambda teacher: Slimming(), families=("plain",)),
}
METHODS.update({name: Training(make, families=on) for name, (make, on) in laws_of_bits.METHODS.items()})
ANYTHING = ["plain", "sret"]
TRAINED = [(m, name) for m, t in METHODS.items() for name in (*t.families, *(ANYTHING if t.anything else []))]


def trained(family: Family, methods: list[Method], model: nn.Module | None = None) -> nn.Module:
    return fit(model or family.make(), Images(), family.task, methods=methods, epochs=1)


# The input is untouched -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("change", "name"), CASES)
def test_the_model_given_is_untouched(change: str, name: str, training: bool) -> None:
    family = ALL[name]
    model = family.make().train(training)
    before = everything(model)
    new = CHANGES[change](model, family)
    assert same(before, everything(model))
    assert new is not model
    assert not {t.data_ptr() for t in new.state_dict().values()} & {t.data_ptr() for t in model.state_dict().values()}
    assert len(edits_of(new)) > len(edits_of(model)) == 0


@pytest.mark.parametrize(("method", "name"), TRAINED)
def test_training_leaves_model_and_teacher_untouched(method: str, name: str) -> None:
    family = ALL[name]
    model, teacher = family.make(), family.make("teacher").train()
    before = everything(model), everything(teacher)
    new = trained(family, [METHODS[method].make(teacher)], model)
    assert same(before[0], everything(model))
    assert same(before[1], everything(teacher))
    common = [(t, new.state_dict()[key]) for key, t in model.state_dict().items() if key in new.state_dict()]
    assert any(not torch.equal(old, learned) for old, learned in common)


# Neutral settings are the identity ------------------------------------------------------------------------------------
@pytest.mark.parametrize("change", list(NEUTRAL))
def test_a_neutral_setting_is_the_identity(change: str, family: Family) -> None:
    model = family.make()
    assert torch.equal(family.logits(NEUTRAL[change](model, family)), family.logits(model))


@pytest.mark.parametrize("name", list(ALL))
def test_distillation_with_alpha_0_is_plain_training(name: str) -> None:
    family = ALL[name]
    plain, distilled = trained(family, []), trained(family, [Distill(family.make("teacher"), alpha=0.0)])
    assert all(
        torch.equal(a, b) for a, b in zip(plain.state_dict().values(), distilled.state_dict().values(), strict=True)
    )


def test_a_token_with_alpha_0_learns_nothing_from_the_teacher(family: Family) -> None:
    answers = []
    for seed in ("teacher", "another teacher"):
        answers.append(family.logits(trained(family, [TokenDistill(family.make(seed), alpha=0.0)])))
    assert torch.equal(*answers)


# Save and load are exact ----------------------------------------------------------------------------------------------
def exact(model: nn.Module, family: Family, folder: Path) -> None:
    """Saved and loaded onto a fresh base, the model answers the same to the bit."""
    loaded = artifact.load(
        artifact.save(model, folder), base=family.base() if family.name != "plain" else family.build()
    )
    wanted, found = model.state_dict(), loaded.state_dict()
    assert list(wanted) == list(found)
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)
    assert edits_of(loaded) == edits_of(model)
    assert repr(loaded) == repr(model)
    assert torch.equal(family.logits(loaded), family.logits(model.eval()))


@pytest.mark.parametrize(("change", "name"), CASES)
def test_save_and_load_are_exact(change: str, name: str, tmp_path: Path) -> None:
    exact(CHANGES[change](ALL[name].make(), ALL[name]), ALL[name], tmp_path)


@pytest.mark.parametrize("name", list(ALL))
def test_a_model_without_edits_saves_and_loads(name: str, tmp_path: Path) -> None:
    exact(ALL[name].make(), ALL[name], tmp_path)


# Finish leaves no scaffold --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("method", "name"), TRAINED)
def test_finish_leaves_no_scaffold(method: str, name: str, tmp_path: Path) -> None:
    family = ALL[name]
    new = trained(family, [METHODS[method].make(family.make("teacher"))])
    replayed = apply(family.build(), edits_of(new))
    assert not all_of(new, Tap)
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in new.modules())
    assert list(new.state_dict()) == list(replayed.state_dict())
    assert repr(new) == repr(replayed)
    assert not any(module.training for module in new.modules())
    exact(new, family, tmp_path)


# A model in training can be copied ------------------------------------------------------------------------------------
@pytest.mark.parametrize(("method", "name"), TRAINED)
def test_a_model_in_training_can_be_copied(method: str, name: str) -> None:
    family = ALL[name]
    model = METHODS[method].make(family.make("teacher")).prepare(family.make()).train()
    output = family.task.forward(model, batches()[0])  # fills what modules put aside, with a graph behind it
    output.sum().backward()
    twin = copy.deepcopy(model)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))
    answers = []
    for one in (model, twin):
        torch.manual_seed(0)
        answers.append(family.task.forward(one, batches()[1]))
    assert torch.equal(*answers)
    assert torch.equal(family.logits(model.eval()), family.logits(twin.eval()))


@pytest.mark.parametrize("name", list(ALL))
def test_8_bits_are_near_the_float_model(name: str) -> None:
    """Also where the host looks at its layers: transformers' ViT asks a convolution for the type of its weight."""
    family = ALL[name]
    model = family.make()
    answer = family.logits(model)
    assert float((family.logits(CHANGES["quantize"](model, family)) - answer).norm() / answer.norm()) < 0.15


# An exported file agrees ----------------------------------------------------------------------------------------------
def exports() -> Iterator[Any]:
    """Every change on every family; by default on the first that has it, as an export takes seconds."""
    seen: dict[str, int] = {}
    for change, name in CASES:
        if change != "prune by taylor":
            seen[change] = seen.get(change, 0) + 1
            yield pytest.param(change, name, marks=[pytest.mark.slow] if seen[change] > 1 else [])


@pytest.mark.parametrize(("change", "name"), list(exports()))
def test_an_exported_file_agrees(change: str, name: str, tmp_path: Path) -> None:
    onnx, session = (
        pytest.importorskip("featherweight.export.onnx"),
        pytest.importorskip("featherweight.runtime.session"),
    )
    family = ALL[name]
    model = CHANGES[change](family.make(), family).eval()
    images = fill.normal("exported images", (3, 3, SIZE, SIZE))
    exported = onnx.export(model, images, tmp_path / "model.onnx", task=family.task)
    answers = session.open_session(exported.path, backend="onnxruntime", threads=1)
    for count in (1, 3):  # any number of images
        batch = images[:count]
        found = torch.from_numpy(next(iter(answers.run({answers.inputs[0].name: batch.numpy()}).values())))
        wanted = family.logits(model, batch)
        if "quantize" in change:  # a sum in another order may fall on the other side of a rounding
            assert torch.equal(found.argmax(-1), wanted.argmax(-1))
            assert float((found - wanted).norm() / wanted.norm()) < 0.02
        else:
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


# Composition ----------------------------------------------------------------------------------------------------------
ORDERS = [
    ("narrow heads and tokens", "sparsify", "quantize"), ("drop blocks", "deit", "sparsify"),
    ("deit", "dynamicvit"), ("deit", "prune"), ("dynamicvit", "prune"), ("prune", "dynamicvit"), ("prune", "deit"),
    ("prune", "prune by taylor"), ("deit", "quantize"), ("dynamicvit", "quantize"), ("prune", "quantize"),
    ("deit", "dynamicvit", "prune by taylor", "quantize"), ("deit", "prune", "tome", "quantize"), ("tome", "prune"),
    ("prune", "low rank", "quantize"), ("deit", "monarch", "grouping"),
    ("recursion", "grouping", "deit", "prune", "quantize"), ("prune", "recursion", "dynamicvit"),
    ("deit", "prune", "sparsify, share"),
]  # fmt: skip


@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
def test_methods_compose_and_save(order: tuple[str, ...], family: Family, tmp_path: Path) -> None:
    model = family.make()
    for change in order:
        before = everything(model)
        new = CHANGES[change](model, family)
        assert same(before, everything(model))
        assert edits_of(new)[: len(edits_of(model))] == edits_of(model)
        model = new
    assert family.logits(model).isfinite().all()
    exact(model, family, tmp_path)


def test_methods_train_one_after_the_other_and_together(family: Family, tmp_path: Path) -> None:
    teacher = family.make("teacher")
    model = trained(family, [TokenDistill(teacher)])
    model = trained(family, [DynamicViT(model, keep=0.6)], model)
    model = prune.prune(model, mlp=0.5, heads=0.5)
    model = trained(family, [DynamicViT(keep=0.6), TokenDistill(teacher)], model)
    exact(model, family, tmp_path / "one after the other")
    both = trained(family, [TokenDistill(teacher), DynamicViT(trained(family, [TokenDistill(teacher)]))])
    assert [edit.kind for edit in edits_of(both)] == ["distillation_token", "sparse_tokens"]
    assert not all_of(both, Tap)
    exact(both, family, tmp_path / "together")


def test_a_wrong_order_says_the_right_one(family: Family) -> None:
    sparse = with_fewer_tokens(family.make(), family)
    with pytest.raises(OptionError, match="distill first, then sparsify"):
        with_token(sparse, family)
    with pytest.raises(OptionError, match="drops tokens already"):
        with_fewer_tokens(sparse, family)
    with pytest.raises(LookupError, match="prune first, then quantize"):
        prune.prune(quantize.quantize(family.make(), batches(), family.task))
    token = with_token(family.make(), family)
    assert deit.plan(token) == []  # a second one is not added
