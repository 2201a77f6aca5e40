# SPDX-License-Identifier: Apache-2.0
"""A tokenizer from whatever a user has: a folder, a tokenizer.json, one of transformers, one of the tokenizers package.

`Tokenizer` is called as theirs are: a text, a list, pairs, padding, truncation, `return_tensors`. It needs neither
torch nor transformers; "pt" needs torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featherweight.errors import InputError, OptionError, closest, missing_extra, shown
from featherweight.runtime.tokens import FILE, INPUTS, UNBOUNDED, Settings, Tokens
from featherweight.runtime.wordpiece import STRATEGIES, Encoding

PADDING = ("longest", "max_length", "do_not_pad")
TENSORS = ("pt", "np")


def open_tokens(given: Any) -> Tokens:
    """The tokenizer of a path, a `Tokenizer`, `Tokens`, one of transformers or one of the tokenizers package."""
    if isinstance(given, Tokens):
        return given
    if isinstance(given, Tokenizer):
        return given.tokens
    if isinstance(given, (str, os.PathLike)):
        path = Path(given)
        if not path.exists():
            text = f"does not exist; a tokenizer is a folder, a {FILE}, or one of transformers; nothing is downloaded"
            raise InputError(path, "missing", text)
        return Tokens.from_folder(path if path.is_dir() else path.parent)
    if hasattr(given, "backend_tokenizer"):
        return _of_transformers(given)
    if hasattr(given, "to_str") and hasattr(given, "encode_batch"):
        text = str(given.to_str())
        bare = Tokens(text)
        pads = (bare.number(token) for token in ("[PAD]", "<pad>"))
        starts = (bare.number(token) for token in ("[CLS]", "<s>"))
        settings = Settings(
            pad_id=next((i for i in pads if i is not None), 0), cls_id=next((i for i in starts if i is not None), None)
        )
        return Tokens(text, settings)
    name = type(given).__name__
    raise OptionError("tokenizer", f"{name} has no fast form; give a folder with {FILE}, or a fast tokenizer")


def _of_transformers(given: Any) -> Tokens:
    longest = given.model_max_length
    settings = Settings(
        max_length=int(longest) if longest < UNBOUNDED else None,
        pad_id=given.pad_token_id or 0,
        pad_type_id=given.pad_token_type_id or 0,
        cls_id=given.cls_token_id,
        inputs=tuple(name for name in given.model_input_names if name in INPUTS),
        padding_side=given.padding_side,
        truncation_side=given.truncation_side,
    )
    return Tokens(str(given.backend_tokenizer.to_str()), settings, name=type(given).__name__)


class Tokenizer:
    """Texts to the numbers a model takes, and back; called as the tokenizers of the transformers library are."""

    def __init__(self, source: Any) -> None:
        """source: whatever `open_tokens` takes."""
        self.tokens = open_tokens(source)

    def __call__(
        self,
        text: str | Sequence[str],
        text_pair: str | Sequence[str] | None = None,
        *,
        padding: bool | str = False,
        truncation: bool | str = False,
        max_length: int | None = None,
        stride: int = 0,
        add_special_tokens: bool = True,
        return_tensors: str | None = None,
        return_offsets_mapping: bool = False,
        return_overflowing_tokens: bool = False,
    ) -> dict[str, Any]:
        """Lists of numbers by the names of the model's inputs; arrays or tensors (B, N) with `return_tensors`.

        One text gives flat lists, a list of texts lists of lists. OptionError for a form that is not known, for rows of
        unequal length that are to be one tensor, and for "tf": TensorFlow's tensors are not made here.
        """
        kind = _tensors(return_tensors)
        pad, cut = padding_of(padding), truncation_of(truncation)
        limit = max_length or self.tokens.settings.max_length
        how: dict[str, Any] = {
            "specials": add_special_tokens,
            "max_length": limit if cut else None,
            "stride": stride if cut else 0,
        }
        pairs = _pairs(text, text_pair)
        windows = [self.tokens.encode(one, other, strategy=cut or STRATEGIES[0], **how) for one, other in pairs]
        rows = [row for found in windows for row in (found if return_overflowing_tokens else found[:1])]
        made: dict[str, Any] = self._rows(rows, pad, limit, ragged=kind is None)
        if return_offsets_mapping:
            made["offset_mapping"] = [row.offsets for row in rows]
        if return_overflowing_tokens:
            made["overflow_to_sample_mapping"] = [i for i, found in enumerate(windows) for _ in found]
        single = isinstance(text, str) and kind is None and not return_overflowing_tokens
        return {name: _as(value[0] if single else value, kind) for name, value in made.items()}

    def _rows(self, rows: list[Encoding], pad: str, limit: int | None, *, ragged: bool) -> dict[str, list[list[int]]]:
        """Rows of numbers by input; padded if that is asked for."""
        if pad == "max_length" and limit is None:
            raise OptionError("max_length", "is missing: padding='max_length' needs it, and this tokenizer has none")
        if pad == "do_not_pad":
            if not ragged and len({len(row.ids) for row in rows}) > 1:
                raise OptionError("padding", "the texts have unequal lengths and are to be one tensor: padding=True")
            return {
                name: [self.tokens.batch([row])[name][0].tolist() for row in rows]
                for name in self.tokens.settings.inputs
            }
        batch = self.tokens.batch(rows, length=limit if pad == "max_length" else None)
        return {name: array.tolist() for name, array in batch.items()}

    def decode(self, ids: Any, *, skip_special_tokens: bool = False) -> str:
        """Numbers (N,) -> their text."""
        numbers = [int(i) for i in np.asarray(ids).reshape(-1)]
        return self.tokens.decode(numbers, skip_special_tokens=skip_special_tokens)

    def batch_decode(self, ids: Sequence[Any], *, skip_special_tokens: bool = False) -> list[str]:
        """The text of each row."""
        return [self.decode(row, skip_special_tokens=skip_special_tokens) for row in ids]

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text, without special ones."""
        return self.convert_ids_to_tokens(self.tokens.encode(text, specials=False)[0].ids)

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """The token of each number."""
        return [self.tokens.token(int(i)) or "" for i in ids]

    def convert_tokens_to_ids(self, tokens: Sequence[str]) -> list[int | None]:
        """The number of each token; None for one that is not in the vocabulary."""
        return [self.tokens.number(token) for token in tokens]

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write tokenizer.json and tokenizer_config.json."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.tokens.save(Path(folder))

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> Tokenizer:
        """The tokenizer in a folder; nothing is downloaded."""
        return cls(folder)

    @property
    def model_max_length(self) -> int | None:
        """The longest text the model takes, in tokens."""
        return self.tokens.settings.max_length

    def __len__(self) -> int:
        return len(self.tokens)


