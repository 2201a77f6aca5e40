# SPDX-License-Identifier: Apache-2.0
"""Text classification: answers of transformers itself, from every kind of model, and every kind of bad input."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_text
import torch
from PIL import Image
from tiny_text import same

from featherweight import artifact, hub, pipeline
from featherweight.errors import FeatherweightError, InputError, OptionError
from featherweight.export import openvino, text
from featherweight.models import pretrained
from featherweight.tokenizer import open_tokens

transformers = pytest.importorskip("transformers")
LABELS = {0: "bad", 1: "good", 2: "mixed"}
TOKENIZER = tiny_text.tokenizer(transformers)
TEXTS = [one for one in tiny_text.texts() if len(one) < 100]


def classifier(**options: Any) -> Any:
    known = {"id2label": LABELS, "label2id": {name: i for i, name in LABELS.items()}, **options}
    return tiny_text.model(transformers, kind="BertForSequenceClassification", **known)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in every form: ours, exported, of transformers."""
    folder = tmp_path_factory.mktemp("models")
    model = pretrained.with_tokens(classifier(), open_tokens(TOKENIZER))
    artifact.save(model, folder / "ours")
    artifact.save(model, folder / "ours.fwz")
    text.export(model, folder / "model.onnx")
    (folder / "openvino").mkdir()
    openvino.export_text(folder / "model.onnx", folder / "openvino" / "openvino_model.xml", model=model)
    model.save_pretrained(folder / "theirs")
    TOKENIZER.save_pretrained(folder / "theirs")
    return folder


@pytest.fixture(scope="module")
def classify(files: Path) -> Any:
    return pipeline("sentiment-analysis", files / "model.onnx")


INPUTS: tuple[Any, ...] = (
    "the old tower", "", ["king"], ["king", "北京 是 old", ""], {"text": "king", "text_pair": "queen"},
    [{"text": "king", "text_pair": "queen"}, {"text": "river"}],
)  # fmt: skip
OPTIONS: tuple[dict[str, Any], ...] = (
    {}, {"top_k": 1}, {"top_k": None}, {"top_k": 2}, {"top_k": 9}, {"function_to_apply": "sigmoid"},
    {"function_to_apply": "NONE", "top_k": None}, {"batch_size": 2}, {"truncation": True, "max_length": 4},
    {"padding": "max_length", "max_length": 20},
)  # fmt: skip


@pytest.mark.parametrize("made", [{}, {"top_k": None}, {"top_k": 1}, {"function_to_apply": "none"}], ids=str)
def test_answers_are_those_of_transformers(made: dict[str, Any]) -> None:
    model = classifier()
    theirs = transformers.pipeline("text-classification", model=model, tokenizer=TOKENIZER, device="cpu", **made)
    ours = pipeline("text-classification", model, tokenizer=TOKENIZER, **made)
    for given in INPUTS:
        for options in OPTIONS:
            same(ours(given, **options), theirs(given, **options))


@pytest.mark.parametrize(
    "config",
    [
        {"problem_type": "regression", "num_labels": 1, "id2label": {0: "x"}, "label2id": {"x": 0}},
        {"problem_type": "regression"},
        {"problem_type": "multi_label_classification"},
        {"problem_type": "single_label_classification"},
        {"num_labels": 1, "id2label": {0: "x"}, "label2id": {"x": 0}},
    ],
    ids=str,
)
def test_what_is_applied_goes_by_the_kind_of_problem(config: dict[str, Any], tmp_path: Path) -> None:
    model = pretrained.with_tokens(classifier(**config), open_tokens(TOKENIZER))
    theirs = transformers.pipeline("text-classification", model=model, tokenizer=TOKENIZER, device="cpu")
    wanted = theirs(["king", "the old tower"], top_k=None)
    same(pipeline(model=model)(["king", "the old tower"], top_k=None), wanted)
    if config == {"problem_type": "multi_label_classification"}:
        text.export(model, tmp_path / "model.onnx")
        same(pipeline(model=tmp_path / "model.onnx")(["king", "the old tower"], top_k=None), wanted)


def test_every_kind_of_model_gives_the_same_answer(files: Path) -> None:
    wanted = pipeline(None, classifier(), tokenizer=TOKENIZER)(TEXTS, top_k=None)
    places = ("ours", "ours.fwz", "ours/model.safetensors", "model.onnx", "openvino/openvino_model.xml", "theirs")
    for place in places:
        pipe = pipeline(model=files / place)
        assert pipe.task == "text-classification", place
        same(pipe(TEXTS, top_k=None), wanted)
    same(pipeline("text-classification", files / "model.onnx", backend="openvino")(TEXTS, top_k=None), wanted)
    assert pipeline("sentiment-analysis", files / "ours").task == "sentiment-analysis"


