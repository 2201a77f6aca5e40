# SPDX-License-Identifier: Apache-2.0
"""What a model looked at, drawn over a picture: masks and weights land where they belong, files are what they say."""

from __future__ import annotations

import re
from pathlib import Path

import fill
import numpy as np
import pytest
import torch
from families import FAMILIES, SIZE
from PIL import Image

import featherweight
from featherweight import artifact, cli
from featherweight.errors import OptionError
from featherweight.methods import dynamicvit
from featherweight.runtime.preprocess import Preprocess
from featherweight.surgery import apply
from featherweight.token_maps import FADED, SIDE, Panel, enlarged, grid_of, heat_over, kept_over, save

PREPROCESS = Preprocess(size=(SIZE, SIZE), resize="exact")
PICTURE = (255 * fill.image("picture", (1, 3, 40, 30))[0].permute(1, 2, 0)).byte().numpy()


def test_the_grid_has_the_shape_of_the_input() -> None:
    assert grid_of(196, (224, 224)) == (14, 14)
    assert grid_of(24, (64, 96)) == (4, 6)
    assert grid_of(24, (96, 64)) == (6, 4)
    with pytest.raises(OptionError, match="197 patches fill no grid over an input of 224 x 224"):
        grid_of(197, (224, 224))


def test_dropped_patches_fade_and_kept_ones_stay() -> None:
    picture = np.full((16, 16, 3), 10, np.uint8)
    kept = [True] * 16
    kept[6] = False  # row 1, column 2
    found = kept_over(picture, kept)
    patch = found.shape[0] // 4
    faded = (found != 10).any(2)
    assert faded[patch : 2 * patch, 2 * patch : 3 * patch].all() and faded.sum() == patch * patch
    assert found[patch, 2 * patch].max() < 255 * (1 - FADED) + 10


def test_weights_are_redder_where_they_are_large() -> None:
    weights = [0.0] * 16
    weights[9] = 0.5
    found = heat_over(np.full((16, 16, 3), 100, np.uint8), weights).astype(int)
    patch, red = found.shape[0] // 4, found[..., 0] - found[..., 2]
    place = np.unravel_index(red.argmax(), red.shape)
    assert (place[0] // patch, place[1] // patch) == (2, 1)
    assert red[0, -1] == 0


def test_small_pictures_are_enlarged_by_whole_squares() -> None:
    large = enlarged(PICTURE)
    assert min(large.shape[:2]) >= SIDE and large.shape[0] % 40 == 0
    assert enlarged(large) is not large and enlarged(large).shape == large.shape


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_files_are_what_their_names_say(tmp_path: Path) -> None:
    row = [Panel("one <b>", PICTURE), Panel("two", PICTURE[:20])]
    assert size(save(row, tmp_path / "new" / "a.png")) == (68, 40)
    text = save(row, tmp_path / "a.svg").read_text()
    assert text.count("<image ") == 2 and "one &lt;b&gt;" in text and "http://www.w3.org/2000/svg" in text
    assert save(row, tmp_path / "b.svg").read_text() == text
    with pytest.raises(OptionError, match=r"does not end in \.svg or \.png"):
        save(row, tmp_path / "a.jpg")


def sparse() -> torch.nn.Module:
    model = FAMILIES["ours"].make()
    return apply(model, dynamicvit.plan(model, keep={1: 0.5, 2: 0.25})).eval()


def test_every_stage_of_any_model_is_drawn(tmp_path: Path) -> None:
    path = featherweight.draw(sparse(), PICTURE, tmp_path / "t.svg", preprocess=PREPROCESS)
    assert re.findall(">kept (\\d+) of 16<", path.read_text()) == ["8", "4"]
    for name in ("ours", "timm", "lvvit"):
        model = FAMILIES[name].make()
        path = featherweight.draw(model, PICTURE, tmp_path / f"{name}.png", what="attention", preprocess=PREPROCESS)
        assert size(path)[1] == SIDE
    with pytest.raises(OptionError, match="keeps all of its tokens"):
        featherweight.draw(FAMILIES["ours"].make(), PICTURE, tmp_path / "x.svg", preprocess=PREPROCESS)
    with pytest.raises(OptionError, match="no 'tokns'; did you mean 'tokens'"):
        featherweight.draw(sparse(), PICTURE, tmp_path / "x.svg", what="tokns")  # type: ignore[arg-type]
    plain = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIZE * SIZE, 5))
    with pytest.raises(OptionError, match="no anatomy for Sequential"):
        featherweight.draw(plain, PICTURE, tmp_path / "x.svg", what="attention", preprocess=PREPROCESS)
    assert not (tmp_path / "x.svg").exists()


def test_the_command_draws_beside_its_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    artifact.save(sparse(), tmp_path / "model", preprocess=PREPROCESS, classes=list("abcde"))
    for folder in ("p", "q"):
        (tmp_path / folder).mkdir()
        Image.fromarray(PICTURE).save(tmp_path / folder / "one.png")
    assert cli.main(["predict", "model", "--source", "p", "--source", "q", "--draw", "tokens,attention"]) == 0
    drawn = sorted(path.name for path in tmp_path.glob("runs/*/drawn/*"))
    assert drawn == ["one-attention-2.svg", "one-attention.svg", "one-tokens-2.svg", "one-tokens.svg"]
    assert "drawn" in capsys.readouterr().out
    assert cli.main(["predict", "model", "--source", "p", "--draw", "nothing"]) == 2
