# SPDX-License-Identifier: Apache-2.0
"""The steps that only text models have, and star-shaped attention, which those of pictures may have too."""

from __future__ import annotations

from typing import Annotated

from torch import nn

from . import outlines, outlines_text, texting
from .binding import Within
from .composition import GLOBAL, MODEL, PLAIN, TOKENS, TRAINS, Effect, also, composes
from .data.text import words_of
from .fitting import taught
from .methods import power_bert as dropping
from .methods import star_attention as star
from .methods import vocabulary as words
from .methods.share import share
from .models import pretrained
from .recipe import Count, Epochs, Rate
from .surgery import apply
from .work import Work, current, finished_stage

ROWS = Effect(needs={MODEL: "", PLAIN: "rows are cut out of the embedding"})
FEWER = {TOKENS: "some are dropped"}
NEAR = {GLOBAL: "each token sees its neighbors and one relay"}


@composes(ROWS, outline=outlines_text.fewer_words)
def vocabulary(work: Work, *, least: Annotated[int, Within(0, 1_000_000)] = 1) -> Work:
    """Leave the tokens that stand in the training texts `least` times, the special ones and single characters.

    The tokenizer goes with them; teachers read the smaller vocabulary from here on, too. 0 leaves all.
    """
    before = current(work)
    tokens = texting.tokens_of(before)
    texts = [text for one in work.data.train for text in words_of(one)]
    keep = words.kept(tokens, texts, least=least)
    narrowed = words.narrowed(tokens, keep)

    def cut(model: nn.Module) -> nn.Module:
        return pretrained.with_tokens(apply(model, words.plan(model, keep=keep)), narrowed).eval()

    model = work.once("model", lambda: cut(before))
    after = texting.narrowed_methods(work, cut)
    return finished_stage(after, f"vocabulary ({len(keep)} of {len(tokens)} tokens)", model)


@composes(Effect(needs={MODEL: ""}, breaks={PLAIN: "embeddings hold codes"}), outline=outlines_text.embeddings)
def share_embeddings(work: Work, *, bits: Annotated[int, Within(1, 8)] = 8) -> Work:
    """Embeddings as codes of so many bits into a codebook each; what 8 bits for layers that multiply leave in float."""
    before = current(work)
    paths = [path for path, layer in before.named_modules() if type(layer) is nn.Embedding]
    if not paths:
        raise LookupError(f"{type(before).__name__} has no embedding in float")
    model = work.once("model", lambda: share(before, bits=dict.fromkeys(paths, bits)).eval())
    return finished_stage(work, f"embeddings in {bits} bits", model)


DROPS = {"eliminate_tokens": Effect(breaks=FEWER)}
STARS = {"star_attention": Effect(breaks=NEAR)}


@composes(
    also(TRAINS, needs={TOKENS: "shares are of all of a text", GLOBAL: "the first token looks at all"}, breaks=FEWER),
    marks=DROPS,
    outline=outlines.planned(dropping, "keep"),
)
def power_bert(
    work: Work,
    *,
    keep: Annotated[float, Within(0.0, 1.0, open_low=True)] = 0.7,
    epochs: Epochs | None = None,
    images: Count | None = None,
    lr: Rate | None = None,
) -> Work:
    """Drop the tokens of a text that its first one attends to least (PoWER-BERT), then train on.

    keep: r, of which r, r^2 and r^3 are left at a quarter, a half and three quarters of the depth.
    """
    before = current(work)
    edits = dropping.plan(before, keep=keep)
    model = work.once("model", lambda: taught(work, apply(before, edits), epochs, images, lr))
    return finished_stage(work, f"tokens dropped (keep {keep:g})", model)


@composes(
    also(TRAINS, needs={GLOBAL: "it is made a star"}, breaks=NEAR),
    marks=STARS,
    outline=outlines.planned(star, "radius"),
)
def star_attention(
    work: Work,
    *,
    radius: Annotated[int, Within(1, 100_000)] = 1,
    epochs: Epochs | None = None,
    images: Count | None = None,
    lr: Rate | None = None,
) -> Work:
    """Let each token see `radius` neighbors on each side and the first one (Star-Transformer), then train on."""
    before = current(work)
    edits = star.plan(before, radius=radius)
    model = work.once("model", lambda: taught(work, apply(before, edits), epochs, images, lr))
    return finished_stage(work, f"star attention (radius {radius})", model)
