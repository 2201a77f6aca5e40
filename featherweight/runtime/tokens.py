# SPDX-License-Identifier: Apache-2.0
"""A text as a model takes it: numbers of tokens, from a tokenizer.json that travels with the model or inside its file.

The tokenizers package does the work where it is installed; without it, BERT's kind of tokenizer still runs
(`wordpiece`). Both give the same numbers, offsets and windows.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherweight.doors import door, read_input, text_of
from featherweight.doors import json as strict_json
from featherweight.errors import InputError, OptionError, closest, shown
from featherweight.runtime.wordpiece import STRATEGIES, Encoding, WordPiece, check_room

FILE, CONFIG, VOCABULARY = "tokenizer.json", "tokenizer_config.json", "vocab.txt"
METADATA = "tokenizer"  # the key in an exported file's metadata
MAX_BYTES = 64 << 20  # of a tokenizer's description
UNBOUNDED = 1_000_000  # a longest text beyond this means that there is none
INPUTS = ("input_ids", "token_type_ids", "attention_mask")


@dataclass(frozen=True)
class Settings:
    """What a tokenizer.json does not say itself."""

    max_length: int | None = None  # tokens of the longest text the model takes
    pad_id: int = 0
    pad_type_id: int = 0
    cls_id: int | None = None
    inputs: tuple[str, ...] = INPUTS  # what the model is fed
    padding_side: str = "right"
    truncation_side: str = "right"

    @classmethod
    def from_dict(cls, data: Any, name: object) -> Settings:
        """Settings out of a file; InputError for what they cannot be."""
        if not isinstance(data, dict) or set(data) - {field.name for field in fields(cls)}:
            raise InputError(name, "bad_schema", "its tokenizer's settings are not those this version knows")
        found = {**data, "inputs": tuple(data.get("inputs", INPUTS))}
        whole = [found.get(key) for key in ("max_length", "pad_id", "pad_type_id", "cls_id")]
        sides = [found.get(key, "right") for key in ("padding_side", "truncation_side")]
        good = all(value is None or (isinstance(value, int) and 0 <= value < 1 << 31) for value in whole)
        if not good or not set(sides) <= {"left", "right"} or not set(found["inputs"]) <= set(INPUTS):
            raise InputError(name, "bad_schema", "its tokenizer's settings hold a wrong value")
        return cls(**found)


class Tokens:
    """A tokenizer with its settings. `text` is the content of its tokenizer.json, for whoever keeps it."""

    def __init__(
        self, text: str, settings: Settings | None = None, *, name: object = FILE, plain: bool = False
    ) -> None:
        """plain: use the Python tokenizer even where the tokenizers package is installed."""
        self.text, self.settings, self.name = text, settings or Settings(), name
        self._made: Any = None if plain else _compiled(text, name)
        self._plain = _plain(text, name) if self._made is None else None

    def encode(
        self, text: str, pair: str | None = None, *, specials: bool = True, max_length: int | None = None,
        stride: int = 0, strategy: str = "longest_first",
    ) -> list[Encoding]:  # fmt: skip
        """What the model is fed for one text or pair: one encoding, or windows where `max_length` cuts it."""
        for part in (text, pair):
            _check_text(part)
        if strategy not in STRATEGIES:
            known = f"{closest(strategy, STRATEGIES)}Known: {', '.join(STRATEGIES)}, True, False"
            raise OptionError("truncation", f"no {strategy!r}; {known}")
        how = {"max_length": max_length, "stride": stride, "strategy": strategy}
        if self._plain is not None:
            return self._plain.encode(text, pair, specials=specials, side=self.settings.truncation_side, **how)  # type: ignore[arg-type]
        return self._encoded(text, pair, specials, **how)

    def _encoded(self, text: str, pair: str | None, specials: bool, **how: Any) -> list[Encoding]:
        self._made.no_truncation()
        if how["max_length"] is None:
            return [_read(self._made.encode(text, pair, add_special_tokens=specials))]
        kept = {"only_second": text, "only_first": pair}.get(how["strategy"])
        around = self._made.num_special_tokens_to_add(pair is not None) if specials else 0
        other = 0 if kept is None else len(self._made.encode(kept, add_special_tokens=False).ids)
        check_room(how["max_length"] - around, how["stride"], how["strategy"], other=other, paired=pair is not None)
        try:
            self._made.enable_truncation(direction=self.settings.truncation_side, **how)
        except ValueError as error:
            raise OptionError("stride", str(error)) from None
        with door("text", "too_large", "cannot be cut so"):
            first = self._made.encode(text, pair, add_special_tokens=specials)
        return [_read(one) for one in (first, *first.overflowing)]

    def batch(self, encodings: Sequence[Encoding], *, length: int | None = None) -> dict[str, NDArray[np.int64]]:
        """Encodings -> arrays (B, N) by the names of the model's inputs, padded to the longest or to `length`."""
        longest = max((len(one.ids) for one in encodings), default=0)
        wide = max(longest, length or 0)
        fills = {"input_ids": self.settings.pad_id, "token_type_ids": self.settings.pad_type_id, "attention_mask": 0}
        found = {name: np.full((len(encodings), wide), fills[name], np.int64) for name in self.settings.inputs}
        for row, one in enumerate(encodings):
            count = len(one.ids)
            place = slice(wide - count, wide) if self.settings.padding_side == "left" else slice(0, count)
            values = {"input_ids": one.ids, "token_type_ids": one.type_ids, "attention_mask": [1] * count}
            for name in found:
                found[name][row, place] = values[name]
        return found

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of some numbers."""
        if self._plain is not None:
            return self._plain.decode(ids, skip_special_tokens=skip_special_tokens)
        return str(self._made.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def token(self, number: int) -> str | None:
        """The token of a number."""
        return self._plain.by_id.get(number) if self._plain else self._made.id_to_token(number)

    def number(self, token: str) -> int | None:
        """The number of a token."""
        if self._plain is not None:
            return self._plain.added.get(token, self._plain.vocab.get(token))
        found: int | None = self._made.token_to_id(token)
        return found

    def __len__(self) -> int:
        return len(self._plain.by_id) if self._plain is not None else int(self._made.get_vocab_size())

    def with_longest(self, length: int | None) -> Tokens:
        """The same for a model that takes at most so many tokens."""
        known = [n for n in (self.settings.max_length, length) if n is not None]
        return Tokens(self.text, replace(self.settings, max_length=min(known, default=None)), name=self.name)

    def to_metadata(self) -> str:
        """The tokenizer as one line of ASCII for the metadata of an exported file; equal ones give equal lines."""
        whole = json.dumps({"settings": asdict(self.settings), "tokenizer": json.loads(self.text)}, sort_keys=True)
        return base64.b64encode(zlib.compress(whole.encode(), 9)).decode()

    @classmethod
    def from_metadata(cls, told: str, name: object) -> Tokens:
        """The tokenizer in such a line. InputError for one that is broken or too large."""
        try:
            opened = zlib.decompressobj()
            text = opened.decompress(base64.b64decode(told, validate=True), MAX_BYTES)
        except (binascii.Error, ValueError, zlib.error):
            raise InputError(name, "corrupt", "its tokenizer cannot be unpacked") from None
        if opened.unconsumed_tail:
            raise InputError(name, "too_large", f"its tokenizer has more than {MAX_BYTES} bytes")
        data = strict_json.parse(text, name)
        if not isinstance(data, dict) or set(data) != {"settings", "tokenizer"}:
            raise InputError(name, "bad_schema", "its tokenizer must have settings and a description")
        described = json.dumps(data["tokenizer"], ensure_ascii=False, sort_keys=True)
        return cls(described, Settings.from_dict(data["settings"], name), name=name)

    @classmethod
    def from_folder(cls, folder: str | Path, *, plain: bool = False) -> Tokens:
        """The tokenizer in a folder: tokenizer.json, or BERT's vocab.txt, with tokenizer_config.json if it is there."""
        folder = Path(folder)
        config = strict_json.read(folder / CONFIG, allow_nan=True) if (folder / CONFIG).is_file() else {}
        if (folder / FILE).is_file():
            text = text_of(read_input(folder / FILE, max_bytes=MAX_BYTES), folder / FILE)
        elif (folder / VOCABULARY).is_file():
            text = _of_vocabulary(folder / VOCABULARY, lowercase=config.get("do_lower_case", True))
        else:
            raise InputError(folder, "missing", f"holds no tokenizer: looked for {FILE} and {VOCABULARY}")
        made = cls(text, name=folder / FILE, plain=plain)
        made.settings = _settings(made, config, folder / CONFIG)
        return made

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, as the transformers library reads them."""
        from featherweight.files import publish, publish_json

        publish(Path(folder) / FILE, self.text.encode())
        known, far = self.settings, 10**30
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": far if known.max_length is None else known.max_length,
            "model_input_names": list(known.inputs),
            "padding_side": known.padding_side,
            "truncation_side": known.truncation_side,
            "pad_token_type_id": known.pad_type_id,
        }
        for key, number in {"pad_token": known.pad_id, "cls_token": known.cls_id}.items():
            token = None if number is None else self.token(number)
            config |= {} if token is None else {key: token}
        publish_json(Path(folder) / CONFIG, config)


def _check_text(text: Any) -> None:
    """InputError for what is no text."""
    if text is not None and not isinstance(text, str):
        raise InputError("text", "bad_type", f"{type(text).__name__} is no text; give a str")
    if text is not None and any("\ud800" <= char <= "\udfff" for char in text):
        raise InputError("text", "encoding", "holds half of a surrogate pair, which is not a character")


def _read(made: Any) -> Encoding:
    """An encoding of the tokenizers package as ours."""
    return Encoding(
        list(made.ids), list(made.type_ids), list(made.offsets), list(made.sequence_ids), list(made.word_ids)
    )


def _compiled(text: str, name: object) -> Any:
    """The tokenizer of the tokenizers package; None where it is not installed."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return None
    with door(name, "corrupt", "is no tokenizer that can be read"):
        made = Tokenizer.from_str(text)
    made.no_padding()
    return made


