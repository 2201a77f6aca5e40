# SPDX-License-Identifier: Apache-2.0
"""Recipes of text models: data in files, trained, made small, exported, measured, reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_text
import torch

from featherweight import artifact, pipeline, recipe, runs, texting, verbs
from featherweight.data import corpus
from featherweight.data.text import Asked
from featherweight.errors import FeatherweightError, InputError, OptionError
from featherweight.models import pretrained

transformers = pytest.importorskip("transformers")

GOOD, BAD = ("new", "red", "fast", "light", "peace"), ("old", "black", "short", "war", "long")
MEASURED = {"measure": {"batch": [1], "repeats": 6, "budget_s": 0.1}}
QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 16, "lr": 3e-3}


def sentences(count: int = 80) -> list[tuple[str, str]]:
    random = np.random.default_rng(0)
    rows = []
    for i in range(count):
        words = list(
            random.choice(["the", "river", "city", "tower", "bridge", "king"], size=int(random.integers(2, 7)))
        )
        rows.append((" ".join([*words, str(random.choice(GOOD if i % 2 else BAD))]), "good" if i % 2 else "bad"))
    return rows


def texts(folder: Path) -> Path:
    """A folder of sentences in two parts, in two forms."""
    folder.mkdir(exist_ok=True)
    rows = sentences()
    lines = "".join(f"{label}\t{text}\n" for text, label in rows[:60])
    (folder / "small.train.tsv").write_text(f"label\tsentence\n{lines}")
    (folder / "dev.jsonl").write_text("\n".join(json.dumps({"text": t, "label": n}) for t, n in rows[60:]))
    (folder / "readme.txt").write_text("not a part")
    return folder


def asked(path: Path) -> Path:
    random = np.random.default_rng(0)
    paragraphs = []
    for _ in range(24):
        color, side = (str(random.choice(words)) for words in (["red", "green", "blue"], ["north", "south", "east"]))
        context = f"In the {side} of the city was a {color} bridge built by the king."
        answers = [{"text": color, "answer_start": context.index(color)}]
        paragraphs.append({"context": context, "qas": [{"question": "What bridge was built?", "answers": answers}]})
    path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    return path


def folder_of(place: Path, kind: str = "BertModel", **config: Any) -> Path:
    """A folder of the transformers library."""
    torch.manual_seed(0)
    tiny_text.model(transformers, kind=kind, **config).save_pretrained(place)
    tiny_text.tokenizer(transformers).save_pretrained(place)
    return place


def written(tmp_path: Path, steps: list[Any], **more: Any) -> dict[str, Any]:
    encoder = folder_of(tmp_path / "encoder")
    train = {**QUICK, **more.pop("train", {})}
    known = {"task": "text-classification", "model": str(encoder), "data": str(texts(tmp_path / "data"))}
    return {**known, "train": train, "output": str(tmp_path / "runs"), "threads": 1, "steps": steps, **more}


@pytest.mark.slow
def test_sentences_are_trained_made_small_and_reported(tmp_path: Path) -> None:
    steps = [
        "teacher", "baseline", {"tinybert": {"epochs": 1}}, "vocabulary", {"prune": {"mlp": 0.5, "heads": 0.5}},
        "quantize", "share_embeddings", {"code": {"graph": True}}, {"export": {"images": 8}}, MEASURED, "report",
    ]  # fmt: skip
    plan = written(tmp_path, steps)
    done = runs.run(recipe.parse({**plan, "teacher": plan["model"]}, "test"))
    place = done.folder
    report = json.loads((place / "report.json").read_text())
    assert report["task"] == "text-classification" and report["classes"] == ["bad", "good"]
    figures = [stage["measurement"]["accuracy"] for stage in report["stages"]]
    assert all(one["of"] == "texts" and one["n"] == 6 for one in figures)  # a tenth is split off as test
    assert "texts" in (place / "report.html").read_text()
    rows = done.results["measure"]["rows"]
    assert rows[-1]["sizes"]["file"] < 0.6 * rows[0]["sizes"]["file"]
    assert rows[-1]["params"] < rows[0]["params"]
    last = artifact.load(place / "model")
    in_memory, exported, compact, graph = (
        pipeline("text-classification", one)
        for one in (last, place / "export/model.onnx", place / "compact/model.fwz", place / "compact/graph.fwz")
    )
    assert (compact.runner.backend, graph.runner.backend) == ("torch", "onnxruntime")
    for text, _ in sentences()[60:]:
        one, other = in_memory(text), exported(text)
        assert compact(text) == one and graph(text) == other
        assert one[0]["label"] == other[0]["label"] and one[0]["score"] == pytest.approx(other[0]["score"], abs=0.02)
    assert len(in_memory.tokens) < len(tiny_text.vocabulary())
    assert runs.run(recipe.parse({**plan, "teacher": plan["model"]}, "test")).key == done.key  # found as it was left


def test_questions_are_trained_and_judged_by_f1(tmp_path: Path) -> None:
    steps = ["baseline", {"star_attention": {"epochs": 1}}, {"export": {"formats": ["onnx"], "images": 4}}, MEASURED]
    plan = written(tmp_path, [*steps, "report"], data=str(asked(tmp_path / "asked.json")), task="question-answering")
    done = runs.run(recipe.parse({**plan, "text": {"max_length": 32}}, "test"))
    rows = done.results["measure"]["rows"]
    assert rows[0]["accuracy"]["torch eager"].keys() == {"f1", "exact", "interval", "n", "of"}
    pipe = pipeline("question-answering", done.folder / "export" / "model.onnx")
    one = done.data.test[0]
    assert pipe(question=one.question, context=one.context)["answer"] in one.context
    measured = rows[-1]["accuracy"]["onnxruntime"]
    found = verbs.val(done.folder / "export" / "model.onnx", done.data, part="test", threads=1)
    assert found["f1"] == pytest.approx(measured["f1"]) and found["n"] == measured["n"] and "F1" in found["text"]
    assert "F1 %" in (done.folder / "report.md").read_text()


def test_power_bert_and_distilled_answers(tmp_path: Path) -> None:
    steps = ["baseline", {"power_bert": {"keep": 0.5, "epochs": 1}}]
    done = runs.run(recipe.parse(written(tmp_path, steps), "test"))
    assert [stage.title for stage in done.stages] == ["baseline", "tokens dropped (keep 0.5)"]
    assert any(edit.kind == "eliminate_tokens" for edit in artifact.load(done.folder / "model")._featherweight_edits)


def test_compress_takes_a_folder_of_transformers(tmp_path: Path) -> None:
    names = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    model = folder_of(tmp_path / "model", "BertForSequenceClassification", **names)
    data = texts(tmp_path / "data")
    own = tmp_path / "own.yaml"
    own.write_text("task: text-classification\nsteps: [load, vocabulary]\n")
    known: dict[str, Any] = {"project": tmp_path / "runs", "name": "small", "overrides": ["threads=1"]}
    done = runs.compress(model, data, max_drop="100%", target="1000MB", recipe_file=own, **known)
    assert [stage.title.split()[0] for stage in done.stages] == ["baseline", "vocabulary"] and done.stages[1].kept
    assert len(texting.tokens_of(done.model)) < len(tiny_text.vocabulary())
    plan = recipe.read("compress_text", given={"model": str(model), "data": str(data)})
    assert [step.name for step in plan.steps][:3] == ["load", "vocabulary", "prune"]
    assert plan.train.lr == texting.USUAL["lr"] and texting.task_of_model(model) == "text-classification"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"steps": ["baseline", "tokens"]}, "a text model cannot have it"),
        ({"model": "vit_digits"}, "no folder of a text model"),
        ({"data": {"source": "x", "no": 1}}, "no"),
        ({"text": {"max_length": 2}}, "8"),
        ({"steps": ["load", "teacher", "distill"]}, "how: logits"),
        ({"task": "text-clasification"}, "did you mean"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    plan = {"task": "text-classification", "model": str(tmp_path), "data": "x.tsv", "steps": ["train"]}
    plan |= {"teacher": str(tmp_path), **change}
    with pytest.raises(InputError, match=match):
        recipe.parse(plan, "test")


def test_the_steps_of_texts_are_for_texts() -> None:
    plan = {"model": "vit_digits", "data": "digits", "steps": ["baseline", "vocabulary"]}
    with pytest.raises(InputError, match="text-classification"):
        recipe.parse(plan, "test")


def test_a_model_that_knows_other_classes(tmp_path: Path) -> None:
    names = {"id2label": {0: "bad", 1: "so", 2: "good"}, "label2id": {"bad": 0, "so": 1, "good": 2}}
    model = folder_of(tmp_path / "model", "BertForSequenceClassification", num_labels=3, **names)
    plan = written(tmp_path, ["load"], model=str(model))
    with pytest.raises(OptionError, match="knows 3 classes"):
        runs.run(recipe.parse(plan, "test"))
    done = runs.run(recipe.parse({**plan, "model": {"name": str(model), "reset_head": True}, "name": "new"}, "test"))
    assert pretrained.labels_of(done.model) == ("bad", "good")


def test_a_file_is_split_and_paragraphs_stay_together(tmp_path: Path) -> None:
    found = corpus.load(asked(tmp_path / "asked.json"), task="question-answering", val=0.25, test=0.25)
    parts = (found.train, found.val, found.test)
    contexts = [{one.context for one in part} for part in parts]
    assert not (contexts[0] & contexts[1]) and not (contexts[0] & contexts[2]) and not (contexts[1] & contexts[2])
    assert sum(len(part) for part in parts) == 24 and isinstance(found.train[0], Asked)
    again = corpus.load(tmp_path / "asked.json", task="question-answering", val=0.25, test=0.25)
    assert again.fingerprint == found.fingerprint
    other = corpus.load(tmp_path / "asked.json", task="question-answering", val=0.25, test=0.25, seed=1)
    assert other.fingerprint != found.fingerprint


def test_columns_and_classes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "some.csv"
    path.write_text("said,stars\n" + "".join(f"the king {i},{i % 2}\n" for i in range(20)))
    found = corpus.load(path, text="said", label="stars", classes=["bad", "good"])
    assert found.classes == ("bad", "good")
    assert all(label == int(text[-1]) % 2 for text, label in (*found.train, *found.val, *(found.test or ())))
    with pytest.raises(InputError, match="said"):
        corpus.load(path, text="said", label="none")


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({}, "no file of the part train"),
        ({"train.txt": "1 a\n0 b\n", "a-train.csv": "text,label\na,1\n"}, "two files"),
        ({"train.txt": "1 a\n0 b\n", "dev.txt": "2 c\n"}, "label '2'"),
        ({"train.txt": "1 a\n1 b\n"}, "one label"),
        ({"train.parquet": "no parquet"}, "parquet"),
    ],
)
def test_a_folder_that_is_no_data_set(tmp_path: Path, files: dict[str, str], match: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(FeatherweightError, match=match):
        corpus.load(tmp_path)


def test_parquet_is_read(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = sentences(30)
    pq.write_table(pa.table({"text": [t for t, _ in rows], "label": [n for _, n in rows]}), tmp_path / "all.parquet")
    found = corpus.load(tmp_path / "all.parquet")
    assert found.classes == ("bad", "good") and len(found.train) == 24


def test_train_text_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from featherweight.cli import main

    encoder, data = folder_of(tmp_path / "encoder"), texts(tmp_path / "data")
    words = ["train", "text", str(encoder), "--data", str(data), "--epochs", "1", "--project", str(tmp_path / "runs")]
    assert main([*words, "--name", "new", "--set", "steps=[train]", "--set", "threads=1"]) == 0
    assert pipeline("sentiment-analysis", tmp_path / "runs/new/model")("the new river")[0]["label"] in ("bad", "good")
    told = verbs.val(tmp_path / "runs/new/model", data, part="train", threads=1)
    assert told["n"] == 54 and told["of"] == "texts" and told["top1"] == told["correct"] / told["n"]
    assert main(["val", str(tmp_path / "runs/new/model"), "--data", str(data)]) == 0
    assert "20 texts" in capsys.readouterr().out
    assert main([*words[:5], "--teacher", str(encoder), "--distill", "token"]) == 2
    assert "of pictures" in capsys.readouterr().err


STEPS: list[tuple[str, list[Any]]] = [
    ("question-answering", ["load", {"quantize_weights": {"weights": "int4", "group": 16}}]),
    ("text-classification", ["load", {"prune": {"heads": 0.5, "epochs": 1}}, {"share": {"bits": 4}}, "code"]),
    ("text-classification", ["teacher", "load", {"minilm": {"epochs": 1}}, {"drop": {"count": 1}}, {"lowrank": {}}]),
    ("text-classification", ["load", {"quantize_weights": {"weights": "int8"}}]),
    ("question-answering", ["load", "quantize_dynamic"]),
]


@pytest.mark.parametrize(
    ("task", "steps"),
    [*STEPS[:2], *(pytest.param(*one, marks=pytest.mark.slow) for one in STEPS[2:])],
    ids=lambda one: one if isinstance(one, str) else str(one[-1]),
)
def test_general_steps_on_texts(tmp_path: Path, task: str, steps: list[Any]) -> None:
    asks = task == "question-answering"
    names = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    kind = "BertForQuestionAnswering" if asks else "BertForSequenceClassification"
    model = str(folder_of(tmp_path / "model", kind, **({} if asks else names)))
    data = asked(tmp_path / "asked.json") if asks else texts(tmp_path / "data")
    known = {"model": model, "teacher": model, "data": str(data), "text": {"max_length": 32}, "train": QUICK}
    made = [*steps, {"export": {"formats": ["onnx"], "images": 4}}]
    plan = {**known, "task": task, "steps": made, "output": str(tmp_path / "runs"), "threads": 1}
    done = runs.run(recipe.parse(plan, "test"))
    question = {"question": "What bridge was built?", "context": "In the north of the city was a red bridge."}
    given = question if asks else "the new river"
    last = done.folder / "compact" / "model.fwz" if steps[-1] == "code" else done.folder / "model"
    wanted, found = pipeline(task, last)(given), pipeline(task, done.folder / "export" / "model.onnx")(given)
    one, other = (answer if asks else answer[0] for answer in (wanted, found))
    assert {**one, "score": 0} == {**other, "score": 0} and one["score"] == pytest.approx(other["score"], abs=0.02)
    sizes = [(stage.place / "model" / "model.safetensors").stat().st_size for stage in done.stages]
    assert sizes[-1] < sizes[0]
