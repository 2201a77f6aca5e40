# SPDX-License-Identifier: Apache-2.0
"""A model's folder for other libraries: a config.json where transformers or timm alone can run the model.

Layers that are fewer, MLPs that are narrower and heads of a ViT that are fewer, in every layer alike, are a matter of
numbers in that file. Heads cut out of other models, factors, codebooks and integers are not: such a folder is ours
alone. An image classifier's folder also gets a preprocessor_config.json.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .anatomy import anatomy_of, blocks_of
from .files import publish, publish_json
from .models import zoo
from .models.pretrained import CONFIG, base_of, build, labels_of, task_of, tokens_of
from .models.pretrained_images import PROCESSORS, told
from .modes import evaluating
from .runtime.record import TASKS, Record
from .runtime.tokens import Tokens
from .surgery import edits_of, submodule

TIMM = "timm:"
CARD, OURS = "README.md", "library_name: featherweight"
CALLS = {
    "image-classification": 'model("picture.jpg")',
    "text-classification": 'model(["A warm and funny film.", "这部电影很好看。"])',
    "question-answering": 'model(question="Who built the tower?", context="The tower was built by Ada.")',
}
TRANSFORMERS = {
    "image-classification": 'pipeline("image-classification", "path/to/this/folder")("picture.jpg")',
    "text-classification": 'pipeline("text-classification", "path/to/this/folder")("A warm and funny film.")',
    "question-answering": 'AutoModelForQuestionAnswering.from_pretrained("path/to/this/folder")',
}


def write_beside(model: nn.Module, folder: Path, record: Record) -> None:
    """What a model's folder holds for other libraries: its tokenizer or how its pictures are prepared, and config.json.

    Where the other library could not run the model, its files of a model that was here before go away.
    """
    if (carried := tokens_of(model)) is not None:
        Tokens.from_metadata(carried, folder).save(folder)
    write_timm(model, folder)
    if (task := task_of(model)) is None and base_of(model) is None:
        return
    pictures = None if task else told(record.preprocess)
    alone = (task is not None or pictures is not None) and write_config(model, folder, record)
    if alone and pictures is not None:
        publish_json(folder / PROCESSORS[0], pictures)
    if not alone:
        for name in (CONFIG,) if task else (CONFIG, PROCESSORS[0]):
            (folder / name).unlink(missing_ok=True)
    place = folder / CARD
    if not place.exists() or OURS in place.read_text(encoding="utf-8", errors="replace"):
        publish(place, card(model, alone=alone).encode())


def write_timm(model: nn.Module, folder: Path) -> None:
    """The config.json by which `timm.create_model("local-dir:FOLDER", pretrained=True)` builds a model of timm's.

    None where edits changed the model: timm could not build that.
    """
    base = zoo.base_of(model)
    if base is None or not base["name"].startswith(TIMM):
        return
    if edits_of(model):
        (folder / CONFIG).unlink(missing_ok=True)  # of a model that was here before
        return
    known: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    plain = {key: value for key, value in known.items() if isinstance(value, (bool, int, float, str, list, tuple))}
    classes = int(getattr(model, "num_classes", 0))
    about = {
        "architecture": base["name"].removeprefix(TIMM),
        "num_classes": classes,
        "model_args": dict(base["config"]),
    }
    publish_json(folder / CONFIG, {**about, "pretrained_cfg": {**plain, "num_classes": classes}})


def card(model: nn.Module, *, alone: bool) -> str:
    """The model card: what it is, what was done to it, and the lines that run it. alone: without us, too."""
    task = task_of(model) or TASKS[0]
    kinds = Counter(edit.kind for edit in edits_of(model))
    done = ", ".join(f"{kind} ({count})" for kind, count in kinds.items()) or "nothing"
    count = sum(tensor.numel() for tensor in model.state_dict().values())
    call = CALLS[task]
    theirs = f"""
Plain transformers runs it too:

