# SPDX-License-Identifier: Apache-2.0
"""Pruning of single weights: which go, what stays of them through training and files, which mistakes are named."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from families import FAMILIES, PLAIN, Images, everything, same
from torch import nn

from featherweight import artifact
from featherweight.errors import OptionError
from featherweight.methods import gradual, iterative, masks, sparse_choice, sparsify
from featherweight.methods.gradual import GradualPruning
from featherweight.methods.masks import KeepMasks, masks_of, sparsity
from featherweight.methods.qat import QAT
from featherweight.methods.sparse_choice import Pattern
from featherweight.methods.weight_scores import scores
from featherweight.optim import sgd
from featherweight.surgery import apply, edits_of
from featherweight.train import fit


class Net(nn.Module):
    """Two layers of very different scale."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.drop, self.second = nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 4)
        for layer, scale in ((self.first, 1.0), (self.second, 0.01)):
            layer.weight = nn.Parameter(scale * torch.randn(layer.weight.shape, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.drop(self.first(x).relu()))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, groups=2)
        self.turned = nn.ConvTranspose2d(6, 2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.turned(self.conv(x)).flatten(1)


def kept(model: nn.Module, **options: object) -> dict[str, int]:
    return {path: int(mask.sum()) for path, mask in sparsify.choose(model, **options).items()}


def test_the_smallest_go_layer_by_layer_or_wherever_they_are() -> None:
    model = Net()
    assert kept(model, sparsity=0.5, scope="layer") == {"first": 24, "second": 16}
    assert kept(model, sparsity=0.25, scope="global") == {"first": 48, "second": 12}  # the quieter layer pays
    chosen = sparsify.choose(model, sparsity=0.5, scope="layer")["first"]
    weight = model.first.weight.detach().abs()
    assert float(weight[chosen].min()) > float(weight[~chosen].max())
    rows = sparsify.choose(model, sparsity=0.5, scope="output")["first"]
    assert rows.sum(1).tolist() == [3] * 8
    assert kept(model, sparsity={"*": 0.5, "sec*": 0.25}) == {"first": 24, "second": 24}
    assert kept(model, sparsity=0.5, skip=["first"]) == {"second": 16}


def test_without_a_scope_it_is_the_one_that_fits() -> None:
    model = scaled(Net(), 1000.0)
    assert (
        kept(model, sparsity=0.6) == kept(model, sparsity=0.6, scope="lamp") != kept(model, sparsity=0.6, scope="layer")
    )
    assert kept(model, sparsity={"*": 0.6}) == kept(model, sparsity={"*": 0.6}, scope="layer")
    assert sparse_choice.usual(0.5, "wanda") == "output"
    assert sparse_choice.usual(0.5, "taylor") == GradualPruning(0.5, importance="movement").shares == "global"


def test_lamp_is_the_papers_score() -> None:
    found = sparse_choice.lamp(torch.tensor([3.0, 1.0, 2.0]))
    torch.testing.assert_close(found, torch.tensor([9 / 9, 1 / 14, 4 / 13], dtype=torch.float64))
    assert kept(Net(), sparsity=0.5, scope="lamp") == kept(scaled(Net(), 1000.0), sparsity=0.5, scope="lamp")


def scaled(model: Net, factor: float) -> Net:
    model.second.weight = nn.Parameter(model.second.weight * factor)
    return model


def test_erk_keeps_small_layers_denser_and_the_whole_as_asked() -> None:
    shapes = {"big": (100, 100), "small": (10, 10), "tiny": (4, 2)}
    found = sparse_choice.erk(shapes, 0.1)
    assert found["big"] < found["small"] <= found["tiny"] == 1.0
    sizes = {"big": 10_000, "small": 100, "tiny": 8}
    assert sum(found[n] * s for n, s in sizes.items()) == pytest.approx(0.1 * sum(sizes.values()))
    uncapped = sparse_choice.erk({"a": (100, 50), "b": (40, 40)}, 0.05)
    assert uncapped["a"] / uncapped["b"] == pytest.approx((150 / 5000) / (80 / 1600))


def test_n_of_every_m_along_the_input() -> None:
    model = nn.Sequential(nn.Conv2d(8, 4, 3), nn.Conv2d(4, 3, 1), nn.Linear(6, 2))
    chosen = sparsify.choose(model, pattern="2:4")
    assert (chosen["0"].movedim(1, -1).unflatten(-1, (2, 4)).sum(-1) == 2).all()
    assert int(chosen["1"].sum()) == 6
    assert chosen["2"].all()  # 6 inputs are no multiple of 4
    weight = model[0].weight.movedim(1, -1).unflatten(-1, (2, 4)).abs()
    best = chosen["0"].movedim(1, -1).unflatten(-1, (2, 4))
    assert (torch.where(best, weight, torch.inf).amin(-1) >= torch.where(best, 0, weight).amax(-1)).all()
    assert {e.path: e.spec for e in sparsify.plan(model, pattern="2:4")}["0"] == {"kept": 144, "pattern": "2:4"}


def test_blocks_go_whole() -> None:
    model = nn.Sequential(nn.Linear(10, 7))  # neither is a multiple of the block
    mask = sparsify.choose(model, sparsity=0.5, pattern="2x4")["0"]
    for top in range(0, 7, 2):
        for left in range(0, 10, 4):
            block = mask[top : top + 2, left : left + 4]
            assert block.all() or not block.any()
    assert 0.3 < float(mask.float().mean()) < 0.7


def test_scores_by_gradient_are_what_they_say() -> None:
    family = PLAIN
    model, batches = family.make(), list(Images(steps=2, size=3).epoch(0))
    layer = {"classifier": model.classifier}
    products, gradients = [], []
    for batch in batches:
        model.zero_grad()
        nn.functional.cross_entropy(model(batch["image"]), batch["label"]).backward()
        gradients.append(model.classifier.weight.grad.clone())
        products.append((model.classifier.weight * gradients[-1]).abs().detach())
    weight = model.classifier.weight.detach()
    wanted = {
        "taylor": torch.stack(products).mean(0),
        "snip": (weight * torch.stack(gradients).mean(0)).abs(),
        "fisher": weight.square() * torch.stack(gradients).square().mean(0) / 2,
    }
    model.zero_grad()
    before = everything(model)
    for name, value in wanted.items():
        torch.testing.assert_close(scores(model, layer, name, batches, family.task)["classifier"], value)
    assert same(before, everything(model))


def test_wanda_weighs_by_the_inputs_norm_in_groups_too() -> None:
    model, x = Grouped(), torch.randn(3, 4, 5, 5)
    seen = {}
    model.turned.register_forward_pre_hook(lambda _, args: seen.update(turned=args[0].detach()))
    model(x)

    class Task:
        def forward(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return model(batch["image"])

    layers = {"conv": model.conv, "turned": model.turned}
    found = scores(model, layers, "wanda", [{"image": x}], Task())  # type: ignore[arg-type]
    norms = x.transpose(0, 1).flatten(1).norm(dim=1)
    for output in range(6):
        group = norms[:2] if output < 3 else norms[2:]
        torch.testing.assert_close(
            found["conv"][output], model.conv.weight[output].abs().detach() * group[:, None, None]
        )
    inner = seen["turned"].transpose(0, 1).flatten(1).norm(dim=1)
    torch.testing.assert_close(found["turned"], model.turned.weight.abs().detach() * inner[:, None, None, None])


def test_wanda_beats_magnitude_where_inputs_differ() -> None:
    torch.manual_seed(0)
    layer, x = nn.Sequential(nn.Linear(64, 32)), torch.randn(256, 64) * torch.logspace(-2, 2, 64)

    class Task:
        def forward(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return model(batch["image"])

    errors = {}
    for name in ("magnitude", "wanda"):
        new = sparsify.sparsify(layer, importance=name, scope="output", batches=[{"image": x}], task=Task())
        errors[name] = float((new(x) - layer(x)).detach().norm())
    assert errors["wanda"] < 0.2 * errors["magnitude"]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_zeros_stay_through_training_saving_and_more_training(optimizer: str, tmp_path: Path) -> None:
    family = FAMILIES["ours"]
    model = sparsify.sparsify(family.make(), sparsity=0.8)
    before = masks_of(model)
    options = {"optimizer": sgd(0.1, momentum=0.9, weight_decay=0.1)} if optimizer == "sgd" else {}
    new = fit(model, Images(), family.task, methods=[KeepMasks()], epochs=3, ema=0.5, **options)
    loaded = artifact.load(artifact.save(new, tmp_path), base=family.base())
    again = fit(loaded, Images(), family.task, methods=[KeepMasks()], epochs=1)
    for one in (new, loaded, again):
        assert all(torch.equal(masks_of(one)[path], mask) for path, mask in before.items())
        assert sparsity(one) == pytest.approx(0.8, abs=0.001)
        assert edits_of(one) == edits_of(model)
    assert not torch.equal(new.blocks[0].mlp.fc1.weight, model.blocks[0].mlp.fc1.weight)
    plain = fit(model, Images(), family.task, epochs=1)
    assert sparsity(plain) < 0.1  # without the method nothing keeps them: the test above can fail


def test_gradients_of_what_is_gone_do_not_count() -> None:
    """Else clipping by their norm would slow down what is left."""
    rows: list[dict[str, object]] = []
    family = FAMILIES["ours"]
    model = sparsify.sparsify(family.make(), sparsity=0.9)
    norms = []
    for methods in ([KeepMasks()], []):
        rows.clear()
        fit(model, Images(steps=1), family.task, methods=methods, epochs=1, log=rows.append)
        norms.append(next(row["grad_norm"] for row in rows if "grad_norm" in row))
    assert norms[0] < norms[1]


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    family = FAMILIES["ours"]
    method = GradualPruning(sparsity=0.7, importance="movement", end=1.0, updates=4)
    known = {"methods": [method], "epochs": 2}
    whole = fit(family.make(), Images(steps=3), family.task, **known)

    class Killed(Exception):
        pass

    def stop(row: dict[str, object]) -> None:
        if row.get("event") == "step" and row["step"] == 4:
            raise Killed

    known |= {"checkpoint": tmp_path, "checkpoint_every": 1}
    with pytest.raises(Killed):
        fit(family.make(), Images(steps=3), family.task, log=stop, **known)
    resumed = fit(family.make(), Images(steps=3), family.task, **known)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_the_cubic_schedule() -> None:
    method = GradualPruning(sparsity=0.8, initial=0.2, begin=0.1, end=0.6)
    assert [method.target(p) for p in (0.0, 0.1, 0.6, 1.0)] == pytest.approx([0.2, 0.2, 0.8, 0.8])
    assert method.target(0.35) == pytest.approx(0.8 - 0.6 / 8)
    shares = []
    model = method.prepare(PLAIN.make())
    for step in range(21):
        method.after_step(model, step / 20)
        shares.append(1 - float(torch.cat([m.mask.flatten() for _, m in masks.held(model).values()]).float().mean()))
    assert shares == sorted(shares)
    assert shares[0] == 0.0
    assert shares[12:] == [pytest.approx(0.8, abs=0.01)] * 9


@pytest.mark.parametrize("importance", ["magnitude", "movement", "taylor", "fisher"])
def test_gradual_pruning_ends_at_the_sparsity(importance: str) -> None:
    family = FAMILIES["ours"]
    method = GradualPruning(sparsity=0.6, importance=importance, updates=5, skip=["head"])  # type: ignore[arg-type]
    model = fit(family.make(), Images(steps=5), family.task, methods=[method], epochs=2)
    assert sparsity(model, skip=["head"]) == pytest.approx(0.6, abs=0.002)
    assert "head" not in masks_of(model)
    assert not masks.held(model)


def test_movement_is_minus_weight_times_gradient_of_gone_weights_too() -> None:
    layer = nn.Sequential(nn.Linear(2, 1, bias=False))
    layer[0].weight = nn.Parameter(torch.tensor([[2.0, -3.0]]))
    held = masks.hold(layer, {"0": torch.tensor([[True, True]])}, watches="movement")
    ((weight, mask),) = masks.held(held).values()
    mask.choose(weight, torch.tensor([[True, False]]))
    assert weight.tolist() == [[2.0, 0.0]]
    mask.listen(weight)
    mask.listen(weight)  # once is enough
    held.train()(torch.tensor([[1.0, 4.0]])).sum().backward()
    assert mask.score.tolist() == [[-2.0, 12.0]]
    assert weight.grad.tolist() == [[1.0, 0.0]]
    mask.choose(weight, mask.score > 0)
    assert weight.tolist() == [[0.0, -3.0]]  # it comes back with the value it had


def test_movement_keeps_what_grows() -> None:
    """A weight that training drives away from zero is kept, though smaller than one that it drives to zero."""
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    y = (x[:, :1] > 0).long()[:, 0]  # only the first input matters
    model = nn.Sequential(nn.Linear(8, 2))
    model[0].weight = nn.Parameter(0.5 * torch.ones(2, 8) * torch.tensor([[1.0], [-1.0]]))
    model[0].weight.data[:, 0] = 0.01 * torch.tensor([-1.0, 1.0])

    class Data:
        steps_per_epoch = 20

        def epoch(self, epoch: int, start: int = 0) -> object:
            return ({"image": x, "label": y} for _ in range(start, 20))

        def shard(self, rank: int, world: int) -> Data:
            return self

    found = {}
    for importance in ("magnitude", "movement"):
        method = GradualPruning(sparsity=0.75, importance=importance, begin=0.5, end=0.8)  # type: ignore[arg-type]
        known = {"methods": [method], "optimizer": sgd(0.05, momentum=0.0, weight_decay=0.0), "epochs": 2}
        found[importance] = masks_of(fit(model, Data(), PLAIN.task, **known))["0"]
    assert found["movement"][:, 0].all()
    assert not found["magnitude"][:, 0].any()


def test_rounds_reach_the_sparsity_and_weaken_dropout() -> None:
    seen = []

    def retrain(model: nn.Module, number: int) -> nn.Module:
        seen.append((number, round(sparsity(model), 3)))
        return model

    model = Net()
    before = everything(model)
    new = iterative.iterate(model, retrain, rounds=3, sparsity=0.875)
    assert same(before, everything(model))
    assert seen == [(0, 0.5), (1, 0.75), (2, 0.875)]
    assert new.drop.p == pytest.approx(0.5 * 0.125**0.5, rel=1e-6)
    assert apply(Net(), edits_of(new)).drop.p == new.drop.p


def test_han_cuts_below_q_standard_deviations() -> None:
    model = Net()
    first = iterative.by_threshold(model, {"first": 0.8})
    weight = model.first.weight.detach()
    assert torch.equal(first["first"], weight.abs() >= 0.8 * weight.std(correction=0))
    assert first["second"].all()
    once = masks.with_masks(model, first)
    left = weight[first["first"]]
    again = iterative.by_threshold(once, 0.8)["first"]
    assert torch.equal(again, first["first"] & (weight.abs() >= 0.8 * left.std(correction=0)))


def test_masks_that_do_not_fit() -> None:
    with pytest.raises(OptionError, match=r"first has a weight of \(8, 6\), its mask is \(2,\)"):
        masks.with_masks(Net(), {"first": torch.ones(2, dtype=torch.bool)})
    with pytest.raises(LookupError, match="no linear layer"):
        sparsify.sparsify(nn.Sequential(nn.ReLU()))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sparsity": 1.0}, "sparsity: 1.0 is not in [0, 1)"),
        ({"sparsity": True}, "not in [0, 1)"),
        ({"sparsity": {"*": -0.1}}, "-0.1 is not in [0, 1)"),
        ({"sparsity": {"frst": 0.5}}, "did you mean 'first'"),
        ({"sparsity": {"*": 0.5}, "scope": "global"}, "which scope 'global' decides"),
        ({"sparsity": 0.99}, "would leave nothing of first (48 weights)"),
        ({"sparsity": 0.9, "scope": "global"}, "would leave nothing of second"),
        ({"importance": "magnitde"}, "did you mean 'magnitude'"),
        ({"importance": "wanda"}, "'wanda' needs batches="),
        ({"importance": "taylor", "batches": [], "task": PLAIN.task}, "batches: there are none"),
        ({"importance": "wanda", "batches": [], "task": PLAIN.task}, "batches: there are none"),
        ({"scope": "locl"}, "Known: layer"),
        ({"pattern": "4:2"}, "'4:2' is none"),
        ({"pattern": "0x4"}, "'0x4' is none"),
        ({"skip": "first"}, "write ['first']"),
    ],
)
def test_mistakes_are_named(options: dict[str, object], says: str) -> None:
    with pytest.raises(OptionError) as error:
        sparsify.plan(Net(), **options)
    assert says in str(error.value)


def test_images_that_are_not_finite_are_named() -> None:
    model, batch = PLAIN.make(), next(Images().epoch(0))
    batch = {**batch, "image": batch["image"].clone().fill_(torch.nan)}
    with pytest.raises(OptionError, match=r"features\.0 scores that are not finite"):
        sparsify.plan(model, importance="wanda", batches=[batch], task=PLAIN.task)


def test_no_layer_for_the_pattern() -> None:
    with pytest.raises(LookupError, match="'3:5': no layer"):
        sparsify.plan(Net(), pattern="3:5")


@pytest.mark.parametrize(
    "options",
    [{"end": 0.0}, {"begin": 0.8}, {"updates": 0}, {"importance": "snip"}, {"pattern": "2:4"}, {"sparsity": 2}],
)
def test_gradual_options_are_checked(options: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        GradualPruning(**options)  # type: ignore[arg-type]


def test_a_plan_is_printable_and_touches_nothing() -> None:
    model = Net()
    before = everything(model)
    edits = sparsify.plan(model, sparsity=0.5, scope="layer")
    assert [(e.path, e.kind, e.spec["kept"]) for e in edits] == [("first", "sparse", 24), ("second", "sparse", 16)]
    assert same(before, everything(model))
    twice = sparsify.sparsify(sparsify.sparsify(model, sparsity=0.5), sparsity=0.75, scope="layer")
    assert sparsity(twice) == pytest.approx(0.75)
    assert len(edits_of(twice)) == 2
    assert sparsify.plan(model, sparsity=0.0) == []
    assert copy.deepcopy(twice).first.weight.count_nonzero() == 12


def test_pattern_of_text() -> None:
    assert Pattern.of_text("") == Pattern()
    assert Pattern.of_text("4x1") == Pattern(4, 1)
    assert Pattern.of_text("2:4") == Pattern(keep=2, of=4)
    assert gradual.GradualPruning(pattern="4x1").pattern == "4x1"


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("first", [True, False])
def test_zeros_stay_zeros_in_integers(first: bool, order: int, tmp_path: Path) -> None:
    """Pruned before or while it learns its rounding, named before or after it: the codes of what is gone are zero."""
    family = FAMILIES["ours"]
    rounding = QAT(family.task, list(Images().epoch(0)), activations=None)
    model = sparsify.sparsify(family.make(), sparsity=0.7, scope="layer") if first else family.make()
    method = KeepMasks() if first else GradualPruning(0.7, scope="layer", updates=2)
    new = fit(model, Images(), family.task, methods=[method, rounding][::order])
    codes = [tensor for tensor in new.state_dict().values() if tensor.dtype == torch.int8]
    zeros = sum(int((code == 0).sum()) for code in codes) / sum(code.numel() for code in codes)
    assert 0.69 < zeros < 0.8
    loaded = artifact.load(artifact.save(new, tmp_path), base=family.base())
    assert torch.equal(family.logits(loaded), family.logits(new))
