# SPDX-License-Identifier: Apache-2.0
"""What is inside a transformer, learned by another: of pictures and of text, in every described family."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import fill
import pytest
import torch
from families import CLASSES, CONFIG, FAMILIES, IMAGES, PLAIN, Family, Images
from torch import Tensor, nn
from torch.nn import functional as F

from featherweight.anatomy import anatomy_of, blocks_of
from featherweight.errors import OptionError
from featherweight.methods.attention import queries_and_keys
from featherweight.methods.minilm import MiniLM, relation, relation_distance
from featherweight.methods.tinybert import TinyBERT, evenly, masked_mse, parts_of, scores
from featherweight.models import zoo
from featherweight.surgery import submodule
from featherweight.tasks.classification import Classification
from featherweight.train import fit


def deep(depth: int = 6, width: int = 48, heads: int = 4) -> nn.Module:
    config = {**CONFIG, "depth": depth, "embed_dim": width, "num_heads": heads}
    model = zoo.build({"name": "vit", "config": config})
    model.load_state_dict(
        {name: fill.tensor("deep" + name, t.shape, t.dtype) for name, t in model.state_dict().items()}
    )
    return model.eval()


def test_blocks_are_mapped_evenly_and_end_together() -> None:
    assert evenly(4, 12) == [2, 5, 8, 11]
    assert evenly(3, 3) == [0, 1, 2]
    assert evenly(3, 4) == [1, 2, 3]


@pytest.mark.parametrize("name", ["ours", "timm"])
def test_scores_are_those_that_the_block_computes(name: str) -> None:
    """Beside the ones that attention maps are drawn from."""
    family = FAMILIES[name]
    model = family.make()
    anatomy, (path, block) = anatomy_of(model), next(iter(blocks_of(model).items()))
    heard: dict[str, Tensor] = {}
    inside: list[Tensor] = []
    for layer in anatomy.qkv:
        submodule(block, layer).register_forward_hook(
            lambda _m, _a, out, layer=layer: heard.__setitem__(f"{path}.{layer}", out)
        )
    block.register_forward_pre_hook(lambda _m, args: inside.append(args[0]))
    family.logits(model)
    with torch.no_grad():
        q, k = queries_and_keys(block, anatomy, inside[0])
    found = parts_of(heard, [f"{path}.{layer}" for layer in anatomy.qkv])
    torch.testing.assert_close(scores(*found[:2], 4), q @ k.transpose(-2, -1))


def test_padding_does_not_count() -> None:
    a, b = fill.normal("a", (2, 5, 3)), fill.normal("b", (2, 5, 3))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    wanted = torch.cat([(a[0, :3] - b[0, :3]).flatten(), (a[1] - b[1]).flatten()]).square().mean()
    torch.testing.assert_close(masked_mse(a, b, mask[:, :, None]), wanted)
    torch.testing.assert_close(masked_mse(a, b, None), F.mse_loss(a, b))
    moved = torch.where(mask[:, :, None] == 1, a, 9.0)
    torch.testing.assert_close(relation_distance(a, b, 1, mask), relation_distance(moved, b, 1, mask))
    assert float(relation_distance(a, a, 3)) == pytest.approx(0, abs=1e-6)


def test_a_relation_is_the_softmax_of_scaled_products() -> None:
    x = fill.normal("x", (1, 4, 6))
    heads = x.unflatten(-1, (2, 3)).transpose(1, 2)
    wanted = (heads @ heads.transpose(-2, -1) / math.sqrt(3)).softmax(-1)
    torch.testing.assert_close(relation(x, 2).exp(), wanted)


def rows_of(
    model: nn.Module, task: Classification, method: Any, data: Any = None, epochs: int = 2
) -> tuple[nn.Module, list[dict[str, float]]]:
    """The trained model, and the terms of the loss in each step."""
    rows: list[dict[str, float]] = []
    told = lambda row: rows.append(row["terms"]) if row["event"] == "step" else None  # noqa: E731
    return fit(model, data or Images(), task, methods=[method], epochs=epochs, log=told), rows


@pytest.mark.parametrize("family", list(FAMILIES.values()), ids=list(FAMILIES))
def test_every_family_learns_from_its_like(family: Family) -> None:
    for method in (TinyBERT(family.make("teacher"), stage=None), MiniLM(family.make("teacher"))):
        found, rows = rows_of(family.make(), family.task, method)
        assert list(found.state_dict()) == list(family.make().state_dict())
        assert all(value > 0 for row in rows for name, value in row.items() if name != "task")
        if family.name == "lvvit":  # its stem's batch norms answer otherwise in training
            continue
        _, same = rows_of(family.make(), family.task, type(method)(family.make()), epochs=1)
        assert all(
            same[0][name] < 1e-6 for name in ("attention", "hidden", "embedding", "relations") if name in same[0]
        )


def test_a_small_student_learns_from_a_deep_wide_one_of_another_library() -> None:
    family, teacher = FAMILIES["timm"], deep()
    _, rows = rows_of(family.make(), family.task, TinyBERT(teacher, stage=0.5), epochs=2)
    assert all({"attention", "hidden", "embedding"} <= set(row) for row in rows)
    assert all(row["hidden"] > 0 and row["task"] == 0 for row in rows[:2])
    assert all(row["hidden"] == 0 and row["distill"] > 0 for row in rows[2:])
    _, rows = rows_of(family.make(), family.task, MiniLM(teacher, teacher_block=4), epochs=8)
    assert rows[-1]["relations"] < rows[0]["relations"]


def test_nothing_but_0_is_plain_training() -> None:
    family = FAMILIES["ours"]
    plain = fit(family.make(), Images(), family.task).state_dict()
    off = TinyBERT(family.make("teacher"), attention=0.0, hidden=0.0, embedding=0.0, alpha=0.0, stage=None)
    for method in (off, MiniLM(family.make("teacher"), weight=0.0)):
        found = fit(family.make(), Images(), family.task, methods=[method]).state_dict()
        assert all(torch.equal(plain[name], found[name]) for name in plain)


class Text(Classification):
    """Sentences for models of the transformers library."""

    def forward(self, model: nn.Module, batch: Any) -> Tensor:
        logits: Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return logits


class Sentences:
    """Batches of made-up words, some of them padded."""

    steps_per_epoch = 2

    def epoch(self, epoch: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        for step in range(start, 2):
            words = (torch.arange(24).reshape(4, 6) * 7 + step) % 30
            mask = torch.ones(4, 6, dtype=torch.long)
            mask[::2, 4:] = 0
            yield {"input_ids": words, "attention_mask": mask, "label": torch.arange(4) % CLASSES}

    def shard(self, rank: int, world: int) -> Sentences:
        return self


def sentences(kind: str, layers: int, width: int) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(layers)
    if kind == "bert":
        config = transformers.BertConfig(
            vocab_size=30, hidden_size=width, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=32,
            num_labels=CLASSES, max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        return transformers.BertForSequenceClassification(config).eval()
    config = transformers.DistilBertConfig(
        vocab_size=30, dim=width, n_layers=layers, n_heads=2, hidden_dim=32, num_labels=CLASSES,
        max_position_embeddings=16, dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0,
    )  # fmt: skip
    return transformers.DistilBertForSequenceClassification(config).eval()


@pytest.mark.parametrize(
    ("student", "teacher"), [("bert", "bert"), ("distilbert", "bert"), ("distilbert", "distilbert")]
)
def test_text_models_learn_from_text_models(student: str, teacher: str) -> None:
    model, large = sentences(student, 2, 16), sentences(teacher, 4, 24)
    for method in (TinyBERT(large, stage=0.5), MiniLM(large)):
        found, rows = rows_of(model, Text(CLASSES), method, Sentences(), epochs=6)
        assert list(found.state_dict()) == list(model.state_dict())
        name = "hidden" if isinstance(method, TinyBERT) else "relations"
        values = [row[name] for row in rows if row[name]]
        assert values[-1] < values[0]


def test_what_does_not_fit_is_told_before_training() -> None:
    family = FAMILIES["ours"]
    with pytest.raises(OptionError, match=r"has 3 heads in blocks.1, the student 4"):
        fit(family.make(), Images(), family.task, methods=[TinyBERT(deep(heads=3))])
    with pytest.raises(OptionError, match="has 2 blocks, the student 3"):
        fit(family.make(), Images(), family.task, methods=[TinyBERT(deep(depth=2))])
    with pytest.raises(OptionError, match="relation_heads: 5 does not divide the width 32"):
        fit(family.make(), Images(), family.task, methods=[MiniLM(deep(), relation_heads=5)])
    with pytest.raises(OptionError, match="teacher_block: no block 6"):
        MiniLM(deep(), teacher_block=6)
    with pytest.raises(TypeError, match="no anatomy for Plain"):
        TinyBERT(PLAIN.make())
    with pytest.raises(OptionError, match="stage: 2"):
        TinyBERT(deep(), stage=2.0)
    assert family.logits(family.make()).shape == (len(IMAGES), CLASSES)
