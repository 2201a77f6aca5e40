# SPDX-License-Identifier: Apache-2.0
"""Tokens of a text dropped on the way: by whom, how many, and that a batch does not matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_text
import torch
from families import everything, same
from torch import nn

from featherweight import artifact, pipeline
from featherweight.errors import OptionError
from featherweight.export import text
from featherweight.methods.power_bert import NarrowingBlocks, ceil_share, narrowing, plan
from featherweight.models import pretrained, zoo
from featherweight.surgery import find
from featherweight.tokenizer import open_tokens

transformers = pytest.importorskip("transformers")

TOKENS = open_tokens(tiny_text.tokenizer(transformers))
TEXTS = [one for one in tiny_text.texts() if len(one) < 100]
KEEP = {0: 0.6, 1: 0.3}


def model(kind: str = "BertForSequenceClassification") -> nn.Module:
    if not kind.startswith("DistilBert"):
        return pretrained.with_tokens(tiny_text.model(transformers, kind=kind), TOKENS)
    config = transformers.DistilBertConfig(
        vocab_size=len(tiny_text.vocabulary()), dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=64
    )
    torch.manual_seed(0)
    return pretrained.with_tokens(transformers.DistilBertForSequenceClassification(config).eval(), TOKENS)


def scores(answers: Any) -> list[float]:
    return [one["score"] for answer in answers for one in answer]


def seen(model: nn.Module, texts: list[str]) -> list[tuple[int, ...]]:
    """The shape of what each block is given."""
    shapes: list[tuple[int, ...]] = []
    blocks = find(model, NarrowingBlocks).blocks
    hooks = [block.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape))) for block in blocks]
    pipeline(model=model)(texts, batch_size=len(texts))
    for hook in hooks:
        hook.remove()
    return shapes


def test_keeping_all_is_the_identity() -> None:
    given = model()
    assert plan(given, keep=1.0) == []
    pinned = narrowing(given, keep={1: 0.999999})  # goes through the blocks, and drops nothing of so short a text
    assert scores(pipeline(model=pinned)(TEXTS, top_k=None)) == pytest.approx(
        scores(pipeline(model=given)(TEXTS, top_k=None)), abs=1e-6
    )


@pytest.mark.parametrize("kind", ["BertForSequenceClassification", "DistilBertForSequenceClassification"])
def test_a_batch_of_one_answers_as_a_batch_of_many(kind: str) -> None:
    given = model(kind)
    before = everything(given)
    small = narrowing(given, keep=KEEP)
    assert same(everything(given), before)
    pipe = pipeline(model=small)
    alone = [pipe(one, top_k=None) for one in TEXTS]
    assert scores(pipe(TEXTS, top_k=None, batch_size=len(TEXTS))) == pytest.approx(scores(alone), abs=1e-6)
    assert scores(pipeline(model=given)(TEXTS, top_k=None)) != pytest.approx(scores(alone), abs=1e-6)


def test_later_blocks_are_given_fewer_tokens() -> None:
    given = narrowing(model(), keep=KEEP)
    count = len(TOKENS.encode("the old tower of the king")[0].ids)  # 8
    assert seen(given, ["the old tower of the king"]) == [(1, ceil_of(count, 0.6), 32), (1, ceil_of(count, 0.3), 32)]
    assert [shape[:2] for shape in seen(given, ["king", "the old tower of the king"])] == [(2, 5), (2, 3)]


def ceil_of(count: int, share: float) -> int:
    from fractions import Fraction

    return int(ceil_share(count, Fraction(share).limit_denominator(1000)))


@pytest.mark.slow
def test_saved_loaded_and_exported(tmp_path: Path) -> None:
    small = narrowing(model(), keep=KEEP)
    wanted = scores(pipeline(model=small)(TEXTS, top_k=None, batch_size=4))
    artifact.save(small, tmp_path / "model")
    assert scores(pipeline(model=tmp_path / "model")(TEXTS, top_k=None, batch_size=4)) == wanted
    assert not (tmp_path / "model" / "config.json").exists()
    text.export(small, tmp_path / "model.onnx", texts=TEXTS)
    found = pipeline(model=tmp_path / "model.onnx")(TEXTS, top_k=None, batch_size=3)
    assert scores(found) == pytest.approx(wanted, abs=1e-5)


def test_it_can_be_trained() -> None:
    small = narrowing(model(), keep=KEEP).train()
    rows = TOKENS.batch([TOKENS.encode(one)[0] for one in TEXTS])
    answer = small(**{name: torch.from_numpy(array) for name, array in rows.items()})
    answer.logits.sum().backward()
    assert all(parameter.grad is not None for name, parameter in small.named_parameters() if "layer" in name)


def test_what_does_not_fit_is_one_line() -> None:
    for wrong, words in (
        ({"keep": {5: 0.5}}, "no block 5"),
        ({"keep": {0: 0.2, 1: 0.5}}, "dropped tokens do not come back"),
        ({"keep": 1.5}, "is not in"),
    ):
        with pytest.raises(OptionError, match=words):
            plan(model(), **wrong)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="no text classifier"):
        plan(tiny_text.model(transformers))
    with pytest.raises(OptionError, match="for pictures see dynamicvit"):
        plan(zoo.create("vit_digits"))
    with pytest.raises(OptionError, match="drops tokens already"):
        narrowing(narrowing(model(), keep=KEEP), keep=KEEP)
