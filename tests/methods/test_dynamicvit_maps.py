# SPDX-License-Identifier: Apache-2.0
"""DynamicViT's ConvNeXt and Swin: tiny ones of timm's here; the numbers of the authors' code are in test_golden."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import fill
import pytest
import torch
from families import CLASSES, Images, everything, same
from golden_files import golden
from torch import Tensor, nn
from torch.nn import functional as F

from featherweight import artifact, optim
from featherweight.errors import OptionError
from featherweight.methods import dynamicvit
from featherweight.methods import dynamicvit_loss as losses
from featherweight.methods import dynamicvit_maps as maps
from featherweight.methods.dynamicvit import DynamicViT, recording, set_keep
from featherweight.methods.dynamicvit_names import COMPUTED, official_names
from featherweight.surgery import Tap, all_of, apply, edits_of
from featherweight.tasks.classification import Classification
from featherweight.train import fit

SIDE, TASK = 64, Classification(CLASSES)
IMAGES = fill.normal("map images", (2, 3, SIDE, SIDE))


def convnext(**options: Any) -> nn.Module:
    found = pytest.importorskip("timm.models.convnext")
    return found.ConvNeXt(
        num_classes=CLASSES, depths=(1, 1, 4, 1), dims=(8, 8, 16, 16), patch_size=4, ls_init_value=1.0, **options
    )


def swin(**options: Any) -> nn.Module:
    found = pytest.importorskip("timm.models.swin_transformer")
    return found.SwinTransformer(
        img_size=SIDE, patch_size=4, num_classes=CLASSES, embed_dim=8, depths=(1, 1, 4, 1), num_heads=(1, 1, 2, 2),
        window_size=2, drop_path_rate=0.0, **options,
    )  # fmt: skip


HOSTS = {"convnext": convnext, "convnext of convolutions": lambda: convnext(conv_mlp=True), "swin": swin}
KEEP = {1: 0.5, 2: 0.75, 3: 0.25}  # of 16 positions; masks do not depend on each other, so shares may grow


@pytest.fixture(params=list(HOSTS))
def host(request: pytest.FixtureRequest) -> nn.Module:
    return filled(HOSTS[request.param]())


def filled(model: nn.Module, seed: str = "") -> nn.Module:
    model.load_state_dict({k: fill.tensor(seed + k, t.shape, t.dtype) for k, t in model.state_dict().items()})
    return model.eval()


def sparse_of(host: nn.Module, **options: Any) -> nn.Module:
    return filled(apply(host, dynamicvit.plan(host, **{"keep": KEEP, **options})))


@torch.no_grad()
def kept(model: nn.Module, images: Tensor = IMAGES) -> tuple[Tensor, list[Tensor]]:
    with recording(model) as sparse:
        return model(images), list(sparse.aside.places)


class Maps(Images):
    """Batches of larger pictures."""

    def epoch(self, epoch: int, start: int = 0) -> Any:
        for batch in super().epoch(epoch, start):
            yield {**batch, "image": fill.normal("maps", (self.size, 3, SIDE, SIDE))}


def test_all_kept_is_the_host(host: nn.Module) -> None:
    before = everything(host)
    new = apply(host, dynamicvit.plan(host, keep=[1.0, 1.0], at=[1, 3]))
    assert same(before, everything(host))
    with torch.no_grad():
        assert torch.equal(new.eval()(IMAGES), host(IMAGES))


@torch.no_grad()
def test_each_position_takes_its_path(host: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gathered, and computed for every position and mixed: the same."""
    model = sparse_of(host)
    answer, places = kept(model)
    assert [place.shape[1] for place in places] == [8, 12, 4]

    def everywhere(cut: Any, y: Tensor, slow: Any, fast: Any) -> Tensor:
        mask = torch.zeros(y.shape[:2]).scatter_(1, cut.chosen, 1.0)[..., None]
        return mask * slow(y) + (1 - mask) * fast(y)

    monkeypatch.setattr(maps.Cut, "joined", everywhere)
    torch.testing.assert_close(model(IMAGES), answer, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_two_streams_are_the_evaluation_while_one_mask_holds(host: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    model = sparse_of(host, keep={1: 0.5})
    answer, places = kept(model)
    mask = torch.zeros(2, 16).scatter_(1, places[0], 1.0)
    monkeypatch.setattr(F, "gumbel_softmax", lambda logits, hard, dim: torch.stack([mask, 1 - mask], dim=-1))
    dynamicvit.one_sparse(model).training = True
    torch.testing.assert_close(model(IMAGES), answer, atol=1e-5, rtol=1e-5)


def test_a_batch_of_any_size_answers_as_its_images(host: nn.Module) -> None:
    """Two included, where the published Swin stops."""
    for model in (sparse_of(host), set_keep(sparse_of(host), threshold=0.5)):
        alone = torch.cat([kept(model, image[None])[0] for image in IMAGES])
        torch.testing.assert_close(kept(model)[0], alone, atol=1e-5, rtol=1e-5)


def test_a_threshold_keeps_the_likely(host: nn.Module) -> None:
    model = sparse_of(host, keep={1: 0.5})
    scores: list[Tensor] = []
    predictor = dynamicvit.one_sparse(model).score_predictor[0]
    predictor.register_forward_hook(lambda _m, _a, output: scores.append(output[..., 0].exp()))
    kept(model)
    level = float(scores[0].median())
    places = kept(set_keep(model, threshold=level))[1][0]
    assert [sorted(set(row.tolist())) for row in places] == [
        (s >= level).nonzero().flatten().tolist() for s in scores[0]
    ]


def test_it_trains_saves_and_leaves_no_scaffold(host: nn.Module, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    before = everything(host)
    method = DynamicViT(copy.deepcopy(host), keep=[0.5, 0.5], at=[1, 2])
    new = fit(
        host, Maps(steps=2), TASK, methods=[method], log=rows.append,
        optimizer=optim.adamw(1e-3, **param_groups(host)),
    )  # fmt: skip
    assert same(before, everything(host))
    assert set(rows[0]["terms"]) == {"task", "ratio", "kl", "tokens"} and not all_of(new, Tap)
    loaded = artifact.load(artifact.save(set_keep(new, [0.25, 0.25]), tmp_path), base=copy.deepcopy(host))
    assert [place.shape[1] for place in kept(loaded)[1]] == [4, 4]
    assert edits_of(loaded)[0].spec["keep"] == [[1, 0.25], [2, 0.25]]
    assert repr(apply(host, edits_of(new)).eval()) == repr(new)


def param_groups(host: nn.Module) -> Any:
    return losses.param_groups(host)


def test_new_parts_learn_faster(host: nn.Module) -> None:
    model = DynamicViT(keep=[0.5], at=[1]).prepare(host)
    groups = optim.adamw(1e-3, **param_groups(host)).build(model).param_groups
    fast = {id(p) for g in groups for p in g["params"] if g["peak_lr"] == 1e-3 and g["starts"] < 1e-6}
    named = {name for name, p in model.named_parameters() if id(p) in fast}
    assert named == {name for name, _ in model.named_parameters() if "score_predictor" in name or "fast_path" in name}
    assert {round(g["peak_lr"], 6) for g in groups} == {1e-3, 2e-4}


def test_the_ratio_weight_is_the_published_one(host: nn.Module) -> None:
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    for weight in (None, maps.RATIO_WEIGHT, 1.0):
        method = DynamicViT(keep=[0.9], at=[1], ratio_weight=weight)
        fit(host, Maps(steps=1), TASK, methods=[method], log=rows.append)
    ratio = [row["terms"]["ratio"] for row in rows if row["event"] == "step"]
    assert ratio[0] == ratio[1] == pytest.approx(10 * ratio[2], rel=1e-6)


def test_shares_fall_by_a_fifth() -> None:
    found = maps.stages(0.7, [1, 2, 3], 9)
    assert found == {1: 0.7, 2: 0.49999999999999994, 3: 0.29999999999999993}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"stage": 5}, "stage: no stage 5: the model has 4"),
        ({"stage": 0}, "stage: no stage 0"),
        ({"keep": 0.3, "at": [1, 2, 3]}, "is not in (0, 1]"),
        ({"at": [4], "keep": 0.5}, "at: no block 4: the model has 4"),
        ({"score": "random"}, "score: 'random' is for transformers"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError) as error:
        dynamicvit.plan(convnext(), **options)
    assert says in str(error.value)
    with pytest.raises(OptionError, match="gather is for transformers"):
        DynamicViT(train="gather", keep=0.7, at=[1]).prepare(swin())
    with pytest.raises(OptionError, match="drops tokens already"):
        dynamicvit.plan(sparse_of(convnext()), keep=[0.5], at=[1])
    with pytest.raises(OptionError, match="normalizes over the whole map"):
        dynamicvit.plan(convnext(use_grn=True))


@pytest.mark.parametrize("stage", [2, 4])
def test_any_stage_will_do(stage: int, host: nn.Module) -> None:
    model = sparse_of(host, keep={0: 0.5}, stage=stage)
    assert kept(model)[0].isfinite().all()
    assert official_names(model).keys() >= {"norm.weight", "head.weight"}


@pytest.mark.parametrize("name", ["dyconvnext_t", "dyswin_t", "dyconvnext_s", "dyswin_b"])
def test_the_authors_names_are_known(name: str) -> None:
    wanted = golden(name)
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        host = timm.create_model(wanted["config"]["architecture"])
        model = apply(host, dynamicvit.plan(host, keep=0.7, at=wanted["method"]["places"], stage=3))
    keys = {key for key, _, _ in wanted["state_dict"] if key.rsplit(".", 1)[-1] not in COMPUTED}
    assert official_names(model).keys() == keys
    assert sum(p.numel() for p in model.parameters()) == wanted["params"]


@pytest.mark.parametrize("name", ["convnext", "swin"])
@torch.no_grad()
def test_it_exports(name: str, tmp_path: Path) -> None:
    host = filled(HOSTS[name]())
    onnx = pytest.importorskip("featherweight.export.onnx")
    session = pytest.importorskip("featherweight.runtime.session")
    exported = onnx.export(sparse_of(host), IMAGES, tmp_path / "m.onnx", extra=("kept_tokens",))
    answers = session.open_session(exported.path, backend="onnxruntime", threads=1)
    for count in (1, 2, 3):
        batch = fill.normal("exported maps", (count, 3, SIDE, SIDE))
        found = answers.run({answers.inputs[0].name: batch.numpy()})
        wanted, places = kept(sparse_of(host), batch)
        torch.testing.assert_close(torch.from_numpy(found["logits"]), wanted, atol=1e-4, rtol=0)
        assert found["kept_tokens"].tolist() == places[-1].tolist()
