# SPDX-License-Identifier: Apache-2.0
"""A model's folder for other libraries: a config.json where transformers or timm alone can run the model.

Layers that are fewer and MLPs that are narrower in every layer alike are a matter of numbers in that file. Heads cut
out, factors, codebooks and integers are not: such a folder is ours alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .anatomy import anatomy_of, blocks_of
from .files import publish, publish_json
from .models import zoo
from .models.pretrained import CONFIG, base_of, build, task_of, tokens_of
from .modes import evaluating
from .runtime.tokens import Tokens
from .surgery import edits_of, submodule

TIMM = "timm:"
CARD, OURS = "README.md", "library_name: featherweight"
CALLS = {
    "text-classification": 'model(["A warm and funny film.", "这部电影很好看。"])',
    "question-answering": 'model(question="Who built the tower?", context="The tower was built by Ada.")',
}
TRANSFORMERS = {
    "text-classification": 'pipeline("text-classification", "path/to/this/folder")("A warm and funny film.")',
    "question-answering": 'AutoModelForQuestionAnswering.from_pretrained("path/to/this/folder")',
}


def write_beside(model: nn.Module, folder: Path) -> None:
    """What a text model's folder holds for other libraries: tokenizer.json, and config.json where it can have one."""
    if (told := tokens_of(model)) is not None:
        Tokens.from_metadata(told, folder).save(folder)
    write_timm(model, folder)
    if task_of(model) is None:
        return
    alone = write_config(model, folder)
    if not alone:
        (folder / CONFIG).unlink(missing_ok=True)  # of a model that was here before
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
    task = task_of(model) or ""
    kinds = Counter(edit.kind for edit in edits_of(model))
    done = ", ".join(f"{kind} ({count})" for kind, count in kinds.items()) or "nothing"
    count = sum(tensor.numel() for tensor in model.state_dict().values())
    call = CALLS[task]
    theirs = f"""
Plain transformers runs it too:

```python
from transformers import {"pipeline" if task == "text-classification" else "AutoModelForQuestionAnswering"}

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


def write_config(model: nn.Module, folder: Path) -> bool:
    """Write config.json if the transformers library alone can run this model from it; whether it can.

    Found by building a model from the numbers alone and comparing the two on random tokens.
    """
    base = base_of(model)
    if base is None:
        return False
    with torch.random.fork_rng(devices=[]):
        twin = build(base["name"], _fitted(base["config"], model)).eval()
    if _shapes(model) != _shapes(twin):
        return False
    twin.load_state_dict({name: tensor.float() for name, tensor in model.state_dict().items()})
    if not _same(model, twin):
        return False
    config: Any = twin.config
    publish_json(folder / CONFIG, {**config.to_dict(), "architectures": [type(model).__name__]})
    return True


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _fitted(config: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """The numbers of a config as the model's own layers say them."""
    rows = getattr(model.get_input_embeddings(), "num_embeddings", None)  # type: ignore[operator]
    found = {**config, **({"vocab_size": int(rows)} if rows is not None else {})}
    try:
        anatomy, blocks = anatomy_of(model), list(blocks_of(model).values())
        widths = {int(submodule(block, anatomy.mlp[0]).out_features) for block in blocks}  # type: ignore[arg-type]
    except (TypeError, LookupError, AttributeError):
        return found
    for name in {"num_hidden_layers", "n_layers"} & set(found):
        found[name] = len(blocks)
    for name in {"intermediate_size", "hidden_dim"} & set(found):
        found[name] = next(iter(widths)) if len(widths) == 1 else found[name]
    return found


def _same(model: nn.Module, twin: nn.Module) -> bool:
    size = min(int(getattr(twin.config, "vocab_size", 2)), 1000)  # type: ignore[arg-type]
    ids = torch.randint(0, size, (2, 6), generator=torch.Generator().manual_seed(0))
    with evaluating(model), evaluating(twin), torch.inference_mode():
        left, right = (made(input_ids=ids, attention_mask=torch.ones_like(ids)) for made in (model, twin))
    pairs = zip(left.to_tuple(), right.to_tuple(), strict=True)
    return all(torch.allclose(a.float(), b.float(), atol=1e-5, rtol=1e-4) for a, b in pairs)