```python
from transformers import {TRANSFORMERS[task].partition("(")[0].partition(".")[0]}

{TRANSFORMERS[task]}
```
"""
    return f"""---
{OURS}
pipeline_tag: {task}
tags: [featherweight, compression]
---

# {type(model).__name__}

- Task: {task}
- Numbers stored: {count:,}
- Changed: {done}

```python
from featherweight import pipeline

model = pipeline("{task}", "path/to/this/folder")
{call}
```
{theirs if alone else ""}"""


def write_config(model: nn.Module, folder: Path, record: Record) -> bool:
    """Write config.json if the transformers library alone can run this model from it; whether it can.

    Found by building a model from the numbers alone and comparing the two on random tokens or pictures.
    """
    base = base_of(model)
    if base is None:
        return False
    named = record.classes if len(record.classes) == len(labels_of(model)) else labels_of(model)
    numbers = {**_fitted(base["config"], model), "id2label": {str(i): name for i, name in enumerate(named)}}
    with torch.random.fork_rng(devices=[]):
        twin = build(base["name"], numbers).eval()
    if _shapes(model) != _shapes(twin):
        return False
    twin.load_state_dict({name: tensor.float() for name, tensor in model.state_dict().items()})
    if not _same(model, twin, record):
        return False
    config: Any = twin.config
    publish_json(folder / CONFIG, {**config.to_dict(), "architectures": [type(model).__name__]})
    return True


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _fitted(config: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """The numbers of a config as the model's own layers say them."""
    found = dict(config)
    if "vocab_size" in found:
        rows = getattr(model.get_input_embeddings(), "num_embeddings", None)  # type: ignore[operator]
        found["vocab_size"] = found["vocab_size"] if rows is None else int(rows)
    try:
        anatomy, blocks = anatomy_of(model), list(blocks_of(model).values())
        widths = {int(submodule(block, anatomy.mlp[0]).out_features) for block in blocks}  # type: ignore[arg-type]
        attentions: list[Any] = [submodule(block, anatomy.attention) for block in blocks]
    except (TypeError, LookupError, AttributeError):
        return found
    for name in {"num_hidden_layers", "n_layers"} & set(found):
        found[name] = len(blocks)
    for name in {"intermediate_size", "hidden_dim"} & set(found):
        found[name] = next(iter(widths)) if len(widths) == 1 else found[name]
    if anatomy.head_dim:
        heads = {(int(getattr(one, anatomy.num_heads)), int(getattr(one, anatomy.head_dim))) for one in attentions}
        kept, width = next(iter(heads)) if len(heads) == 1 else (0, 0)
        if kept and kept != found.get("num_attention_heads"):
            found |= {"num_attention_heads": kept, "head_dim": width}
    return found


def _same(model: nn.Module, twin: nn.Module, record: Record) -> bool:
    """Whether the two answer alike, both in float32: that numbers are stored in fewer bits is said by the weights."""
    random = torch.Generator().manual_seed(0)
    if task_of(model) is not None:
        size = min(int(getattr(twin.config, "vocab_size", 2)), 1000)  # type: ignore[arg-type]
        ids = torch.randint(0, size, (2, 6), generator=random)
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    else:
        sides = record.preprocess.size if record.preprocess else (1, 1)
        given = {"pixel_values": torch.randn(2, 3, *sides, generator=random)}
    plain = all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in model.parameters())
    mine = model if plain else copy.deepcopy(model).cpu().float()
    try:
        with evaluating(mine), evaluating(twin), torch.inference_mode():
            left, right = (made(**given) for made in (mine, twin))
    except (RuntimeError, ValueError):  # it does not take the pictures that its record speaks of
        return False
    pairs = zip(left.to_tuple(), right.to_tuple(), strict=True)
    return all(torch.allclose(a.float(), b.float(), atol=1e-5, rtol=1e-4) for a, b in pairs)