def padding_of(given: bool | str) -> str:
    """longest, max_length or do_not_pad."""
    if isinstance(given, bool):
        return PADDING[0] if given else PADDING[2]
    if given not in PADDING:
        known = f"{closest(str(given), PADDING)}Known: {', '.join(PADDING)}, True, False"
        raise OptionError("padding", f"no {shown(given)!r}; {known}")
    return given


def truncation_of(given: bool | str | None) -> str | None:
    """longest_first, only_first, only_second, or None for not at all."""
    if given is None or given is False or given == "do_not_truncate":
        return None
    if given is True:
        return STRATEGIES[0]
    if given not in STRATEGIES:
        known = f"{closest(str(given), STRATEGIES)}Known: {', '.join(STRATEGIES)}, True, False"
        raise OptionError("truncation", f"no {shown(given)!r}; {known}")
    return given


def _tensors(given: str | None) -> str | None:
    if given is None or given in TENSORS:
        return given
    if given == "tf":
        raise OptionError("return_tensors", "TensorFlow's tensors ('tf') are not made here; use 'np' or 'pt'")
    raise OptionError("return_tensors", f"no {shown(given)!r}; Known: {', '.join(TENSORS)}")


def _pairs(text: Any, pair: Any) -> list[tuple[str, str | None]]:
    """Texts, each with its pair or None."""
    if isinstance(text, str):
        return [(text, pair)]
    if not isinstance(text, Sequence) or isinstance(text, (bytes, Mapping)):
        raise InputError("text", "bad_type", f"{type(text).__name__} is no text; give a str or a list of them")
    if pair is None:
        return [(one, None) for one in text]
    if isinstance(pair, str) or len(pair) != len(text):
        raise OptionError("text_pair", f"must be a list of {len(text)} texts, as the first is")
    return list(zip(text, pair, strict=True))


def _as(value: Any, kind: str | None) -> Any:
    if kind is None:
        return value
    array = np.asarray(value)
    if kind == "np":
        return array
    try:
        import torch
    except ImportError:
        raise missing_extra("return_tensors='pt'", "torch", "torch") from None
    return torch.from_numpy(array)
