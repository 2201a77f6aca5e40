# SPDX-License-Identifier: Apache-2.0
"""The laws, for the methods of texts: on each family the input is untouched, neutral is the identity, and so on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_text
import torch
from families import everything, same
from torch import Tensor, nn

from featherweight import artifact
from featherweight.errors import OptionError
from featherweight.export import text
from featherweight.methods import power_bert, star_attention, vocabulary
from featherweight.methods.power_bert import NarrowingBlocks
from featherweight.models import pretrained
from featherweight.surgery import all_of, apply
from featherweight.tokenizer import open_tokens

transformers = pytest.importorskip("transformers")
onnx = pytest.importorskip("onnx")

TOKENS = open_tokens(tiny_text.tokenizer(transformers)).with_longest(60)
SIZE = {"vocab_size": len(tiny_text.vocabulary()), "max_position_embeddings": 66, "pad_token_id": 0}
KNOWN = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64, **SIZE}
DISTIL = {"dim": 32, "n_layers": 4, "n_heads": 4, "hidden_dim": 64, **SIZE}
FAMILIES = ("Bert", "Roberta", "Electra", "DistilBert")
KEEP = vocabulary.kept(TOKENS, ["the old tower in Paris was built by the king in 1889 for peace"])
SHORT, LONG = "the king", "the old tower in Paris was built by the king in 1889 for peace ."

Change = Callable[[nn.Module], nn.Module]
CHANGES: dict[str, Change] = {
    "power_bert": lambda model: apply(model, power_bert.plan(model, keep=0.6)),
    "star_attention": lambda model: apply(model, star_attention.plan(model, radius=2)),
    "vocabulary": lambda model: apply(model, vocabulary.plan(model, keep=KEEP)),
}
NEUTRAL: dict[str, Change] = {
    "power_bert": lambda model: apply(model, power_bert.plan(model, keep=1.0)),
    "star_attention": lambda model: apply(model, star_attention.plan(model, radius=None)),
    "vocabulary": lambda model: apply(model, vocabulary.plan(model, keep=vocabulary.kept(TOKENS, [], least=0))),
}


def model(family: str, head: str = "SequenceClassification") -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**(DISTIL if family == "DistilBert" else KNOWN))
    made = getattr(transformers, f"{family}For{head}")(config).eval()
    for parameter in made.parameters():
        if parameter.ndim == 2:
            parameter.data *= 6  # answers that differ
    return pretrained.with_tokens(made, TOKENS)


def read(*texts: str) -> dict[str, Tensor]:
    """Texts as the model gets them, in numbers that a smaller vocabulary has too."""
    batch = TOKENS.batch([TOKENS.encode(one, max_length=60)[0] for one in texts])
    found = {name: torch.from_numpy(value) for name, value in batch.items() if name != "token_type_ids"}
    return {**found, "input_ids": found["input_ids"].clamp(max=len(KEEP) - 1)}


def answers(model: nn.Module, *texts: str) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(**read(*texts)).logits
    return logits


CASES = [(family, method) for family in FAMILIES for method in CHANGES]


@pytest.mark.parametrize(("family", "method"), CASES)
def test_the_laws(tmp_path: Path, family: str, method: str) -> None:
    given = model(family)
    before, said = everything(given), answers(given, SHORT, LONG)
    new = CHANGES[method](given)
    assert same(everything(given), before)  # the input is untouched
    assert torch.equal(answers(NEUTRAL[method](given), SHORT, LONG), said)  # neutral is the identity
    found = answers(new, SHORT, LONG)
    assert found.isfinite().all() and not torch.equal(found, said)
    artifact.save(new, tmp_path / "model")
    assert torch.equal(answers(artifact.load(tmp_path / "model"), SHORT, LONG), found)  # saved and loaded exactly
    training = copy.deepcopy(new).train()
    training(**read(SHORT, LONG)).logits.sum().backward()
    assert torch.equal(answers(copy.deepcopy(training).eval(), SHORT, LONG), found)  # can be copied in training


@pytest.mark.parametrize("method", ["power_bert", "star_attention"])
def test_a_batch_answers_as_each_alone(method: str) -> None:
    new = CHANGES[method](model("Bert"))
    together = answers(new, SHORT, LONG, "a")
    alone = torch.cat([answers(new, one) for one in (SHORT, LONG, "a")])
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "method"),
    [pytest.param("Bert", "power_bert", marks=pytest.mark.slow), ("DistilBert", "star_attention")],
)
def test_an_exported_file_agrees(tmp_path: Path, family: str, method: str) -> None:
    new = CHANGES[method](model(family))
    made = text.export(new, tmp_path / "model.onnx", texts=[SHORT, LONG, "a", ""])
    assert made.parity.top1_agreement == 1 and made.max_abs_difference < 1e-3
    sizes = [[axis.dim_param for axis in port.type.tensor_type.shape.dim] for port in onnx.load(made.path).graph.input]
    assert all(one == ["batch", "length"] for one in sizes)


def test_tokens_are_really_dropped() -> None:
    new = CHANGES["power_bert"](model("Bert"))
    (narrow,) = all_of(new, NarrowingBlocks).values()
    seen: list[int] = []
    for block in narrow.blocks:
        block.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    answers(new, LONG)
    assert seen[0] > seen[1] > seen[2] > seen[3] and len(seen) == 4


def test_a_token_sees_its_neighbors_and_the_first() -> None:
    allowed = star_attention.star(6, radius=1, relays=1)[0, 0]
    assert allowed[0].all() and allowed[:, 0].all()
    assert allowed[3].tolist() == [True, False, True, True, True, False]
    whole = CHANGES["star_attention"](model("Bert"))
    assert torch.allclose(answers(whole, "a"), answers(model("Bert"), "a"), atol=1e-6)  # too short for a difference


def test_what_cannot_be_done_is_said() -> None:
    with pytest.raises(OptionError, match="no text classifier"):
        power_bert.plan(model("Bert", "QuestionAnswering"))
    twice = CHANGES["star_attention"](model("Bert"))
    with pytest.raises(OptionError, match="already"):
        apply(twice, star_attention.plan(twice, radius=1))
    with pytest.raises(OptionError, match="radius"):
        apply(model("Bert"), star_attention.plan(model("Bert"), radius=0))
