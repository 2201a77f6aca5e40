# SPDX-License-Identifier: Apache-2.0
"""The loss around a model: its middle is the model, its directions are as long as the filters, nothing is touched."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import tiny_training as tiny
import torch
from torch import nn

from featherweight import cli, landscape
from featherweight.errors import OptionError
from featherweight.models import zoo
from featherweight.tasks.classification import Classification

TASK = Classification(4)


def batches(count: int = 24) -> list[dict[str, torch.Tensor]]:
    return list(tiny.batches(count, batch_size=8).epoch(0))


def test_the_middle_is_the_model_and_the_model_is_untouched() -> None:
    model = tiny.network().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    places: list[tuple[int, int]] = []
    found = landscape.landscape(model, batches(), TASK, points=5, told=lambda i, n: places.append((i, n)))
    model.eval()
    with torch.no_grad():
        wanted = [TASK.loss(model(b["image"]), b)["task"] for b in batches()]
    assert found.center == pytest.approx(float(torch.stack(wanted).mean()), rel=1e-6)
    assert found.top1[2][2] == TASK.evaluate(model, batches())["top1"]
    assert found.images == 24
    assert found.steps == (-1.0, -0.5, 0.0, 0.5, 1.0)
    assert places[-1] == (25, 25)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert landscape.landscape(model, batches(), TASK, points=5) == found
    other = landscape.landscape(model, batches(), TASK, points=5, seed=1)
    assert other.center == found.center
    assert other.loss != found.loss


def test_directions_are_as_long_as_the_filters_and_leave_norms_alone() -> None:
    config = {"image_size": [8, 8], "patch_size": 4, "embed_dim": 8, "num_heads": 2, "depth": 1, "num_classes": 4}
    for model in (tiny.network(), zoo.build({"name": "vit", "config": config})):
        first, second = landscape.directions(model, 0)
        weights = {n: m.weight for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
        assert set(first) == set(second) == {f"{name}.weight" for name in weights}
        for name, weight in weights.items():
            for direction in (first, second):
                lengths = direction[f"{name}.weight"].flatten(1).norm(dim=1)
                torch.testing.assert_close(lengths, weight.detach().flatten(1).norm(dim=1))
            assert not torch.equal(first[f"{name}.weight"], second[f"{name}.weight"])


def test_a_scaled_copy_of_a_model_has_the_same_landscape() -> None:
    """What filter normalization is for: a network of ReLUs with one layer's weights doubled and the next's halved."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 12, bias=False), nn.ReLU(), nn.Linear(12, 4, bias=False))
    scaled = nn.Sequential(nn.Flatten(), nn.Linear(192, 12, bias=False), nn.ReLU(), nn.Linear(12, 4, bias=False))
    with torch.no_grad():
        scaled[1].weight.copy_(model[1].weight * 8)
        scaled[3].weight.copy_(model[3].weight / 8)
    one, two = (landscape.landscape(m, batches(), TASK, points=3) for m in (model, scaled))
    for a, b in zip(one.loss, two.loss, strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_numbers_and_drawings(tmp_path: Path) -> None:
    found = landscape.landscape(tiny.network(), batches(), TASK, points=5)
    landscape.save(found, tmp_path / "a.svg", title="a model")
    landscape.save(found, tmp_path / "b.png")
    told = json.loads((tmp_path / "a.json").read_text())
    assert told["loss"][2][2] == told["center"] == found.center
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    assert landscape.draw(found).svg == landscape.draw(found).svg


def test_where_the_loss_is_not_finite() -> None:
    model = tiny.network(norm=False)
    with torch.no_grad():
        model[-1].weight.mul_(1e30)  # type: ignore[operator, union-attr]
    found = landscape.landscape(model, batches(), TASK, points=3, span=100)
    assert json.dumps(found.to_dict(), allow_nan=False)
    assert all(value is None or math.isfinite(value) for row in found.loss for value in row)


@pytest.mark.parametrize(
    ("options", "told"), [({"points": 4}, "points: 4 is not an odd"), ({"span": 0}, "span"), ({"points": 1}, "points")]
)
def test_wrong_options(options: dict[str, int], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        landscape.landscape(tiny.network(), batches(), TASK, **options)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="no floating weights"):
        landscape.landscape(nn.Flatten(), batches(), TASK)
    with pytest.raises(OptionError, match="no batches"):
        landscape.landscape(tiny.network(), [], TASK)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "valley.svg"
    words = ["landscape", "resnet_digits", "--data", "digits", "--limit", "8", "--points", "3", "--span", "0.5"]
    assert cli.main([*words, "--out", str(place), "--part", "val", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["drawing"] == str(place)
    assert told["images"] == 8
    assert place.read_text().startswith("<?xml")
    assert cli.main([*words, "--out", "valley.pdf"]) == 2
    assert cli.main([*words[:-4], "--points", "4"]) == 2
