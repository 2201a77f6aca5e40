# SPDX-License-Identifier: Apache-2.0
"""A small model for questions with fixed weights, and the calls whose answers transformers 4 was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fill

TEXT = (
    "the a of in to and is was by on for with at from it who what when where why how river city tower "
    "bridge built year old new king queen war peace north south east west red green blue black white long "
    "short tall small paris london rome model text answer question library fast light feather weight "
    "repository pipeline included face hug "
)
WORDS = TEXT.split()
PIECES = ("##s", "##ing", "##ed", "##er", "##2", "##0", "##1", "##9", "##8", "##tower", "##face", "##transformers")
SIGNS = [*[".", ",", "?", "!", "'", "-", "/", "(", ")"], *"0123456789", *"abcdefghijklmnopqrstuvwxyz"]
CHINESE = "中国北京上海是在的了和有我你他长江黄河山水大小高低古老城市塔桥年月日谁什么哪里何时"
LETTERS = [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]


def vocabulary() -> dict[str, int]:
    """Token -> number."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *PIECES, *SIGNS, *LETTERS, *CHINESE]
    return {word: number for number, word in enumerate(dict.fromkeys(words))}


def tokenizer(transformers: Any, **options: Any) -> Any:
    """BERT's tokenizer with that vocabulary, in the form of the library that is given."""
    from tokenizers import BertWordPieceTokenizer

    made = BertWordPieceTokenizer(vocabulary(), lowercase=True)
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made._tokenizer, model_max_length=64, model_input_names=names, **special, **options
    )


def model(transformers: Any, *, kind: str = "BertForQuestionAnswering", **options: Any) -> Any:
    """A small BERT whose weights are a function of their names alone."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    known = {**sizes, "vocab_size": len(vocabulary()), "max_position_embeddings": 64, **options}
    config = transformers.BertConfig(**known)
    made = getattr(transformers, kind)(config).eval()
    state = made.state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point() and "LayerNorm" not in name:
            scale = 4.0 if name.startswith(("qa_outputs", "classifier")) else 1.0
            state[name] = scale * fill.tensor(name, tensor.shape, tensor.dtype)
    made.load_state_dict(state)
    return made


SHORT = "The old tower in Paris was built by the king in 1889 for peace."
PIPELINE = "Pipeline has been included in the huggingface/transformers repository"
CHINA = "长江是中国的大河,黄河在北。上海是在长江的古老城市,有高塔和桥。"
LONG = " ".join(f"In the year {year} a {color} bridge was built in the {side} of London." for year, color, side in zip(
    range(1800, 1830), ["red", "green", "blue"] * 10, ["north", "south", "east", "west", "old city"] * 6, strict=True
))  # fmt: skip
WHO, WHERE = "Who built the tower?", "上海在哪里?"


def calls() -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Name, arguments and options of each call."""
    short = {"question": WHO, "context": SHORT}
    chinese = {"question": WHERE, "context": CHINA}
    long = {"question": "When was the blue bridge built?", "context": LONG}
    for name, asked in (
        ("short", short),
        ("chinese", chinese),
        ("long", long),
        ("pipeline", {**short, "context": PIPELINE}),
    ):
        yield name, (asked,), {}
        yield f"{name} words", (), dict(asked)
        yield f"{name} three", (asked,), {"top_k": 3}
        yield f"{name} no words", (asked,), {"align_to_words": False, "top_k": 4}
        yield f"{name} impossible", (asked,), {"handle_impossible_answer": True, "top_k": 3}
        yield f"{name} narrow", (asked,), {"max_answer_len": 2, "top_k": 2}
        yield f"{name} one token", (asked,), {"max_answer_len": 1}
    for stride, length in ((8, 32), (16, 48), (0, 40), (20, 64)):
        yield f"stride {stride} of {length}", (long,), {"doc_stride": stride, "max_seq_len": length, "top_k": 5}
        yield f"one of {length}", (chinese,), {"doc_stride": stride // 2, "max_seq_len": length}
    yield "list", ([short, chinese, long],), {}
    yield "list of one", ([short],), {}
    yield "list of one, two", ([short],), {"top_k": 2}
    yield "list of two, two", ([short, long],), {"top_k": 2}
    yield "batch", ([long, short, chinese, long],), {"batch_size": 3, "top_k": 2}
    yield "lists", (), {"question": [WHO, WHERE], "context": [SHORT, CHINA]}
    yield "one context", (), {"question": [WHO, "Where is it?"], "context": SHORT}
    yield "two texts", (WHO, SHORT), {}
    yield "data", (), {"data": short}
    yield "padded", (short,), {"padding": "max_length", "max_seq_len": 60}
    yield "cased", ({"question": "WHO?", "context": "The King, the king, THE KING and the queen."},), {"top_k": 3}


def texts() -> list[str]:
    """Sentences of every length up to what the model takes."""
    return [SHORT, "", "king", CHINA, "The river, the river!", SHORT[:40], "a " * 50, PIPELINE, "北京", WHO]


def same(ours: Any, theirs: Any) -> None:
    """Equal answers or lists of them, in order and types, but for the last digits of a score."""
    if isinstance(theirs, list):
        assert isinstance(ours, list) and len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            same(one, other)
        return
    assert list(ours) == list(theirs)
    assert {**ours, "score": 0} == {**theirs, "score": 0}
    assert all(type(ours[key]) is (float if key == "score" else type(theirs[key])) for key in ours)
    assert abs(ours["score"] - theirs["score"]) <= 1e-5
