# SPDX-License-Identifier: Apache-2.0
"""Training with rounding: it learns, and what is deployed answers as what was trained; rounding up or down; budgets."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from families import FAMILIES, PLAIN, Images
from torch import Tensor, nn

from featherweight.errors import OptionError
from featherweight.methods.adaround import adaround
from featherweight.methods.binary import Binary, BinaryInputs, polynomial_sign, sign
from featherweight.methods.int8 import QuantConv2d, QuantLinear
from featherweight.methods.mixed_precision import choose, mixed_precision, sensitivity
from featherweight.methods.qat import QAT
from featherweight.methods.rounding_layers import Rounded, Settled, Step
from featherweight.methods.stored import StoredConv2d, StoredLinear
from featherweight.methods.weight_only import weight_only
from featherweight.optim import adamw
from featherweight.runtime.parity import snr_db
from featherweight.surgery import all_of, edits_of
from featherweight.tasks.classification import Classification
from featherweight.train import fit

CLASSES = 4
TASK = Classification(CLASSES)


class Spots:
    """Pictures of one bright quarter each: the label says which. Easy to learn, and not by chance."""

    def __init__(self, steps: int = 12, size: int = 16) -> None:
        self.steps_per_epoch, self.size = steps, size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        for step in range(start, self.steps_per_epoch):
            generator = torch.Generator().manual_seed(1000 * epoch + step)
            label = torch.randint(0, CLASSES, (self.size,), generator=generator)
            image = 0.5 * torch.randn(self.size, 3, 8, 8, generator=generator)
            for i, place in enumerate(label.tolist()):
                top, left = divmod(place, 2)
                image[i, :, 4 * top : 4 * top + 4, 4 * left : 4 * left + 4] += 0.8
            yield {"image": image, "label": label}

    def shard(self, rank: int, world: int) -> Spots:
        return self


class Net(nn.Module):
    """Three convolutions with norms, the second with an addition past it, and a classifier that keeps places apart."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.conv3, self.bn3 = nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16)
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = x + torch.relu(self.bn2(self.conv2(x)))
        return self.head(torch.relu(self.bn3(self.conv3(x))).flatten(1))


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(0)
    return fit(Net(), Spots(), TASK, optimizer=adamw(3e-3), epochs=3)


def accuracy(model: nn.Module) -> float:
    return float(TASK.evaluate(model, Spots(16).epoch(99))["top1"])


def batches(count: int = 4) -> list[dict[str, Tensor]]:
    return list(Spots(count).epoch(50))


def test_the_float_model_has_learned(trained: nn.Module) -> None:
    assert accuracy(trained) > 0.9


@torch.no_grad()
@pytest.mark.parametrize("weights", ["int8", "int4", "int2", "ternary", "binary"])
@pytest.mark.parametrize("activations", [8, None])
def test_what_is_deployed_answers_as_what_was_trained(
    weights: str, activations: int | None, trained: nn.Module
) -> None:
    """The norms are folded and the codes stored: up to 16-bit steps and rounded sums, the answers are the same."""
    method = QAT(TASK, batches(), weights=weights, activations=activations)
    model = method.prepare(trained)
    assert len(all_of(model, Rounded)) == 4
    assert len(all_of(model, Settled)) == 3
    with torch.no_grad():
        model.get_submodule("bn2").norm.weight.mul_(-1)  # a factor below 0 turns the codes around
    x = batches(1)[0]["image"]
    wanted = model.eval()(x)
    new = method.finish(model)
    assert snr_db(wanted.numpy(), new(x).numpy()) > (30 if activations else 50)
    assert not all_of(new, Rounded)
    assert not all_of(new, Settled)
    if activations and weights == "int8":
        assert {type(m) for p, m in new.named_modules() if p in ("conv1", "conv2", "conv3")} == {QuantConv2d}
        assert type(new.get_submodule("head")) is QuantLinear


def test_adam_moves_a_step_by_a_share_of_it_and_sgd_as_the_paper() -> None:
    """Of steps far apart in size: Adam's updates know no scale, SGD's are those of LSQ's own parameter."""
    steps = torch.tensor([1e-4, 1.0])
    for make in (torch.optim.Adam, torch.optim.SGD):
        learned = Step(steps, learned=True)
        optimizer = make(learned.parameters(), lr=1e-2)
        (learned(9, 4.0) * torch.tensor([3e-6, 0.3])).sum().backward()  # the gradient that LSQ divides by sqrt(9 * 4)
        optimizer.step()
        moved = steps - learned.value()
        wanted = 1e-2 * steps if make is torch.optim.Adam else 1e-2 * torch.tensor([3e-6, 0.3]) / 6
        torch.testing.assert_close(moved, wanted, rtol=1e-2, atol=1e-9)


