# SPDX-License-Identifier: Apache-2.0
"""One tiny model of each family, filled with weights of sensible size, and a few images to train it on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import fill
import pytest
import torch
from torch import Tensor, nn

from featherweight.models import zoo
from featherweight.surgery import edits_of
from featherweight.tasks.classification import Classification, HuggingFace

SIZE, CLASSES, DIM, DEPTH, HEADS = 16, 5, 32, 3, 4
CONFIG = {
    "image_size": (SIZE, SIZE),
    "patch_size": 4,
    "num_classes": CLASSES,
    "embed_dim": DIM,
    "depth": DEPTH,
    "num_heads": HEADS,
}


@dataclass(frozen=True)
class Family:
    name: str
    build: Callable[[], nn.Module]
    task: Classification
    transformer: bool = True

    def make(self, seed: str = "") -> nn.Module:
        """A fresh model in evaluation mode; equal seeds give equal weights."""
        model = self.build()
        state = {key: fill.tensor(seed + key, t.shape, t.dtype) for key, t in model.state_dict().items()}
        model.load_state_dict({key: t + 1 if "coefficient" in key else t for key, t in state.items()})
        return model.eval()

    @torch.no_grad()
    def logits(self, model: nn.Module, images: Tensor | None = None) -> Tensor:
        """What the model answers, in the mode it is in."""
        return self.task.forward(model, {"image": IMAGES if images is None else images})

    def base(self) -> nn.Module | None:
        """What loading a file needs besides the file."""
        return None if self.name in OWN else self.build()


def _timm() -> nn.Module:
    vision_transformer = pytest.importorskip("timm.models.vision_transformer")
    return vision_transformer.VisionTransformer(
        img_size=SIZE, patch_size=4, num_classes=CLASSES, embed_dim=DIM, depth=DEPTH, num_heads=HEADS
    )


def _transformers() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        image_size=SIZE, patch_size=4, num_labels=CLASSES, hidden_size=DIM, num_hidden_layers=DEPTH,
        num_attention_heads=HEADS, intermediate_size=4 * DIM, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


class Plain(nn.Module):
    """A user's own module, of which nobody described anything."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()
        )
        self.classifier = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


LVVIT = {"name": "lvvit", "config": {**CONFIG, "stem_width": 8, "mlp_ratio": 4.0}}
SRET_CONFIG = {
    "image_size": (SIZE, SIZE), "num_classes": CLASSES, "base_dim": 8, "depths": (6, 2), "unique_blocks": (2, 1),
    "num_heads": (1, 2), "groups": (2, 1), "groups_recursive": (2, 1),
}  # fmt: skip
OWN = ("ours", "lvvit", "sret")  # families that a file of ours can name
FAMILIES = {
    "ours": Family("ours", lambda: zoo.build({"name": "vit", "config": CONFIG}), Classification(CLASSES)),
    "lvvit": Family("lvvit", lambda: zoo.build(LVVIT), Classification(CLASSES)),
    "timm": Family("timm", _timm, Classification(CLASSES)),
    "transformers": Family("transformers", _transformers, HuggingFace(CLASSES)),
}
SRET = Family("sret", lambda: zoo.build({"name": "sret", "config": SRET_CONFIG}), Classification(CLASSES))
PLAIN = Family("plain", Plain, Classification(CLASSES), transformer=False)
IMAGES = fill.normal("images", (2, 3, SIZE, SIZE))


class Images:
    """Batches for `fit`: the same few images in each epoch."""

    def __init__(self, *, steps: int = 2, size: int = 4) -> None:
        self.steps_per_epoch = steps
        self.size = size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        for step in range(start, self.steps_per_epoch):
            image = fill.normal(f"training images {step}", (self.size, 3, SIZE, SIZE))
            yield {"image": image, "label": (torch.arange(self.size) + step) % CLASSES}

    def shard(self, rank: int, world: int) -> Images:
        return self


def everything(model: nn.Module) -> dict[str, Any]:
    """All that a function that returns a new model must leave as it was."""
    return {
        "state": copy.deepcopy(model.state_dict()),
        "structure": repr(model),
        "modes": [module.training for module in model.modules()],
        "trained": [(name, parameter.requires_grad) for name, parameter in model.named_parameters()],
        "gradients": [name for name, parameter in model.named_parameters() if parameter.grad is not None],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()],
        "edits": edits_of(model),
    }


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Whether two answers of `everything` are equal to the bit."""
    state, other = left["state"], right["state"]
    return (
        list(state) == list(other)
        and all(torch.equal(state[key], other[key]) for key in state)
        and all(left[key] == right[key] for key in left if key != "state")
    )
