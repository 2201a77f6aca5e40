# SPDX-License-Identifier: Apache-2.0
"""Who sees whom in a star, in texts and in pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_text
import torch
from families import IMAGES, Family, everything, same

from featherweight import artifact, pipeline
from featherweight.errors import OptionError
from featherweight.export import text
from featherweight.methods.star_attention import plan, star, starred
from featherweight.models import pretrained
from featherweight.tokenizer import open_tokens


def test_the_pattern() -> None:
    assert star(5, 1, 1)[0, 0].int().tolist() == [
        [1, 1, 1, 1, 1],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 0, 1, 1, 1],
        [1, 0, 0, 1, 1],
    ]


def test_pictures_of_every_family(family: Family) -> None:
    model = family.make()
    before = everything(model)
    assert plan(model, radius=None) == []
    wide, narrow = (starred(model, radius=radius) for radius in (99, 1))
    assert same(everything(model), before)
    assert torch.allclose(family.logits(wide), family.logits(model), atol=1e-5)
    assert not torch.allclose(family.logits(narrow), family.logits(model), atol=1e-4)
    assert family.logits(narrow).shape == (len(IMAGES), 5)


def test_texts_hide_their_padding(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokens = open_tokens(tiny_text.tokenizer(transformers))
    whole = tiny_text.model(transformers, kind="BertForSequenceClassification")
    model = starred(pretrained.with_tokens(whole, tokens), radius=2)
    texts = ["the old tower of the king", "king", "the river and the bridge in the old city of london", ""]
    pipe = pipeline(model=model)

    def scores(answers: list[list[dict[str, float]]]) -> list[float]:
        return [one["score"] for answer in answers for one in answer]

    alone = scores([pipe(one, top_k=None) for one in texts])
    assert scores(pipe(texts, top_k=None, batch_size=4)) == pytest.approx(alone, abs=1e-6)
    assert scores(pipeline(model=whole)(texts, top_k=None)) != pytest.approx(alone, abs=1e-6)
    artifact.save(model, tmp_path / "model")
    assert scores(pipeline(model=tmp_path / "model")(texts, top_k=None)) == pytest.approx(alone, abs=1e-6)
    text.export(model, tmp_path / "model.onnx")
    assert scores(pipeline(model=tmp_path / "model.onnx")(texts, top_k=None)) == pytest.approx(alone, abs=1e-5)


def test_what_does_not_fit_is_one_line(family: Family) -> None:
    for radius in (0, -1, 1.5, True):
        with pytest.raises(OptionError, match="1 or more neighbors"):
            starred(family.make(), radius=radius)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="in a star already"):
        starred(starred(family.make()))