@pytest.mark.parametrize("learned", [True, False])
def test_training_with_two_bits_learns_what_rounding_alone_loses(learned: bool, trained: nn.Module) -> None:
    rounded = weight_only(trained, weights="int2", ends=None)
    method = QAT(TASK, batches(), weights="int2", ends="int2", learned=learned, freeze_at=0.5)
    before = copy.deepcopy(trained.state_dict())
    new = fit(trained, Spots(), TASK, methods=[method], optimizer=adamw(2e-3), epochs=2)
    assert accuracy(new) > max(0.85, accuracy(rounded))
    assert all(torch.equal(value, before[key]) for key, value in trained.state_dict().items())


def test_learned_steps_move_and_norms_settle(trained: nn.Module) -> None:
    method = QAT(TASK, batches(), weights="int4", freeze_at=0.5)
    model = method.prepare(trained).train()
    layer: Any = all_of(model, Rounded)["conv2"]
    before = layer.rounding.step.value(), layer.input.step.value()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for progress, batch in zip((0.2, 0.8), batches(2), strict=True):
        nn.functional.cross_entropy(model(batch["image"]), batch["label"]).backward()
        optimizer.step()
        method.after_step(model, progress)
        assert all(bool(norm.settled) == (progress > 0.5) for norm in all_of(model, Settled).values())
    assert not torch.equal(layer.rounding.step.value(), before[0])
    assert not torch.equal(layer.input.step.value(), before[1])
    mean = model.get_submodule("bn1").norm.running_mean.clone()
    model.train()
    model(batches(1)[0]["image"])
    assert torch.equal(model.get_submodule("bn1").norm.running_mean, mean), "settled also in training"


@pytest.mark.parametrize("name", ["timm", "transformers"])
def test_transformers_train_in_4_bits(name: str) -> None:
    family = FAMILIES[name]
    method = QAT(family.task, list(Images().epoch(0)), weights="int4")
    new = fit(family.make(), Images(), family.task, methods=[method], epochs=1)
    assert {type(m) for m in new.modules() if isinstance(m, StoredLinear | QuantLinear | StoredConv2d)}
    assert family.logits(new).isfinite().all()


def test_four_bits_of_activations_are_16_values(trained: nn.Module) -> None:
    method = QAT(TASK, batches(), weights="int4", activations=4)
    new = method.finish(method.prepare(trained))
    seen: list[Tensor] = []
    new.get_submodule("conv2").input.register_forward_hook(lambda _m, _a, out: seen.append(out))
    new(batches(1)[0]["image"])
    assert 4 < len(seen[0].unique()) <= 16


# Binary ---------------------------------------------------------------------------------------------------------------
def test_signs_and_their_gradients() -> None:
    for function, wanted in ((sign, [0.0, 1.0, 1.0, 1.0, 0.0]), (polynomial_sign, [0.0, 1.0, 2.0, 1.0, 0.0])):
        x = torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0], requires_grad=True)
        out = function(x)
        assert out.tolist() == [-1.0, -1.0, 1.0, 1.0, 1.0]
        out.sum().backward()
        assert x.grad is not None
        assert x.grad.tolist() == wanted


@pytest.mark.parametrize("how", ["connect", "weights", "xnor", "bireal"])
def test_one_bit_learns_and_is_deployed(how: str) -> None:
    torch.manual_seed(0)
    model, example = Net(), batches(1)[0]["image"]
    method = Binary(how, TASK, example)  # type: ignore[arg-type]
    new = fit(model, Spots(), TASK, methods=[method], optimizer=adamw(5e-3, weight_decay=0.0), epochs=4)
    assert accuracy(new) > 0.6
    inner = [m for m in new.modules() if isinstance(m, StoredConv2d)]
    assert len(inner) == 2, "between the first and the last layer"
    assert all(len(row.unique()) <= 2 for m in inner for row in m.store())
    if how == "connect":
        assert all(torch.equal(m.store().abs(), torch.ones_like(m.store())) for m in inner)
    moved = isinstance(new.bn2, nn.Identity)
    assert moved == (how == "bireal")


@torch.no_grad()
def test_xnor_is_the_product_of_signs_and_two_scales() -> None:
    """sign(x) * sign(W) * mean|W| * K, K the mean magnitude over channels and window (Rastegari 2016, eq. 11)."""
    torch.manual_seed(0)
    net = Net()
    net.conv2 = nn.Conv2d(8, 8, 3, 1, 1)
    method = Binary("xnor")
    model = method.prepare(net.eval())
    layer: Any = model.conv2
    assert isinstance(layer, BinaryInputs)
    x = torch.randn(2, 8, 6, 6)
    real, weight = layer.before(x), layer.weight
    alpha = weight.abs().mean((1, 2, 3))
    product = nn.functional.conv2d(torch.where(real >= 0, 1.0, -1.0), torch.where(weight >= 0, 1.0, -1.0), padding=1)
    k = nn.functional.avg_pool2d(real.abs().mean(1, keepdim=True), 3, 1, 1, count_include_pad=True)
    wanted = product * alpha[:, None, None] * k + net.conv2.bias[:, None, None]
    torch.testing.assert_close(layer(x), wanted, atol=1e-5, rtol=1e-4)
    made = method.finish(model)
    torch.testing.assert_close(made.conv2(x), wanted, atol=1e-3, rtol=1e-3)  # magnitudes are stored in 16 bits


