# SPDX-License-Identifier: Apache-2.0
"""TinyBERT for texts: the general stage on text without labels, variants of sentences, whom each block learns from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_text
import torch
from test_text_recipes import folder_of, sentences, texts, written

from featherweight import recipe, runs, steps_together
from featherweight.data.text import TextBatches, lines_of
from featherweight.data.text_augment import embedding_of, word_swaps
from featherweight.errors import InputError, OptionError
from featherweight.methods.tinybert import TinyBERT
from featherweight.tokenizer import open_tokens

transformers = pytest.importorskip("transformers")
TOKENS = open_tokens(tiny_text.tokenizer(transformers))
ROWS = [TOKENS.encode(text)[0] for text, _ in sentences(20)]


def rows_alike() -> torch.Tensor:
    """An embedding in which tower and bridge are neighbors, and no others."""
    rows = torch.eye(len(TOKENS))
    tower, bridge = (TOKENS.number(word) or 0 for word in ("tower", "bridge"))
    rows[tower, bridge] = 0.9
    return rows


def test_words_are_swapped_for_their_neighbors() -> None:
    swaps = word_swaps(TOKENS, rows_alike(), ROWS, count=1)
    tower, bridge = (TOKENS.number(word) or 0 for word in ("tower", "bridge"))
    assert swaps.near[tower] == (bridge,)
    one = TOKENS.encode("the old tower, 2 towers in 北京")[0]
    swapped, places = set(), range(len(one.ids))
    for number in range(200):
        other = swaps(one, number)
        assert other == swaps(one, number) and len(other.ids) == len(one.ids)
        swapped |= {
            (TOKENS.token(one.ids[i]), TOKENS.token(other.ids[i])) for i in places if one.ids[i] != other.ids[i]
        }
    words = {before for before, _ in swapped}
    assert ("tower", "bridge") in swapped and {"the", "old"} <= words
    assert not words & {"[CLS]", "[SEP]", ",", "2", "##s", "北"}  # nor a word in pieces, `towers`
    changed = sum(swaps(one, number).ids[3] != one.ids[3] for number in range(1000))
    assert 350 < changed < 450  # p_t = 0.4
    with pytest.raises(OptionError, match="rows"):
        word_swaps(TOKENS, rows_alike()[:9], ROWS)


def read(batches: Any) -> list[tuple[int, tuple[int, ...]]]:
    """Label and tokens of each text."""
    rows = [(b["label"].tolist(), b["input_ids"].tolist()) for b in batches]
    return [(n, tuple(i for i in row if i)) for labels, ids in rows for n, row in zip(labels, ids, strict=True)]


def test_variants_follow_each_text_and_keep_its_label() -> None:
    labels = list(range(len(ROWS)))
    model = tiny_text.model(transformers, kind="BertModel")
    swaps = word_swaps(TOKENS, embedding_of(model), ROWS)
    known: dict[str, Any] = {"batch_size": 7, "alike": True, "variants": 3, "vary": swaps}
    batches = TextBatches(TOKENS, ROWS, {"label": labels}, **known)
    assert batches.samples_per_epoch == 80 and batches.steps_per_epoch == 12
    seen = read(batches.epoch(0))
    assert sorted(n for n, _ in seen) == sorted(labels * 4)
    assert all(len(row) == len(ROWS[n].ids) for n, row in seen)
    assert {(n, tuple(one.ids)) for n, one in enumerate(ROWS)} <= set(seen)
    again = [one for half in (0, 1) for one in read(batches.shard(half, 2).epoch(1))]
    assert sorted(again) == sorted(seen)  # a variant is a function of its number alone


def test_general_then_task_stage_in_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "many.txt").write_text("the old tower\n\n北京 is old\nthe king of the river\n" * 4, encoding="utf-8")
    taught: list[tuple[Any, int]] = []
    before = steps_together.trained

    def noticed(work: Any, model: Any, methods: Any, *rest: Any, **known: Any) -> Any:
        taught.append((methods[-1], len(known["texts"].rows)))
        return before(work, model, methods, *rest, **known)

    monkeypatch.setattr("featherweight.steps_together.trained", noticed)
    monkeypatch.setattr("featherweight.teaching_text.trained", noticed)
    options = {"general": str(tmp_path / "many.txt"), "augment": 2, "mapping": [1], "epochs": 1}
    plan = written(tmp_path, ["load", "teacher", {"tinybert": options}], train={"epochs": 1})
    teacher = folder_of(tmp_path / "teacher")
    student = folder_of(tmp_path / "student", num_hidden_layers=1)
    done = runs.run(recipe.parse({**plan, "model": str(student), "teacher": str(teacher)}, "test"))
    assert (done.stages[-1].place / "general" / "model.json").is_file()
    (general, lines), (task, several) = taught
    assert general.stage == 1.0 and task.stage == 0.5 and general.mapping == task.mapping == (1,)
    assert lines == 12 and several == 3 * len(done.data.train)
    key = done.key
    (tmp_path / "many.txt").write_text("another text\n" * 9, encoding="utf-8")
    again = runs.run(recipe.parse({**plan, "model": str(student), "teacher": str(teacher)}, "test"))
    assert again.key != key and len(taught) == 4  # other texts, another result


def test_whom_each_block_learns_from() -> None:
    teacher = tiny_text.model(transformers, kind="BertForSequenceClassification")
    with pytest.raises(OptionError, match="1 places for the student's 2 blocks"):
        TinyBERT(teacher, mapping=[0]).prepare(teacher)
    with pytest.raises(OptionError, match="the teacher has 2 blocks"):
        TinyBERT(teacher, mapping=[0, 2]).prepare(teacher)
    method = TinyBERT(teacher, mapping=[-1, 0])
    assert [other for _, other in method._pairs(teacher)] == ["bert.encoder.layer.1", "bert.encoder.layer.0"]


@pytest.mark.parametrize(
    ("task", "options", "match"),
    [
        ("question-answering", {"augment": 2}, "may be the answer"),
        ("text-classification", {"general": "nowhere.txt"}, "nowhere.txt is no file"),
        ("image-classification", {"augment": 2}, "goes with"),
    ],
)
def test_what_cannot_be_is_said_when_the_recipe_is_read(
    tmp_path: Path, task: str, options: dict[str, Any], match: str
) -> None:
    plan = {"task": task, "data": str(texts(tmp_path / "data")), "steps": ["load", "teacher", {"tinybert": options}]}
    model = "vit_digits" if task.startswith("image") else str(folder_of(tmp_path / "encoder"))
    with pytest.raises(InputError, match=match):
        recipe.parse({**plan, "model": model, "teacher": model}, "test")


def test_texts_without_labels(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(InputError, match="encoding"):
        lines_of(tmp_path / "latin.txt")