def test_our_folder_loads_in_transformers_alone(files: Path) -> None:
    theirs = transformers.pipeline("text-classification", model=str(files / "ours"), device="cpu")
    same(pipeline(model=files / "ours")(TEXTS), theirs(TEXTS))


@pytest.mark.parametrize("place", ["ours", "model.onnx", "openvino/openvino_model.xml"])
def test_a_batch_of_one_answers_as_a_batch_of_32(files: Path, place: str) -> None:
    pipe = pipeline(model=files / place)
    mixed = (TEXTS * 4)[:32]
    same(pipe(mixed, top_k=None, batch_size=32), [pipe(one, top_k=None) for one in mixed])
    same(pipe(mixed, top_k=None, batch_size=7), pipe(mixed, top_k=None, batch_size=1))


def test_a_generator_is_read_one_batch_ahead_and_no_more(classify: Any) -> None:
    read: list[int] = []

    def some() -> Iterator[str]:
        for i in range(10):
            read.append(i)
            yield "king"

    found = classify(some(), batch_size=4)
    assert read == []
    assert next(found)["label"] in LABELS.values()
    assert read == [0, 1, 2, 3]
    assert len(list(found)) == 9


def test_ten_thousand_texts_keep_memory_flat(classify: Any) -> None:
    stream = classify((f"king {i} of the river" for i in range(10_000)), batch_size=32)
    for _ in range(500):
        next(stream)
    tracemalloc.start()
    count = sum(1 for _ in stream)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 9_500
    assert peak < 2_000_000, f"{peak} bytes for texts that should be gone"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "None is no text"),
        ([None], "None is no text"),
        (["king", 3], "int is no text"),
        (b"king", "bytes is no text"),
        (Image.new("RGB", (4, 4)), "Image is no text .a picture"),
        (np.zeros((4, 4, 3), np.uint8), "ndarray is no text .a picture"),
        (("king", "queen"), "tuple is no text"),
        ([["king"]], "list is no text"),
        ({"txt": "king"}, "no 'txt'; did you mean 'text'"),
        ({"text_pair": "king"}, "must have 'text'"),
        ({"text": None}, "None is no text"),
        ("a\ud83d", "surrogate"),
        (3.5, "float is no text"),
        ("a " * 200, "has 202 tokens, the model takes 64; truncation=True cuts it"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bad_input_is_one_line(classify: Any, given: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        classify(given)
    assert "\n" not in str(caught.value)


def test_what_transformers_answers_is_answered(classify: Any) -> None:
    assert classify("")[0]["label"] in LABELS.values()
    assert classify([]) == []
    assert classify("a " * 200, truncation=True)[0]["label"] in LABELS.values()
    assert classify("\0 \u200b \n")[0] == classify("")[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_k": 0}, "top_k: must be 1 or more"),
        ({"top_k": "2"}, "top_k: must be a number"),
        ({"function_to_apply": "softmx"}, "did you mean 'softmax'"),
        ({"batch_size": 0}, "batch_size"),
        ({"truncation": "only_frst"}, "did you mean 'only_first'"),
        ({"padding": "long"}, "no 'long'"),
        ({"max_length": 0}, "max_length: must be 1"),
        ({"topk": 2}, "did you mean 'top_k'"),
    ],
    ids=str,
)
def test_a_wrong_option_of_a_call_is_one_line(classify: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        classify("king", **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": "sentiment"}, "no 'sentiment' here; did you mean .* Known: image-classification, object-detection"),
        ({"task": "question-answering"}, "this model was made for 'text-classification'"),
        ({"task": "image-classification"}, "image-classification"),
        ({"preprocess": {}}, "goes with pictures"),
        ({"classes": ["one"]}, "1 names, but the model answers with 3"),
        ({"tokenizer": "nowhere"}, "nowhere: missing"),
        ({"max_pixels": 9}, "no such option"),
    ],
    ids=str,
)
def test_a_wrong_pipeline_is_one_line(files: Path, options: dict[str, Any], words: str) -> None:
    known = {"task": "text-classification", "model": files / "ours", **options}
    with pytest.raises(FeatherweightError, match=words) as caught:
        pipeline(known.pop("task"), **known)("king")
    assert "\n" not in str(caught.value)


def test_a_model_without_its_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="BertForSequenceClassification comes without one"):
        pipeline("text-classification", classifier())
    classifier().save_pretrained(tmp_path)
    with pytest.raises(OptionError, match="comes without one; give tokenizer="):
        pipeline("text-classification", tmp_path)
    with pytest.raises(OptionError, match="comes without one"):
        text.export(classifier(), tmp_path / "model.onnx")


