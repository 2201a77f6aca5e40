# SPDX-License-Identifier: Apache-2.0
"""What text models mean: a label for a text, or where in a text the answer to a question stands.

A batch is what the tokenizer gives, `input_ids`, `attention_mask` and where the model takes them `token_type_ids`, all
(B, N), with "label" (B,), or for questions "start" and "end" (B,), places of tokens. Models are those of the
transformers library, or any that takes these names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featherweight.errors import OptionError
from featherweight.modes import evaluating
from featherweight.tasks.classification import Classification, wilson

INPUTS = ("input_ids", "token_type_ids", "attention_mask")
HIDDEN = -1e4  # the logit of a token that is padding


class TextClassification(Classification):
    """One label per text."""

    def forward(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """The logits (B, K)."""
        found = model(**fed(batch))
        logits: Tensor = getattr(found, "logits", found)
        return logits


class QuestionAnswering:
    """First and last token of the answer; both are rows of one tensor, so that distillers can compare them."""

    def forward(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits (2 B, N): the starts, then the ends; padding is out of the question."""
        found = model(**fed(batch))
        rows = torch.cat([found.start_logits, found.end_logits])
        return rows.masked_fill(batch["attention_mask"].repeat(2, 1) == 0, HIDDEN)

    def loss(self, output: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy of the first and of the last token, their mean."""
        return {"task": F.cross_entropy(output, torch.cat([batch["start"], batch["end"]]))}

    def decode(self, output: Tensor) -> list[tuple[int, int]]:
        """For each question the likeliest first token, and the likeliest last one that is not before it."""
        starts, ends = output.detach().float().chunk(2)
        first = starts.argmax(-1)
        places = torch.arange(ends.shape[1], device=ends.device)
        last = ends.masked_fill(places[None] < first[:, None], -torch.inf).argmax(-1)
        return list(zip(first.tolist(), last.tolist(), strict=True))

    def evaluate(self, model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, Any]:
        """{"exact", "n", "correct", "interval"}: windows whose first and last token are both right."""
        right = count = 0
        with evaluating(model), torch.inference_mode():
            for batch in batches:
                found = self.decode(self.forward(model, batch))
                wanted = list(zip(batch["start"].tolist(), batch["end"].tolist(), strict=True))
                right += sum(one == other for one, other in zip(found, wanted, strict=True))
                count += len(wanted)
        if not count:
            raise OptionError("data", "nothing to evaluate on: there are no batches")
        return {"exact": right / count, "n": count, "correct": right, "interval": wilson(right, count)}


def fed(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What of a batch the model is given."""
    return {name: batch[name] for name in INPUTS if name in batch}