def _plain(text: str, name: object) -> WordPiece:
    description = strict_json.parse(text, name)
    if not isinstance(description, dict) or not isinstance(description.get("model"), dict):
        raise InputError(name, "corrupt", "is no tokenizer that can be read: it has no 'model'")
    with door(name, "bad_schema", "is no tokenizer that can be read"):
        return WordPiece(description, name)


def _of_vocabulary(path: Path, *, lowercase: bool) -> str:
    """The tokenizer.json that BERT's vocab.txt stands for: one token a line."""
    lines = text_of(read_input(path, max_bytes=MAX_BYTES), path).rstrip("\n").split("\n")
    vocab = {line.rstrip("\r"): number for number, line in enumerate(lines)}
    special = [word for word in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if word in vocab]
    if not {"[UNK]", "[CLS]", "[SEP]"} <= set(special):
        raise InputError(path, "bad_schema", "is not BERT's: it lacks [UNK], [CLS] or [SEP]")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    made = {
        "version": "1.0",
        "added_tokens": [{"id": vocab[word], "content": word, **flags} for word in special],
        "normalizer": {
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
            "lowercase": bool(lowercase),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "BertProcessing", "sep": ["[SEP]", vocab["[SEP]"]], "cls": ["[CLS]", vocab["[CLS]"]],
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab,
        },
    }  # fmt: skip
    return json.dumps(made, ensure_ascii=False)