def test_a_module_of_your_own(tmp_path: Path) -> None:
    class Bag(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(len(tiny_text.vocabulary()), 8)
            self.head = torch.nn.Linear(8, 2)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            weight = attention_mask[..., None].float()
            return self.head((self.embedding(input_ids) * weight).sum(1) / weight.sum(1))

    model = Bag()
    ours = pipeline("text-classification", model, tokenizer=TOKENIZER, classes=("no", "yes"))
    text.export(model, tmp_path / "bag.onnx", tokenizer=ours.tokens, task="text-classification", classes=("no", "yes"))
    same(pipeline(model=tmp_path / "bag.onnx")(TEXTS, top_k=None, batch_size=3), ours(TEXTS, top_k=None))
    with pytest.raises(TypeError, match="must be a path, a name or a torch module"):
        pipeline("text-classification", 3)


def test_files_of_others_take_their_tokenizer_from_beside(files: Path, tmp_path: Path) -> None:
    import onnx

    made = onnx.load(files / "model.onnx")
    del made.metadata_props[:]
    onnx.save(made, tmp_path / "model.onnx")
    with pytest.raises(OptionError, match="comes without one"):
        pipeline(model=tmp_path / "model.onnx")
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (tmp_path / name).write_bytes((files / "theirs" / name).read_bytes())
    same(pipeline(model=tmp_path / "model.onnx")(TEXTS), pipeline(model=files / "model.onnx")(TEXTS))


def test_a_name_of_the_hub_offline_says_so() -> None:
    with pytest.raises(FeatherweightError, match="the hub cannot be reached") as caught:
        pipeline("sentiment-analysis", "somebody/some-model")
    assert "\n" not in str(caught.value)


def test_exported_files_answer_without_torch_and_transformers(files: Path) -> None:
    code = """
import json, sys
class Hidden:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "tokenizers", "huggingface_hub"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden)
from featherweight import pipeline
print(json.dumps(pipeline("sentiment-analysis", sys.argv[1])(json.loads(sys.argv[2]), top_k=None)))
assert not {"torch", "transformers", "tokenizers"} & set(sys.modules)
"""
    arguments = [str(files / "model.onnx"), json.dumps(TEXTS)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    same(json.loads(done.stdout), pipeline(model=files / "ours")(TEXTS, top_k=None))


def test_options_that_calls_of_transformers_bring_along(files: Path, classify: Any) -> None:
    usual = {"num_workers": 2, "framework": "pt", "trust_remote_code": False, "use_fast": True, "dtype": "auto"}
    made = pipeline("sentiment-analysis", files / "model.onnx", **usual, torch_dtype=None, revision="main", token=None)
    assert made("king", num_workers=0, timeout=3) == classify("king")
    theirs = transformers.pipeline("text-classification", model=classifier(), tokenizer=TOKENIZER, device="cpu")
    same(classify("king", add_special_tokens=False), theirs("king", add_special_tokens=False))
    for options, words in (
        ({"num_workers": -1}, "num_workers: must be 0"),
        ({"timeout": 0}, "timeout: must be more"),
        ({"framework": "tf"}, "'tf' is not run here"),
        ({"trust_remote_code": True}, "no code out of"),
        ({"dtype": "float16"}, "type of its weights"),
    ):
        with pytest.raises(OptionError, match=words):
            pipeline("sentiment-analysis", files / "model.onnx", **options)


def test_all_scores_as_version_4_gave_them(classify: Any) -> None:
    scores = classify("king", top_k=None)
    assert classify("king", return_all_scores=True) == [scores]
    assert classify(["king", "king"], return_all_scores=True) == [scores, scores]
    assert classify("king", return_all_scores=False) == [scores[0]]


def test_what_is_a_name_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    assert hub.is_name("somebody/model") and hub.is_name("model")
    for name in ("here", "a/b/c", "export/model.onnx", "runs/latest", "../up", Path("somebody/model"), None):
        assert not hub.is_name(name), name
