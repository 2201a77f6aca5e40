# SPDX-License-Identifier: Apache-2.0
"""Question answering: the answers transformers 4.57.6 gave, recorded, since 5 has no such pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_text
from tiny_text import same

from featherweight import artifact, pipeline
from featherweight.errors import InputError, OptionError
from featherweight.export import openvino, text
from featherweight.models import pretrained
from featherweight.tokenizer import open_tokens

transformers = pytest.importorskip("transformers")
TOKENIZER = tiny_text.tokenizer(transformers)
GOLDEN = json.loads((Path(__file__).parent / "golden" / "text" / "question_answering.json").read_text(encoding="utf-8"))
CALLS = list(tiny_text.calls())
ASKED = {"question": tiny_text.WHO, "context": tiny_text.SHORT}
LONG = {"question": tiny_text.WHO, "context": tiny_text.LONG}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    model = pretrained.with_tokens(tiny_text.model(transformers), open_tokens(TOKENIZER))
    artifact.save(model, folder / "ours")
    pairs = [(tiny_text.WHO, tiny_text.SHORT), (tiny_text.WHERE, tiny_text.CHINA)]
    text.export(model, folder / "model.onnx", texts=pairs)
    (folder / "openvino").mkdir()
    openvino.export_text(folder / "model.onnx", folder / "openvino" / "openvino_model.xml", model=model, texts=pairs)
    return folder


@pytest.fixture(scope="module")
def answer(files: Path) -> Any:
    return pipeline("question-answering", files / "model.onnx")


@pytest.mark.parametrize("place", ["ours", "model.onnx", "openvino/openvino_model.xml"])
def test_answers_are_those_of_transformers_4(files: Path, place: str) -> None:
    pipe = pipeline("question-answering", files / place)
    assert [name for name, _, _ in CALLS] == [one["name"] for one in GOLDEN["answers"]]
    for (name, arguments, options), recorded in zip(CALLS, GOLDEN["answers"], strict=True):
        try:
            same(pipe(*arguments, **options), recorded["answer"])
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


def test_the_context_holds_the_answer(answer: Any) -> None:
    for found in answer(LONG, top_k=20):
        assert tiny_text.LONG[found["start"] : found["end"]] == found["answer"] != ""
    few = answer({"question": tiny_text.WHO, "context": "king queen"}, top_k=20)
    assert [one["answer"] for one in few] and all(one["start"] < one["end"] for one in few)
    assert len(few) == 3  # king, queen, both; transformers would fill up with empty ones of score 0


def test_a_batch_of_one_answers_as_a_batch_of_32(answer: Any) -> None:
    chinese = {"question": tiny_text.WHERE, "context": tiny_text.CHINA}
    mixed = [ASKED, LONG, chinese, {"question": "why?", "context": "king"}] * 8
    same(answer(mixed, batch_size=32), [answer(one) for one in mixed])
    same(answer(mixed, batch_size=5, top_k=2), answer(mixed, top_k=2))


def test_generators_and_objects(answer: Any) -> None:
    found = answer(one for one in (ASKED, LONG))
    assert not isinstance(found, list)
    same(list(found), [answer(ASKED), answer(LONG)])

    class Example:
        question_text, context_text = tiny_text.WHO, tiny_text.SHORT

    same(answer(Example()), answer(ASKED))
    same(answer([Example(), Example()]), [answer(ASKED)] * 2)
    assert answer([]) == []


def test_topk_is_the_old_word(answer: Any) -> None:
    same(answer(ASKED, topk=3), answer(ASKED, top_k=3))
    with pytest.raises(OptionError, match="old name of top_k"):
        answer(ASKED, topk=3, top_k=2)


def test_a_long_question_is_cut_where_that_is_asked_for(answer: Any) -> None:
    long = {"question": "who is the king of the old river " * 3, "context": tiny_text.SHORT}
    short = {"question": "who is the king", "context": tiny_text.SHORT}
    same(answer(long, max_question_len=4), answer(short))
    assert answer(long) != answer(short)
    with pytest.raises(OptionError, match=r"leaves no room: 61 tokens .* takes 72"):
        answer({**long, "question": long["question"] * 3})
    with pytest.raises(OptionError, match=r"doc_stride|stride"):
        answer(LONG, doc_stride=60)


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((), {}, "question: missing_key"),
        ((), {"question": "who?"}, "context: missing_key"),
        ((), {"context": "king"}, "question: missing_key"),
        (({"question": "who?"},), {}, "context: missing_key"),
        (({"question": "who?", "context": None},), {}, "context: missing_key"),
        (({"question": "", "context": "king"},), {}, "question: empty"),
        (({"question": "who?", "context": " "},), {}, "context: empty"),
        (({"question": "who?", "contxt": "king"},), {}, "did you mean 'context'"),
        (({"question": "who?", "context": 3},), {}, "context: bad_type: int is no text"),
        (([None],), {}, "NoneType is no question"),
        ((["who?", "king"],), {}, "str is no question"),
        ((3,), {}, "int is no text"),
        ((None,), {}, "NoneType is no question"),
        ((), {"question": "who?", "context": ["a", "b"]}, "there is one question"),
        ((), {"question": ["who?"], "context": ["a", "b"]}, "2 for 1 questions"),
        ((ASKED,), {"top_k": 0}, "top_k: must be 1"),
        ((ASKED,), {"max_answer_len": 0}, "max_answer_len: must be 1"),
        ((ASKED,), {"max_seq_len": 4000}, "takes 64 tokens"),
        ((ASKED,), {"doc_stride": 50, "max_seq_len": 40}, "larger than max_seq_len"),
        ((ASKED,), {"max_anser_len": 3}, "did you mean 'max_answer_len'"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(answer: Any, arguments: tuple[Any, ...], options: dict[str, Any], words: str) -> None:
    with pytest.raises((InputError, OptionError), match=words) as caught:
        answer(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_a_picture_is_no_question(answer: Any) -> None:
    from PIL import Image

    with pytest.raises(InputError, match="Image is no"):
        answer(Image.new("RGB", (4, 4)))


def test_the_wrong_task_for_the_model(files: Path) -> None:
    with pytest.raises(OptionError, match="made for 'question-answering'"):
        pipeline("sentiment-analysis", files / "model.onnx")
    with pytest.raises(OptionError, match="made for 'question-answering'"):
        pipeline("sentiment-analysis", files / "ours")
