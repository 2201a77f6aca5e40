# SPDX-License-Identifier: Apache-2.0
"""The general methods on text models of transformers: smaller, saved and loaded to the bit, exported, read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_text
import torch
from families import everything, same
from torch import nn

from featherweight import artifact, pipeline
from featherweight.data.text import TextBatches, located, questions, sentences
from featherweight.errors import InputError, OptionError
from featherweight.export import openvino, text
from featherweight.methods import vocabulary
from featherweight.methods.drop_blocks import drop_blocks
from featherweight.methods.dynamic_int8 import quantize_dynamic
from featherweight.methods.lowrank import factorize
from featherweight.methods.prune import prune
from featherweight.methods.quantize import quantize
from featherweight.methods.share import share
from featherweight.models import pretrained, zoo
from featherweight.scores import answers
from featherweight.tasks.text import QuestionAnswering, TextClassification
from featherweight.tokenizer import open_tokens
from featherweight.train import fit

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
COMMON = {**SIZES, "vocab_size": len(tiny_text.vocabulary()), "max_position_embeddings": 66, "pad_token_id": 0}
DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": len(tiny_text.vocabulary())}
TOKENS = open_tokens(tiny_text.tokenizer(transformers)).with_longest(24)
ENCODED = [TOKENS.encode(one, max_length=24)[0] for one in tiny_text.texts()]
SENTENCES = ["the old tower", "king"]
ASKED = {"question": tiny_text.WHO, "context": tiny_text.SHORT}


def model(name: str) -> nn.Module:
    kind = name.replace("ForSequenceClassification", "").replace("ForQuestionAnswering", "")
    config = getattr(transformers, f"{kind}Config")(**(DISTIL if kind == "DistilBert" else COMMON))
    torch.manual_seed(0)
    made = getattr(transformers, name)(config).eval()
    for parameter in made.parameters():
        if parameter.ndim == 2:
            parameter.data *= 8  # answers that differ
    return pretrained.with_tokens(made, TOKENS)


def batches(**options: Any) -> TextBatches:
    count = len(ENCODED)
    targets = {"label": [i % 2 for i in range(count)], "start": [0] * count, "end": [1] * count}
    return TextBatches(TOKENS, ENCODED, targets, batch_size=4, **options)


METHODS: dict[str, Callable[[nn.Module, Any], nn.Module]] = {
    "neurons": lambda model, task: prune(model, mlp=0.5, heads=0.0),
    "heads": lambda model, task: prune(model, mlp=0.0, heads=0.5),
    "blocks": lambda model, task: drop_blocks(model, count=1, batches=list(batches().epoch(0)), task=task),
    "factors": lambda model, task: factorize(model, keep=0.5),
    "int8": lambda model, task: quantize(model, list(batches().epoch(0)), task),
}
ALONE = ("neurons", "blocks")  # what a config.json can say
MODELS = (
    "BertForSequenceClassification", "BertForQuestionAnswering", "RobertaForSequenceClassification",
    "ElectraForSequenceClassification", "DistilBertForSequenceClassification",
)  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_a_smaller_model_is_saved_and_loaded_to_the_bit(tmp_path: Path, name: str, method: str) -> None:
    given = model(name)
    asks = name.endswith("QuestionAnswering")
    before, inputs = everything(given), ASKED if asks else SENTENCES
    small = METHODS[method](given, QuestionAnswering() if asks else TextClassification(2))
    assert same(everything(given), before)
    answer = pipeline(model=small)(inputs)
    artifact.save(small, tmp_path)
    assert pipeline(model=tmp_path)(inputs) == answer
    assert (tmp_path / "config.json").exists() == (method in ALONE)
    assert f"pipeline_tag: {pretrained.task_of(small)}" in (tmp_path / "README.md").read_text(encoding="utf-8")
    if method in ALONE:
        theirs = type(small).from_pretrained(tmp_path, local_files_only=True).eval()
        ids = torch.tensor([ENCODED[0].ids])
        with torch.no_grad():
            for mine, other in zip(small(input_ids=ids).to_tuple(), theirs(input_ids=ids).to_tuple(), strict=True):
                assert torch.allclose(mine, other, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("RobertaForSequenceClassification", lambda given: quantize_dynamic(given)),
        ("DistilBertForSequenceClassification", lambda given: prune(given, mlp=0.5, heads=0.5)),
    ],
)
def test_a_smaller_model_is_exported(tmp_path: Path, name: str, make: Callable[[nn.Module], nn.Module]) -> None:
    small = make(model(name))
    text.export(small, tmp_path / "model.onnx", texts=tiny_text.texts())
    wanted, found = (pipeline(model=one)(SENTENCES, top_k=None) for one in (small, tmp_path / "model.onnx"))
    for one, other in zip(wanted, found, strict=True):
        assert [x["label"] for x in one] == [x["label"] for x in other]
        assert [x["score"] for x in one] == pytest.approx([x["score"] for x in other], abs=2e-2)


def test_a_vocabulary_of_what_is_used(tmp_path: Path) -> None:
    given = model("BertForSequenceClassification")
    used = ["the old tower", "king 北京", "towers"]
    before = everything(given)
    small, fewer = vocabulary.trimmed(given, TOKENS, texts=used)
    assert same(everything(given), before)
    kept = [fewer.token(number) for number in range(len(fewer))]
    assert {"[PAD]", "[CLS]", "the", "tower", "##s", "北", "a", "##a"} <= set(kept) and "queen" not in kept
    assert len(kept) < len(TOKENS)
    pretrained.with_tokens(small, fewer)
    assert pipeline(model=small)(used, top_k=None) == pipeline(model=given)(used, top_k=None)
    assert pipeline(model=small)("queen")[0]["score"] > 0  # spelled in letters
    artifact.save(small, tmp_path)
    assert pipeline(model=tmp_path)(used) == pipeline(model=given)(used)
    theirs = transformers.pipeline("text-classification", model=str(tmp_path), device="cpu")
    assert [one["score"] for one in theirs(used)] == pytest.approx([x["score"] for x in pipeline(model=given)(used)])
    assert vocabulary.plan(given, keep=vocabulary.kept(TOKENS, [], least=0)) == []
    with pytest.raises(OptionError, match="hold no token"):
        vocabulary.kept(TOKENS, [])
    with pytest.raises(OptionError, match="padding token at its place"):
        vocabulary.plan(given, keep=[1, 2, 3])


def test_a_base_is_a_name_and_numbers() -> None:
    base = zoo.base_of(model("BertForSequenceClassification"))
    assert base is not None
    again = zoo.build(base)
    assert zoo.base_of(again) == base
    for wrong, words in (
        ({"name": "transformers:Evil", "config": {}}, "no 'Evil'"),
        ({"name": "transformers:os.system", "config": {}}, "no 'os.system'"),
        ({**base, "config": {**base["config"], "num_hidden_layers": 10**6}}, "not in 1..1000"),
        ({**base, "config": {**base["config"], "hidden_size": 10**9}}, "not in 1..1000000"),
        ({**base, "config": {**base["config"], "auto_map": {}}}, "not a field"),
        ({**base, "config": {**base["config"], "attn_implementation": "somebody/kernel"}}, "not a field"),
    ):
        with pytest.raises(ValueError, match=words):
            zoo.build(wrong)


def test_training_learns_sentences_and_questions() -> None:
    for name, task in (
        ("BertForSequenceClassification", TextClassification(2)),
        ("BertForQuestionAnswering", QuestionAnswering()),
    ):
        before = model(name)
        after = fit(before, batches(), task, epochs=6)
        assert task.evaluate(after, batches(shuffle=False).epoch(0))["n"] == len(ENCODED)
        with torch.no_grad():
            batch = next(batches(shuffle=False).epoch(0))
            first, last = (task.loss(task.forward(one.eval(), batch), batch)["task"] for one in (before, after))
        assert last < first


def test_files_of_sentences(tmp_path: Path) -> None:
    forms = {
        "plain.txt": "1 a good film\n0 a bad film\n",
        "tabbed.txt": "a good film\t1\na bad film\t0\n",
        "table.tsv": "sentence\tlabel\na good film\t1\na bad film\t0\n",
        "table.csv": 'text,label\n"a good film",1\na bad film,0\n',
        "lines.jsonl": '{"text": "a good film", "label": 1}\n{"text": "a bad film", "label": 0}\n',
    }
    for name, content in forms.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        found = sentences(tmp_path / name)
        assert (found.texts, found.labels, found.names) == (("a good film", "a bad film"), (1, 0), ("0", "1")), name
    for name, content, words in (
        ("latin.txt", "1 caf\xe9".encode("latin-1"), "encoding"),
        ("other.txt", b"no label here\n", "line 1 is neither"),
        ("bad.jsonl", b'{"text": "a"}\n', "line 1 needs a text"),
        ("empty.txt", b"\n\n", "no labelled texts"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=words):
            sentences(tmp_path / name)


def test_files_of_questions(tmp_path: Path) -> None:
    context = tiny_text.SHORT
    answer = {"text": "the king", "answer_start": context.index("the king")}
    paragraph = {"context": context, "qas": [{"question": tiny_text.WHO, "answers": [answer]}]}
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    (one,) = questions(path)
    assert one.answers == ("the king",) and context[one.starts[0] :].startswith("the king")
    (batch,) = located(TOKENS, [one], max_length=24, shuffle=False).epoch(0)
    ids = batch["input_ids"][0, batch["start"][0] : batch["end"][0] + 1]
    assert TOKENS.decode(ids.tolist()) == "the king"
    (other,) = located(TOKENS, [one], max_length=16, stride=2, shuffle=False, batch_size=9).epoch(0)
    pairs = list(zip(other["start"].tolist(), other["end"].tolist(), strict=True))
    assert len(pairs) > 1 and (0, 0) in pairs  # a window without the answer points to the first token
    path.write_text('{"data": [{"paragraphs": 3}]}')
    with pytest.raises(InputError, match="SQuAD's form"):
        questions(path)


def test_texts_of_like_lengths_share_a_batch() -> None:
    mixed, alike = batches(shuffle=True, seed=3), batches(shuffle=True, seed=3, alike=True)
    seen = [[sorted(row.tolist()) for batch in of.epoch(1) for row in batch["input_ids"]] for of in (mixed, alike)]
    tokens = [sorted(tuple(n for n in row if n) for row in rows) for rows in seen]
    assert tokens[0] == tokens[1] and len(seen[1]) == len(ENCODED)  # each text once
    padding = [sum(int((batch["attention_mask"] == 0).sum()) for batch in of.epoch(1)) for of in (mixed, alike)]
    assert padding[1] < padding[0]
    first, *others = ([batch["input_ids"].tolist() for batch in alike.epoch(n)] for n in range(5))
    assert any(other != first for other in others)
    assert [batch["input_ids"].tolist() for batch in alike.epoch(0, 2)] == first[2:]


def test_a_shared_embedding_stays_bytes_in_openvino(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    small = share(model("BertForSequenceClassification"), bits=8)
    embedding: Any = small.get_submodule("bert.embeddings.word_embeddings")
    rows = torch.tensor([[3, 1, 0, 7]])
    assert torch.equal(embedding(rows), torch.nn.functional.embedding(rows, embedding.weight))
    assert torch.equal(embedding.train()(rows), embedding.eval()(rows))
    file = text.export(small, tmp_path / "model.onnx", texts=SENTENCES).path
    openvino.export_text(file, tmp_path / "openvino_model.xml", model=small, texts=SENTENCES)
    graph = (tmp_path / "openvino_model.xml").read_text()
    shape = ", ".join(str(n) for n in embedding.codes.shape)
    assert re.search(rf'element_type="u8" shape="{shape}"', graph)
    assert not re.search(rf'element_type="f32" shape="{shape}"', graph)


def test_exact_match_and_f1() -> None:
    assert answers.exact("The  tower!", ["tower"]) == 1 and answers.exact("towers", ["tower"]) == 0
    assert answers.f1("the old tower", ["tower", "bridge"]) == pytest.approx(2 / 3)
    assert answers.f1("长江的水", ["长江"]) == pytest.approx(2 * 2 / 6)
    assert answers.exact("长江。", ["长江"]) == 1 and answers.f1("", ["a"]) == 1 and answers.f1("x", []) == 0
