# SPDX-License-Identifier: Apache-2.0
"""A smaller vocabulary for a text model: the tokens that no text of yours uses lose their rows in the embedding.

Of small encoders the embedding is most of the file: 11.7 of the 22.7 million weights of MiniLM's 6 layers. What stays:
the tokens the given texts use, the special ones, and every single character, so that any word can still be spelled.
Texts made of kept words give the same answers as before, to the bit; others are cut into smaller pieces. (Abdaoui 2020,
arXiv 2010.05609, does it for languages.) For WordPiece tokenizers, such as BERT's. Not here: training afterwards.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from ..errors import OptionError
from ..runtime.tokens import Tokens
from ..surgery import Edit, apply


def counted(tokens: Tokens, texts: Iterable[str]) -> Counter[int]:
    """How often each token stands in the texts."""
    found: Counter[int] = Counter()
    for text in texts:
        found.update(tokens.encode(text, specials=False)[0].ids)
    return found


def kept(tokens: Tokens, texts: Iterable[str], *, least: int = 1) -> list[int]:
    """The numbers of the tokens that stay, rising. least: how often a token must be seen; 0 keeps all.

    OptionError for a tokenizer of another kind, or for no texts.
    """
    description = _wordpiece(tokens)
    vocab: dict[str, int] = description["model"]["vocab"]
    if least < 0:
        raise OptionError("least", f"must be 0 or more, not {least!r}")
    if least == 0:
        return sorted(set(vocab.values()))
    seen = counted(tokens, texts)
    if not seen:
        raise OptionError("texts", "hold no token; give the sentences the model is for")
    prefix = description["model"].get("continuing_subword_prefix", "##")
    letters = {number for word, number in vocab.items() if len(word.removeprefix(prefix)) == 1}
    special = {int(token["id"]) for token in description.get("added_tokens") or ()}
    special |= {tokens.settings.pad_id, *([] if tokens.settings.cls_id is None else [tokens.settings.cls_id])}
    special |= {vocab[description["model"]["unk_token"]]}
    return sorted(letters | special | {number for number, count in seen.items() if count >= least})


def plan(model: nn.Module, *, keep: list[int]) -> list[Edit]:
    """The edit that leaves these rows of the embedding; nothing is touched. All of them: no edit."""
    path, embedding = _embedding(model)
    if len(keep) == embedding.num_embeddings:
        return []
    pad = embedding.padding_idx
    if pad is not None and (pad >= len(keep) or keep[pad] != pad):
        raise OptionError("keep", f"must leave the padding token at its place, {pad}: the model counts from it")
    return [Edit(path, "narrow", {"keep": {"weight": {"0": list(keep)}}})]


def trimmed(model: nn.Module, tokens: Tokens, *, texts: Iterable[str], least: int = 1) -> tuple[nn.Module, Tokens]:
    """A copy of the model with a smaller embedding, and its tokenizer with the tokens that are left."""
    keep = kept(tokens, texts, least=least)
    return apply(model, plan(model, keep=keep)), narrowed(tokens, keep)


def narrowed(tokens: Tokens, keep: list[int]) -> Tokens:
    """The tokenizer with these tokens alone, numbered anew in their order."""
    description = _wordpiece(tokens)
    places = {old: new for new, old in enumerate(keep)}
    vocab = description["model"]["vocab"]
    description["model"]["vocab"] = {word: places[number] for word, number in vocab.items() if number in places}
    for token in description.get("added_tokens") or ():
        token["id"] = places[token["id"]]
    _renumber(description.get("post_processor") or {}, places)
    settings = tokens.settings
    first = None if settings.cls_id is None else places[settings.cls_id]
    text = json.dumps(description, ensure_ascii=False)
    return Tokens(text, replace(settings, pad_id=places[settings.pad_id], cls_id=first), name=tokens.name)


def _renumber(processor: Any, places: Mapping[int, int]) -> None:
    """What stands around a text: its tokens by their new numbers."""
    for name in ("sep", "cls"):
        if isinstance(pair := processor.get(name), list):
            pair[1] = places[pair[1]]
    for token in (processor.get("special_tokens") or {}).values():
        token["ids"] = [places[number] for number in token["ids"]]


def _wordpiece(tokens: Tokens) -> dict[str, Any]:
    description: dict[str, Any] = json.loads(tokens.text)
    kind = (description.get("model") or {}).get("type")
    if kind != "WordPiece":
        raise OptionError("tokenizer", f"is of kind {kind}; only WordPiece vocabularies can be made smaller")
    return description


def _embedding(model: nn.Module) -> tuple[str, nn.Embedding]:
    """The embedding of the tokens: the one with the most rows. LookupError where there is none."""
    found = {path: layer for path, layer in model.named_modules() if type(layer) is nn.Embedding}
    if not found:
        raise LookupError(f"{type(model).__name__} has no embedding of tokens")
    path = max(found, key=lambda name: found[name].num_embeddings)
    return path, found[path]