def _settings(made: Tokens, config: Any, path: Path) -> Settings:
    """What a tokenizer_config.json says, in our words."""
    if not isinstance(config, dict):
        raise InputError(path, "bad_schema", "must be a JSON object")

    def number(key: str, *guesses: str) -> int | None:
        token = config.get(key)
        token = token.get("content") if isinstance(token, dict) else token
        found = (made.number(one) for one in ((token,) if isinstance(token, str) else guesses))
        return next((one for one in found if one is not None), None)

    longest = config.get("model_max_length")
    bounded = isinstance(longest, int) and 0 < longest < UNBOUNDED
    given = {
        "max_length": longest if bounded else None,
        "pad_id": number("pad_token", "[PAD]", "<pad>") or 0,
        "pad_type_id": config.get("pad_token_type_id", 0),
        "cls_id": number("cls_token", "[CLS]", "<s>"),
        "inputs": [name for name in config.get("model_input_names") or INPUTS if name in INPUTS],
        "padding_side": config.get("padding_side", "right"),
        "truncation_side": config.get("truncation_side", "right"),
    }
    return Settings.from_dict(given, path)


def missing_tokenizer(where: object) -> OptionError:
    """The error for a text model that comes without its tokenizer."""
    text = f"{shown(where)} comes without one; give tokenizer=, a folder with {FILE} or a tokenizer of transformers"
    return OptionError("tokenizer", text)
