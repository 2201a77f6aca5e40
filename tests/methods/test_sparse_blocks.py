# SPDX-License-Identifier: Apache-2.0
"""Dropping tokens otherwise than the paper: by threshold, at random, by attention, gathered while training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fill
import pytest
import torch
from families import CLASSES, FAMILIES, IMAGES, Family, Images, everything, same
from torch import Tensor, nn

from featherweight import artifact, optim
from featherweight.anatomy import anatomy_of, blocks_of, prefix_of
from featherweight.errors import OptionError
from featherweight.methods import dynamicvit
from featherweight.methods import dynamicvit_loss as losses
from featherweight.methods.attention import attention_of
from featherweight.methods.dynamicvit import DynamicViT, SparseBlocks, param_groups, recording, set_keep, stages
from featherweight.methods.sparse_blocks import one_at_least
from featherweight.methods.token_scores import PRIME, above, best, random_order, take
from featherweight.surgery import apply, edits_of, find
from featherweight.train import fit

MORE = fill.normal("more images", (5, 3, 16, 16))


def sparse_of(family: Family, **options: Any) -> nn.Module:
    model = family.make()
    return apply(model, dynamicvit.plan(model, **options)).eval()


@torch.no_grad()
def kept(model: nn.Module, family: Family, images: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
    with recording(model) as sparse:
        return family.logits(model, images), list(sparse.aside.places)


# Shares ---------------------------------------------------------------------------------------------------------------
def test_shares_may_be_listed_to_the_bit() -> None:
    listed = [0.7, 0.7**2, 0.3429999999999999]
    assert list(stages(listed, [3, 6, 9], 12).items()) == [(3, 0.7), (6, 0.48999999999999994), (9, 0.3429999999999999)]
    assert stages(listed, None, 12) == stages(0.7, None, 12)
    assert stages(0.5, None, 1) == {0: 0.5}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"keep": [0.5, 0.4]}, "keep: 2 shares are given for 3 places, blocks [1, 2, 3]"),
        ({"keep": [0.5, 0.6], "at": [1, 2]}, "dropped tokens do not come back"),
        ({"keep": 0.5, "at": [1, 1]}, "at: [1, 1] names a block twice"),
        ({"keep": {1: 0.5}, "at": [2]}, "leave one of them out"),
        ({"keep": 0.5, "at": [-1]}, "at: no block -1: the model has 3, counted from 0"),
        ({"score": "chance"}, "score: no 'chance'"),
        ({"threshold": 1.5}, "threshold: 1.5 is not between 0 and 1"),
        ({"threshold": 0.5, "score": "random"}, "threshold: needs predictors"),
        ({"seed": -1, "score": "random"}, "seed: -1 is not a whole number"),
        ({"stage": 3}, "stage: is for timm's ConvNeXt and Swin"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], says: str) -> None:
    family = FAMILIES["ours"]
    with pytest.raises(OptionError) as error:
        dynamicvit.plan(
            family.make(), **({"at": [1, 2, 3]} if len(options) == 1 and "keep" in options else {}) | options
        )
    assert says in str(error.value)
    with pytest.raises(OptionError, match=r"train: 'fast' is not one of mask, gather"):
        DynamicViT(train="fast")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"ratio: 'each'"):
        DynamicViT(ratio="each")  # type: ignore[arg-type]


# Changed at run time --------------------------------------------------------------------------------------------------
def test_shares_can_be_changed_later_and_are_saved(family: Family, tmp_path: Path) -> None:
    model = sparse_of(family, keep={1: 0.5, 2: 0.25})
    before = everything(model)
    fewer = set_keep(model, [0.25, 0.125])
    assert same(before, everything(model))
    assert [places.shape[1] for places in kept(fewer, family)[1]] == [4, 2]
    assert [places.shape[1] for places in kept(set_keep(fewer, 0.5), family)[1]] == [8, 4]
    loaded = artifact.load(artifact.save(fewer, tmp_path), base=family.base())
    assert find(loaded, SparseBlocks).keep == ((1, 0.25), (2, 0.125))
    assert torch.equal(family.logits(loaded), family.logits(fewer))
    likely = set_keep(fewer, threshold=0.4)
    assert edits_of(likely)[-1].spec == {"keep": [[1, 0.25], [2, 0.125]], "threshold": 0.4}
    assert edits_of(set_keep(likely))[-1].spec == {"keep": [[1, 0.25], [2, 0.125]]}
    for wrong, says in (
        ({3: 0.5}, "this model drops before"),
        ([0.5], "1 shares"),
        (1.5, "not in"),
        ([0.2, 0.4], "grows"),
    ):
        with pytest.raises(OptionError, match=says):
            set_keep(model, wrong)
    with pytest.raises(LookupError, match="0 modules that drop tokens"):
        set_keep(family.make(), 0.5)


# Thresholds -----------------------------------------------------------------------------------------------------------
def telling(probabilities: Tensor) -> float:
    """A level (B, N) with different counts above it in different rows, as far from every number as there is one."""
    ordered = probabilities.flatten().sort().values
    levels = (ordered[1:] + ordered[:-1]) / 2
    counts = (probabilities[None] >= levels[:, None, None]).sum(-1)  # (levels, B)
    good = (counts.amax(1) > counts.amin(1)) & (counts.amin(1) > 1)
    return float(levels[torch.where(good, ordered.diff(), -1.0).argmax()])


def test_a_threshold_keeps_as_many_of_each_image_as_are_likely(family: Family) -> None:
    model = sparse_of(family, keep={1: 0.5, 2: 0.25})
    scores: list[Tensor] = []
    find(model, SparseBlocks).score_predictor[0].register_forward_hook(lambda _m, _a, out: scores.append(out[..., 0]))
    with torch.no_grad():
        family.logits(model, MORE)
    level = telling(scores[0].exp())
    likely = set_keep(model, threshold=level)
    together, places = kept(likely, family, MORE)
    wanted = [row.exp().ge(level).nonzero().flatten().tolist() for row in scores[0]]
    assert [sorted(set(row.tolist())) for row in places[0]] == wanted
    assert len({len(row) for row in wanted}) > 1, "the case is no test"
    for i, image in enumerate(MORE):  # a batch answers as each of its images alone, where nothing is filled up
        alone, mine = kept(likely, family, image[None])
        assert mine[0].tolist() == [wanted[i]]
        torch.testing.assert_close(alone[0], together[i], atol=2e-5, rtol=0)


def test_a_threshold_that_nothing_reaches_leaves_the_best(family: Family) -> None:
    answer, places = kept(set_keep(sparse_of(family, keep={1: 0.5}), threshold=0.999), family)
    assert answer.isfinite().all()
    assert [row.shape[1] for row in places] == [1]
    all_of_them, places = kept(set_keep(sparse_of(family, keep={1: 0.5}), threshold=1e-6), family)
    assert places[0].shape[1] == 16
    torch.testing.assert_close(all_of_them, family.logits(family.make()))


def test_a_threshold_needs_a_class_token_that_answers() -> None:
    timm = pytest.importorskip("timm.models.vision_transformer")
    host = timm.VisionTransformer(img_size=16, patch_size=4, embed_dim=32, depth=3, num_heads=4, global_pool="avg")
    assert dynamicvit.plan(host)
    with pytest.raises(OptionError, match="threshold: VisionTransformer averages its tokens"):
        dynamicvit.plan(host, threshold=0.5)


def test_the_cut_at_a_threshold() -> None:
    score = torch.tensor([[0.9, 0.2, 0.6, 0.1], [0.1, 0.2, 0.3, 0.4]]).log()
    chosen, real = above(score, 0.5, None)
    assert chosen.tolist() == [[0, 2], [3, 3]]
    assert real is not None and real.tolist() == [[True, True], [True, False]]
    chosen, real = above(score, 0.15, torch.tensor([[True, True, False, False], [True, True, False, False]]))
    assert (chosen.tolist(), real) == ([[0, 1], [1, 1]], None) or real is not None
    assert above(score[:1], 0.5, None)[1] is None  # an image alone is never filled up


def test_threshold_mode_can_be_captured_whole() -> None:
    family = FAMILIES["ours"]
    likely = set_keep(sparse_of(family, keep={1: 0.5, 2: 0.25}), threshold=0.45)
    program = torch.export.export(find(likely, SparseBlocks), (fill.normal("tokens", (3, 16 + prefix_of(likely), 32)),))
    x = fill.normal("other tokens", (3, 16 + prefix_of(likely), 32))
    wanted = find(likely, SparseBlocks)(x)
    torch.testing.assert_close(program.module()(x)[:, 0], wanted[:, 0], atol=1e-5, rtol=0)


# Baselines ------------------------------------------------------------------------------------------------------------
def test_a_random_order_is_one_of_all_and_nested() -> None:
    places = torch.arange(5000)[None]
    scores = random_order(places, 3)
    assert len(scores.unique()) == 5000 and 0 <= float(scores.min()) <= float(scores.max()) < PRIME < 2**24
    assert abs(float(scores.mean()) / PRIME - 0.5) < 0.02
    assert not torch.equal(scores.argsort(), random_order(places, 4).argsort())
    first = best(scores, 100)
    assert set(take_places(first, best(random_order(first, 3), 10))) <= set(best(scores, 10)[0].tolist())


def take_places(places: Tensor, chosen: Tensor) -> list[int]:
    return places.gather(1, chosen)[0].tolist()


def test_random_dropping_depends_on_the_seed_alone(family: Family, tmp_path: Path) -> None:
    keep = {1: 0.5, 2: 0.25}
    model = sparse_of(family, keep=keep, score="random", seed=1)
    places = kept(model, family)[1]
    assert all(torch.equal(places[0][0], row) for row in places[0])
    assert torch.equal(places[0], kept(model, family, MORE[:2])[1][0])
    assert not torch.equal(places[0], kept(sparse_of(family, keep=keep, score="random", seed=2), family)[1][0])
    assert not list(find(model, SparseBlocks).score_predictor.parameters())
    loaded = artifact.load(artifact.save(model, tmp_path), base=family.base())
    assert torch.equal(kept(loaded, family)[1][1], places[1])


def test_attention_keeps_what_the_class_token_attends_to(family: Family) -> None:
    model = sparse_of(family, keep={1: 0.5}, score="attention")
    seen: list[Tensor] = []
    host = family.make()
    block, anatomy = list(blocks_of(host).values())[1], anatomy_of(host)
    block.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    family.logits(host)
    scores = attention_of(block, anatomy, seen[0]).mean(1)[:, 0, prefix_of(host) :]
    assert torch.equal(kept(model, family)[1][0], scores.topk(8).indices.sort().values)


@pytest.mark.parametrize("score", ["random", "attention"])
def test_a_baseline_trains_without_predictors(family: Family, score: Any) -> None:
    rows: list[dict[str, Any]] = []
    method = DynamicViT(family.make("teacher"), keep=0.5, score=score)
    new = fit(family.make(), Images(steps=2), family.task, methods=[method], log=rows.append)
    assert set(rows[0]["terms"]) == {"task", "kl", "tokens"}
    assert find(new, SparseBlocks).score == score


# Training that gathers ------------------------------------------------------------------------------------------------
def test_training_that_gathers_runs_fewer_tokens_and_teaches_the_predictors(family: Family) -> None:
    model = DynamicViT(keep={1: 0.5, 2: 0.25}, train="gather").prepare(family.make()).train()
    lengths: list[int] = []
    for block in blocks_of(model).values():
        block.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1] - prefix_of(model)))
    torch.manual_seed(0)
    family.task.forward(model, {"image": IMAGES}).square().sum().backward()
    assert lengths == [16, 8, 4]
    for predictor in find(model, SparseBlocks).score_predictor:
        assert float(predictor.out_conv[4].weight.grad.abs().sum()) > 0


@torch.no_grad()
def test_gathered_training_answers_as_evaluation_given_equal_choices(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = DynamicViT(keep={1: 0.5, 2: 0.25}, train="gather").prepare(family.make()).eval()
    sparse = find(model, SparseBlocks)
    answer, places = kept(model, family)
    monkeypatch.setattr(Tensor, "exponential_", lambda self: self.fill_(1.0))  # noise of 0
    sparse.training = True
    torch.testing.assert_close(family.logits(model), answer, atol=1e-5, rtol=0)
    assert torch.equal(sparse.aside.places, places[-1])


def test_gathering_learns_where_the_answer_is() -> None:
    """One bright patch at a random place says the class: predictors that learn keep it, whatever its place."""
    family = FAMILIES["ours"]

    def batch(seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        label, place = (
            torch.randint(0, CLASSES, (32,), generator=generator),
            torch.randint(0, 16, (32,), generator=generator),
        )
        image = 0.1 * torch.randn(32, 3, 4, 4, 4, 4, generator=generator)  # (B, 3, rows, y, columns, x)
        for i in range(32):
            image[i, :, place[i] // 4, :, place[i] % 4, :] = 2 * fill.normal(f"class {int(label[i])}", (3, 4, 4))
        return {"image": image.reshape(32, 3, 16, 16), "label": label, "place": place}

    class Bright(Images):
        def epoch(self, epoch: int, start: int = 0) -> Any:
            yield from (batch(100 * epoch + step) for step in range(start, self.steps_per_epoch))

    method = DynamicViT(keep={1: 0.25}, train="gather")
    new = fit(
        family.build(), Bright(steps=40), family.task, methods=[method], epochs=3, optimizer=optim.adamw(2e-3),
        schedule=optim.constant(),
    )  # fmt: skip
    test = batch(10**6)
    places = kept(new, family, test["image"])[1][0]
    found = (places == test["place"][:, None]).any(1).float().mean()
    assert float(found) > 0.8  # by chance 0.25


def test_finish_takes_the_way_of_training_away(family: Family) -> None:
    model = fit(family.make(), Images(steps=1), family.task, methods=[DynamicViT(train="gather")])
    assert not find(model, SparseBlocks).gathering
    again = DynamicViT(train="gather").prepare(model)
    assert find(again, SparseBlocks).gathering and not find(model, SparseBlocks).gathering


# Losses ---------------------------------------------------------------------------------------------------------------
def test_corrected_distances_are_summed_over_channels() -> None:
    tokens, teacher, mask = torch.randn(2, 5, 8), torch.randn(2, 5, 8), torch.ones(2, 5, 1)
    official, corrected = (losses.token_distance(tokens, teacher, mask, how) for how in losses.AVERAGINGS)
    torch.testing.assert_close(8 * official, corrected)


def test_a_share_of_the_batch_leaves_images_free() -> None:
    means = [torch.tensor([0.9, 0.5])]
    assert float(losses.ratio_distance(means, [0.7])) == pytest.approx(0.04)
    assert float(losses.ratio_distance([means[0].mean()], [0.7])) == pytest.approx(0.0, abs=1e-12)


def test_a_head_on_every_token_is_what_tokens_learn_by() -> None:
    family = FAMILIES["lvvit"]
    teacher = family.make("teacher")
    for train in ("mask", "gather"):
        rows: list[dict[str, Any]] = []
        method = DynamicViT(teacher, keep=0.5, train=train)  # type: ignore[arg-type]
        fit(family.make(), Images(steps=1), family.task, methods=[method], log=rows.append)
        assert set(rows[0]["terms"]) == {"task", "ratio", "kl", "tokens"}


def test_an_image_that_loses_everything_keeps_its_likeliest() -> None:
    before = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])[..., None]
    decided = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])[..., None]
    score = torch.tensor([[-2.0, -1.0, -0.1], [-1.0, -1.0, -1.0]])[..., None]
    assert one_at_least(decided, before, score)[..., 0].tolist() == [[0, 1, 0], [0, 1, 0]]


# Learning rates -------------------------------------------------------------------------------------------------------
def test_parameter_groups_are_the_published_ones(family: Family) -> None:
    host = family.make()
    model = DynamicViT(keep=0.5).prepare(host)
    groups = optim.adamw(1e-3, **param_groups(host)).build(model).param_groups  # type: ignore[arg-type]
    rates = {(round(group["peak_lr"], 9), round(30 * group["starts"])) for group in groups}
    assert rates == {(1e-5, 5), (1e-3, 0)}
    trained = {id(p) for group in groups for p in group["params"]}
    left = {name.rsplit(".", 1)[-1] for name, p in model.named_parameters() if id(p) not in trained}
    assert left <= set(losses.NEVER_TRAINED) and "cls_token" in left
    every = optim.adamw(1e-3, **param_groups(host, frozen=0.0, train_positions=True)).build(model)  # type: ignore[arg-type]
    assert {group["starts"] for group in every.param_groups} == {0.0}
    with pytest.raises(OptionError, match="backbone"):
        param_groups(host, backbone=0.0)


@torch.no_grad()
def test_a_sparse_model_compiles_whole() -> None:
    """No part of the graph is left to Python, and the answers are the same."""
    family = FAMILIES["lvvit"]
    model = sparse_of(family, keep={1: 0.5, 2: 0.25})
    wanted = family.logits(model)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(IMAGES), wanted)
    torch._dynamo.reset()


def test_tokens_are_taken_by_place() -> None:
    assert take(torch.arange(6.0).reshape(1, 3, 2), torch.tensor([[2, 0]])).tolist() == [[[4.0, 5.0], [0.0, 1.0]]]