def test_binary_says_what_it_needs() -> None:
    with pytest.raises(OptionError, match="how: no 'xor'; did you mean"):
        Binary("xor")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="bireal needs one"):
        Binary("bireal")
    with pytest.raises(LookupError, match="no layer between the first and the last"):
        Binary("weights").prepare(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))


# AdaRound -------------------------------------------------------------------------------------------------------------
@torch.no_grad()
def test_adaround_beats_the_nearest_on_images_it_has_not_seen(trained: nn.Module) -> None:
    rounded = weight_only(trained, weights="int2", ends="int4")
    with torch.enable_grad():
        learned = adaround(trained, rounded, batches(6), TASK, steps=150)
    x = Spots(6).epoch(77)
    images = torch.cat([batch["image"] for batch in x])
    wanted = trained(images).numpy()
    before, after = (snr_db(wanted, one(images).numpy()) for one in (rounded, learned))
    assert after > before + 2
    codes = [m.store.codes() for m in learned.modules() if isinstance(m, StoredConv2d)]
    others = [m.store.codes() for m in rounded.modules() if isinstance(m, StoredConv2d)]
    assert all(float((a - b).abs().max()) <= 1 for a, b in zip(codes, others, strict=True)), "up or down, no further"
    assert edits_of(learned) == edits_of(rounded)


def test_adaround_with_no_steps_is_the_identity_and_says_what_it_needs(trained: nn.Module) -> None:
    rounded = weight_only(trained)
    same = adaround(trained, rounded, batches(), TASK, steps=0)
    x = batches(1)[0]["image"]
    assert torch.equal(same(x), rounded(x))
    with pytest.raises(LookupError, match="no layer whose weight is packed"):
        adaround(trained, trained, batches(), TASK)
    with pytest.raises(OptionError, match="warmup"):
        adaround(trained, rounded, batches(), TASK, warmup=1.0)


# Mixed precision ------------------------------------------------------------------------------------------------------
def test_bits_go_where_they_are_needed(trained: nn.Module) -> None:
    rows = sensitivity(trained, batches(), TASK)
    by = {(row.layer, row.weights): row for row in rows}
    assert len(rows) == 4 * 3
    for layer in ("conv1", "conv2", "conv3", "head"):
        assert by[layer, "int8"].noise < by[layer, "int4"].noise < by[layer, "int2"].noise
        assert by[layer, "int8"].size_bytes > by[layer, "int4"].size_bytes > by[layer, "int2"].size_bytes
    whole = choose(trained, rows)
    sizes = [choice.size_bytes for choice in whole]
    assert sizes == sorted(sizes, reverse=True)
    assert set(whole[0].grids.values()) == {"float32"}
    assert set(whole[-1].grids.values()) == {"int2"}
    budget = sizes[-1] + by["conv3", "int4"].size_bytes
    chosen = choose(trained, rows, size_bytes=budget)[-1]
    assert chosen.size_bytes <= budget
    uniform = [c for c in whole if c.size_bytes <= budget]
    assert chosen.noise <= min(c.noise for c in uniform)


def test_a_budget_is_met_or_refused(trained: nn.Module) -> None:
    new = mixed_precision(trained, batches(), TASK, min_agreement=0.95)
    images = torch.cat([batch["image"] for batch in batches()])
    with torch.no_grad():
        same = (new(images).argmax(1) == trained(images).argmax(1)).double().mean()
    assert same >= 0.95
    assert edits_of(new)
    with pytest.raises(OptionError, match="cannot be met: with the fewest bits it is"):
        mixed_precision(trained, batches(), TASK, size_bytes=100)
    with pytest.raises(OptionError, match="needs a budget"):
        mixed_precision(trained, batches(), TASK)


def test_options_are_checked_before_anything_is_trained() -> None:
    with pytest.raises(OptionError, match="weights: no 'int5'"):
        QAT(TASK, [], weights="int5")
    with pytest.raises(OptionError, match="activations: 6 is not one of 8, 4, None"):
        QAT(TASK, [], activations=6)
    with pytest.raises(OptionError, match="freeze_at"):
        QAT(TASK, [], freeze_at=2.0)
    with pytest.raises(OptionError, match="choices: no 'int1'"):
        sensitivity(PLAIN.make(), batches(), TASK, choices=("int1",))
