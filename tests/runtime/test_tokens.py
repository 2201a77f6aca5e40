# SPDX-License-Identifier: Apache-2.0
"""Texts to numbers: ours in plain Python against the tokenizers package, and what travels with a file."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_text

from featherweight.errors import InputError, MissingExtra, OptionError
from featherweight.runtime.tokens import Settings, Tokens
from featherweight.tokenizer import Tokenizer, open_tokens

pytest.importorskip("tokenizers")

ALPHABET = "abcde ABC éÉñüß İ ǆ \t\n\u200b\u00a0\u3000 ,.!?'\"-$^`~|+<=> 中文北京 カナ 한국 🙂👍🏽 "
ALPHABET += "\u0301\u0323 ﬁ ½ [CLS][MASK] the tower"
FLAGS = dict.fromkeys(("normalized", "lstrip", "rstrip", "single_word"), False)


def described() -> str:
    from tokenizers import BertWordPieceTokenizer

    return BertWordPieceTokenizer(tiny_text.vocabulary(), lowercase=True)._tokenizer.to_str()


@pytest.fixture(scope="module")
def both() -> tuple[Tokens, Tokens]:
    data = json.loads(described())
    data["added_tokens"] = [
        {"id": number, "content": word, "special": True, **FLAGS}
        for word, number in tiny_text.vocabulary().items()
        if word.startswith("[") and word.endswith("]")
    ]  # fmt: skip
    return Tokens(json.dumps(data)), Tokens(json.dumps(data), plain=True)


def outcome(tokens: Tokens, *args: Any, **options: Any) -> Any:
    try:
        return tokens.encode(*args, **options)
    except OptionError as error:
        return str(error)


def test_plain_python_gives_what_the_tokenizers_package_gives(both: tuple[Tokens, Tokens]) -> None:
    chance = random.Random(0)
    refused = 0
    for _ in range(600):
        text, pair = ("".join(chance.choice(ALPHABET) for _ in range(chance.randint(0, 40))) for _ in range(2))
        options: dict[str, Any] = {}
        args = (text, pair) if chance.random() < 0.5 else (text,)
        if chance.random() < 0.5:
            strategy = chance.choice(("longest_first", "only_first", "only_second"))
            options |= {
                "max_length": chance.randint(1, 20),
                "stride": chance.choice((0, 1, 2)),
                "strategy": strategy,
            }
        if not options.get("stride"):
            options["specials"] = chance.random() < 0.8
        theirs, ours = (outcome(tokens, *args, **options) for tokens in both)
        if options.get("strategy") == "longest_first" and not isinstance(theirs, str):
            theirs, ours = theirs[:1], ours[:1]  # theirs also gives the rest of both texts
        assert ours == theirs, (args, options)
        refused += isinstance(ours, str)
        if not isinstance(ours, str):
            assert both[1].decode(ours[0].ids, skip_special_tokens=True) == both[0].decode(
                ours[0].ids, skip_special_tokens=True
            )
    assert 0 < refused < 200


def test_offsets_point_into_the_text_as_it_was_given(both: tuple[Tokens, Tokens]) -> None:
    text = "Thé  ÓLD\ttower 北京!"
    for tokens in both:
        (found,) = tokens.encode(text, specials=False)
        assert [text[a:b] for a, b in found.offsets][-4:] == ["tower", "北", "京", "!"]
        assert text[found.offsets[0][0] : found.offsets[0][1]] == "Thé"


def test_a_tokenizer_travels_in_metadata(both: tuple[Tokens, Tokens]) -> None:
    sent = Tokens(both[0].text, Settings(max_length=7, pad_id=3, inputs=("input_ids", "attention_mask")))
    line = sent.to_metadata()
    assert line.isascii() and "\n" not in line and line == sent.to_metadata()
    back = Tokens.from_metadata(line, "model.onnx")
    assert back.settings == sent.settings
    assert back.encode("the old tower") == sent.encode("the old tower")
    assert back.to_metadata() == line


@pytest.mark.parametrize(
    ("told", "reason"),
    [("%%%", "corrupt"), ("QUJD", "corrupt"), ("eJyrrgUAAXUA+Q==", "bad_schema")],
)
def test_a_broken_tokenizer_in_metadata_is_one_error(told: str, reason: str) -> None:
    with pytest.raises(InputError) as caught:
        Tokens.from_metadata(told, "model.onnx")
    assert caught.value.reason == reason


def test_settings_that_cannot_be_are_refused() -> None:
    for wrong in ({"max_length": -1}, {"padding_side": "top"}, {"inputs": ["pixels"]}, {"more": 1}, []):
        with pytest.raises(InputError, match="bad_schema"):
            Settings.from_dict(wrong, "file")


def test_other_kinds_need_the_tokenizers_package() -> None:
    data = json.loads(described())
    data["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    with pytest.raises(MissingExtra, match=r"featherweight\[text\]"):
        Tokens(json.dumps(data), plain=True)


def test_padding_to_either_side(both: tuple[Tokens, Tokens]) -> None:
    left = Tokens(both[0].text, Settings(padding_side="left", pad_id=0))
    rows = [tokens.encode(text)[0] for tokens, text in ((left, "the old tower"), (left, "king"))]
    batch = left.batch(rows, length=8)
    assert batch["input_ids"].shape == (2, 8) and batch["input_ids"].dtype == np.int64
    assert batch["attention_mask"].tolist() == [[0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1, 1]]


def test_folders_are_read_with_vocab_alone_too(tmp_path: Path, both: tuple[Tokens, Tokens]) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(tiny_text.vocabulary()) + "\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true, "model_max_length": 9}')
    found = Tokens.from_folder(tmp_path)
    assert found.settings.max_length == 9 and found.settings.cls_id == 2
    assert found.encode("The tower [MASK] 北京", "é") == both[0].encode("The tower [MASK] 北京", "é")
    found.save(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    again = Tokens.from_folder(tmp_path)
    assert again.settings == found.settings and again.encode("king") == found.encode("king")


def test_a_file_that_is_no_utf8_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b'{"model": "\xff"}')
    with pytest.raises(InputError, match="encoding"):
        Tokens.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.txt").write_bytes(b"[UNK]\n\xff\xfe\n")
    with pytest.raises(InputError, match="encoding"):
        Tokens.from_folder(tmp_path)
    with pytest.raises(InputError, match="holds no tokenizer"):
        Tokens.from_folder(tmp_path / "none")


def test_what_is_no_text_is_refused(both: tuple[Tokens, Tokens]) -> None:
    for tokens in both:
        for wrong, reason in ((3, "bad_type"), (b"a", "bad_type"), ("a\ud800", "encoding")):
            with pytest.raises(InputError, match=reason):
                tokens.encode(wrong)  # type: ignore[arg-type]
        with pytest.raises(OptionError, match="did you mean 'only_first'"):
            tokens.encode("a", max_length=3, strategy="only_frst")


# Called as the tokenizers of transformers are -----------------------------------------------------------------------
CALLS: tuple[dict[str, Any], ...] = (
    {"text": "The old tower"},
    {"text": ["The old tower", "king"]},
    {"text": ["The old tower", "king"], "padding": True, "return_tensors": "np"},
    {"text": ["The old tower", "king"], "padding": "longest", "return_tensors": "pt"},
    {"text": ["The old tower", "king"], "padding": "max_length", "max_length": 9, "return_tensors": "np"},
    {"text": "The old tower of the king", "truncation": True, "max_length": 5},
    {"text": "old", "text_pair": "the tower of the king", "truncation": "only_second", "max_length": 6},
    {"text": ["old", "new"], "text_pair": ["tower", "the bridge"], "padding": True},
    {"text": "The old tower", "add_special_tokens": False, "return_offsets_mapping": True},
    {"text": "old tower", "return_tensors": "np"},
    {"text": "a b c d e f g h", "truncation": True, "max_length": 6, "stride": 1, "return_overflowing_tokens": True},
)


@pytest.mark.parametrize("call", CALLS)
def test_calls_give_what_transformers_gives(call: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = tiny_text.tokenizer(transformers)
    ours = Tokenizer(theirs)
    wanted, found = theirs(**call), ours(**call)
    assert list(wanted) == list(found)
    for name, value in wanted.items():
        assert type(found[name]) is type(value), name
        assert np.array_equal(np.asarray(found[name], object), np.asarray(value, object)), name


def test_there_and_back() -> None:
    transformers = pytest.importorskip("transformers")
    theirs = tiny_text.tokenizer(transformers)
    ours = Tokenizer(theirs)
    ids = ours("The old tower, in 北京.")["input_ids"]
    assert ours.decode(ids) == theirs.decode(ids)
    assert ours.batch_decode([ids, ids[:3]], skip_special_tokens=True) == theirs.batch_decode(
        [ids, ids[:3]], skip_special_tokens=True
    )
    assert ours.tokenize("The towers") == theirs.tokenize("The towers")
    assert ours.convert_tokens_to_ids(["the", "[CLS]"]) == theirs.convert_tokens_to_ids(["the", "[CLS]"])
    assert len(ours) == len(theirs) and ours.model_max_length == theirs.model_max_length


def test_every_form_of_a_tokenizer_is_taken(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = tiny_text.tokenizer(transformers)
    theirs.save_pretrained(tmp_path)
    wanted = Tokenizer(theirs)("The old tower")
    for form in (tmp_path, str(tmp_path), tmp_path / "tokenizer.json", theirs.backend_tokenizer, open_tokens(theirs)):
        assert Tokenizer(form)("The old tower") == wanted
    Tokenizer(theirs).save_pretrained(tmp_path / "ours")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert dict(again("The old tower")) == wanted and again.model_max_length == 64


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"return_tensors": "tf"}, "TensorFlow's tensors"),
        ({"return_tensors": "jax"}, "no 'jax'"),
        ({"padding": "max"}, "no 'max'; .*longest"),
        ({"truncation": "yes"}, "no 'yes'"),
        ({"return_tensors": "np"}, "unequal lengths .* padding=True"),
        ({"max_length": 1, "truncation": True}, "leaves no room"),
        ({"text_pair": ["one"]}, "list of 2 texts"),
    ],
)
def test_a_wrong_call_is_one_line(both: tuple[Tokens, Tokens], options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words) as caught:
        Tokenizer(both[0])(["The old tower", "king"], **options)
    assert "\n" not in str(caught.value)
