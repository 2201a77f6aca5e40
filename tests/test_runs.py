# SPDX-License-Identifier: Apache-2.0
"""A run describes itself, is done once, goes on after a kill to the same bits, and says in a line what cannot work."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs as tiny
import torch
from PIL import Image
from torch import Tensor, nn

from featherweight import anatomy, artifact, deploy, files, fitting, recipe, report, runs, steps_quantize, work
from featherweight.data import Data
from featherweight.errors import CheckFailed, FeatherweightError, InputError, OptionError
from featherweight.interrupt import Interrupted
from featherweight.models import zoo
from featherweight.runtime import parity
from featherweight.runtime.preprocess import Preprocess
from featherweight.surgery import edits_of

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
SMALL = Preprocess(size=(24, 24), resize="exact", interpolation="bilinear")


class Spy:
    """Images that note during which step each picture was read."""

    def __init__(self, images: Any, told: tiny.Told) -> None:
        self.images, self.told, self.labels = images, told, images.labels
        self.readers: set[str] = set()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Any:
        self.readers.add(next(event["name"] for event in reversed(self.told.of("step")) if "name" in event))
        return self.images[i]

    def names(self, i: int) -> str:
        return self.images.names(i)


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    """Untrained models have answers near ties, which int8 turns over; how near files must be is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(parity.LIMITS, "int8", (0.0, 1.0))
        patch.setattr(fitting, "CHECKPOINT_EVERY", tiny.EVERY)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tiny.Told, dict[str, set[str]]]:
    """The project folder of a whole run, what it told, and which steps read which part of the data."""
    project, told = tmp_path_factory.mktemp("whole"), tiny.Told()
    plan = tiny.plan()
    data = runs._load(plan)
    spies = {part: Spy(getattr(data, part), told) for part in ("train", "val", "test")}
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(parity.LIMITS, "int8", (0.0, 1.0))
        patch.setattr(runs, "_load", lambda _: Data("digits", "digits", data.classes, **spies, fingerprint="f"))
        runs.run(plan, project=project, progress=told)
    assert torch.get_num_threads() == threads
    return project, told, {part: spy.readers for part, spy in spies.items()}


def test_a_run_leaves_what_it_promises(whole: tuple[Path, Any, Any]) -> None:
    folder = whole[0] / "tiny"
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    steps_ = [
        f"steps/{n:02d}-{name}" for n, name in enumerate(("teacher", "baseline", "distill", "tokens", "quantize"))
    ]
    assert {
        "config.yaml", "env.json", "metrics.csv", "log.txt", "report.html", "report.json", "report.md",
        "model/model.json", "model/model.safetensors", "model/README.md", "plots/pareto.svg",
        "export/model.onnx", "export/openvino_model.xml", "export/openvino_model.bin", "export/parity.json",
        *(f"{step}/model/model.{kind}" for step in steps_ for kind in ("json", "safetensors")),
    } <= names  # fmt: skip
    assert not [name for name in names if "checkpoints" in name or ".fw-" in name]
    assert (whole[0] / "latest").resolve() == folder.resolve()


def test_what_is_in_the_files(whole: tuple[Path, Any, Any]) -> None:
    folder = whole[0] / "tiny"
    assert recipe.plain(recipe.read(folder / "config.yaml"))["steps"] == recipe.plain(tiny.plan())["steps"]
    environment = json.loads((folder / "env.json").read_text())
    assert environment["seed"] == 3 and environment["threads"] == 1
    assert {"cpu", "flags", "versions", "load", "data"} <= set(environment)
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    assert rows[0][:5] == ["stage", "epoch", "step", "loss", "loss_task"]
    assert [row[0] for row in rows[1:]] == ["00-teacher", "01-baseline", "02-distill", "03-tokens"]
    log = (folder / "log.txt").read_text()
    assert log.isascii() and log.replace("\n", "").isprintable()
    assert [json.loads(line)["event"] for line in log.splitlines()][-1] == "end"
    page = (folder / "report.html").read_text()
    assert "hard distillation" in page and "tokens (keep 0.6)" in page and "int8" in page
    rows = json.loads((folder / "export" / "parity.json").read_text())
    assert [row["file"] for row in rows] == ["export/model.onnx", "export/openvino_model.xml"]
    assert (folder / "model" / "README.md").read_text().startswith("---\nlibrary_name: featherweight\n")


def test_the_report_has_every_stage_and_both_ends(whole: tuple[Path, Any, Any]) -> None:
    found = report.load(whole[0] / "tiny")
    names = [stage.name for stage in found.stages]
    assert names[:2] == ["baseline, torch", "baseline, exported"] and "+ int8" in names
    assert "+ int8 in OpenVINO" in names and "+ tokens (keep 0.6)" in names
    assert [view.stages[-1].rate for view in found.tokens] == [pytest.approx(0.6, abs=0.03)] * 2
    assert np.sum(found.confusion_small) == np.sum(found.confusion_base) == 20
    assert found.exports[0].agreement is not None and found.budget == ""


def test_the_models_of_the_steps_can_be_picked(whole: tuple[Path, Any, Any]) -> None:
    folder = whole[0] / "tiny"
    kinds = [[e.kind for e in edits_of(artifact.load(path / "model"))] for path in sorted(folder.glob("steps/0[0-4]*"))]
    assert kinds[0] == kinds[1] == []
    assert kinds[3][: len(kinds[2])] == kinds[2] and len(kinds[2]) < len(kinds[3]) < len(kinds[4])
    last = artifact.load(folder / "model")
    assert artifact.record_of(last).classes == tuple("0123456789")
    assert (folder / "model/model.safetensors").read_bytes() == (
        folder / "steps/04-quantize/model/model.safetensors"
    ).read_bytes()


def test_the_test_part_is_read_at_the_end_only(whole: tuple[Path, Any, Any]) -> None:
    assert whole[2]["test"] == {"measure", "report"}
    assert whole[2]["train"] == {"teacher", "baseline", "distill", "tokens", "quantize"}
    assert "quantize" not in whole[2]["val"]


def forbidden(*_: Any, **__: Any) -> Any:
    raise AssertionError("this was done already")


@pytest.mark.parametrize("trained", [False, True])
def test_random_weights_are_not_loaded_unsaid(trained: bool, tmp_path: Path) -> None:
    told = tiny.Told()
    model = {"name": "resnet_digits"} | ({"weights": "shipped"} if trained else {})
    runs.run(tiny.plan(model=model, steps=["load"]), project=tmp_path, progress=told)
    notes = [event["text"] for event in told.of("note")]
    assert any("resnet_digits begins with random weights; `weights` of the model names" in n for n in notes) != trained


def test_a_second_start_does_nothing_again(whole: tuple[Path, Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: (whole[0] / "tiny" / name).read_bytes() for name in ("model/model.safetensors", "metrics.csv")}
    monkeypatch.setattr(runs, "_load", lambda plan: Data("digits", "digits", *_parts(plan), fingerprint="f"))
    for module, name in ((fitting, "fit"), (steps_quantize, "to_int8"), (deploy, "write"), (deploy, "_race")):
        monkeypatch.setattr(module, name, forbidden)
    told = tiny.Told()
    runs.run(whole[0] / "tiny" / "config.yaml", progress=told)
    assert [event["text"] for event in told.of("note")] == [
        f"{n:02d}-{name}: found as it was left"
        for n, name in enumerate(("teacher", "baseline", "distill", "tokens", "quantize"))
    ]
    assert before == {name: (whole[0] / "tiny" / name).read_bytes() for name in before}


def _parts(plan: recipe.Recipe) -> tuple[Any, ...]:
    from featherweight import data

    found = data.load(plan.data.source, **plan.data.options)
    return found.classes, found.train, found.val, found.test


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = tmp_path_factory.mktemp("undisturbed")
    tiny.carry_out(project)
    return project


def test_a_killed_run_goes_on_to_the_same_bits(undisturbed: Path, tmp_path: Path) -> None:
    for where in ("00-baseline 7", "01-prune 5"):
        tiny.kill_at(tmp_path, where)
        assert list(tmp_path.glob("tiny/steps/*/checkpoints/step-*.safetensors"))
    told = tiny.Told()
    tiny.carry_out(tmp_path, told)
    made = told.trained
    assert {name for name, _ in made} == {"01-prune"} and 1 < made[0][1] <= 6 and made[-1][1] == tiny.LAST
    assert tiny.weights(tmp_path) == tiny.weights(undisturbed)
    rows = [(p / "tiny" / "metrics.csv").read_text() for p in (tmp_path, undisturbed)]
    assert rows[0] == rows[1]
    assert not list(tmp_path.rglob(".fw-*")) and not list(tmp_path.glob("tiny/steps/*/checkpoints"))


def test_a_trainer_that_forgets_would_be_noticed(undisturbed: Path, tmp_path: Path) -> None:
    """The control: one step of training more or less gives other bits."""
    tiny.carry_out(tmp_path, **{"train.images": 48})
    assert tiny.weights(tmp_path) != tiny.weights(undisturbed)


def test_an_interrupted_run_says_so_and_goes_on(undisturbed: Path, tmp_path: Path) -> None:
    def stop(event: Any) -> None:
        if event["event"] == "step" and event.get("step") == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="stopped by SIGINT after step 5"):
        runs.run(tiny.training(), project=tmp_path, progress=stop)
    last = json.loads((tmp_path / "tiny" / "log.txt").read_text().splitlines()[-1])
    assert last["event"] == "stopped" and "SIGINT" in last["error"]
    told = tiny.Told()
    runs.run(tmp_path / "tiny" / "config.yaml", progress=told)
    assert told.trained[0] == ("00-baseline", 6)
    assert tiny.weights(tmp_path) == tiny.weights(undisturbed)


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ({}, []),
        ({"steps": ["baseline", {"prune": {"mlp": 0.25, "heads": 0.0, "samples": 16}}]}, ["01-prune"]),
        ({"steps": [{"baseline": {"lr": 2e-3}}, tiny.TRAINING["steps"][1]]}, ["00-baseline", "01-prune"]),
        ({"seed": 4}, ["00-baseline", "01-prune"]),
        ({"data": {**tiny.DIGITS, "seed": 1}}, ["00-baseline", "01-prune"]),
        ({"steps": ["baseline"]}, []),
        ({"steps": ["baseline", "train"]}, ["01-train"]),
    ],
)
def test_what_changed_is_done_anew_from_there_on(
    undisturbed: Path, tmp_path: Path, change: dict[str, Any], redone: list[str]
) -> None:
    files_ = [path for path in undisturbed.rglob("*") if path.is_file() and path.name != "latest"]
    for path in files_:
        copy = tmp_path / path.relative_to(undisturbed)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    told = tiny.Told()
    tiny.carry_out(tmp_path, told, **change)
    assert list(dict.fromkeys(name for name, _ in told.trained)) == redone
    steps_ = [f"{n:02d}-{step.name}" for n, step in enumerate(tiny.training(**change).steps)]
    assert sorted(path.name for path in tmp_path.glob("tiny/steps/*")) == steps_


def test_two_runs_of_one_name_at_once(tmp_path: Path) -> None:
    with files.lock(tmp_path / "tiny"), pytest.raises(FeatherweightError, match="in use by another process") as caught:
        tiny.carry_out(tmp_path)
    assert str(caught.value).isprintable() and caught.value.exit_code == 1


def test_a_run_does_not_move_into_a_strangers_folder(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "thesis.tex").touch()
    with pytest.raises(OptionError, match="holds something that is no run"):
        tiny.carry_out(tmp_path)
    for name in ("../x", "a/b", "latest", ".", "x" * 300):
        with pytest.raises(OptionError, match="name: "):
            runs.run(tiny.training(), project=tmp_path, name=name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny"]


def test_a_failed_check_fails_the_run_and_keeps_what_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parity.LIMITS, "float32", (1.0, 1e9))
    with pytest.raises(CheckFailed, match="does not answer like the model") as caught:
        runs.run(tiny.plan(steps=["baseline", "export"]), project=tmp_path)
    assert caught.value.exit_code == 1
    assert artifact.load(tmp_path / "tiny" / "steps" / "00-baseline" / "model")
    assert not (tmp_path / "tiny" / "export" / "model.onnx").exists()
    last = json.loads((tmp_path / "tiny" / "log.txt").read_text().splitlines()[-1])
    assert last["event"] == "stopped" and "does not answer" in last["error"]


def folder_of(root: Path, classes: dict[str, int], *, size: int = 24) -> Path:
    """A folder of class folders with noise in them."""
    for part, many in (("train", 8), ("val", 4)):
        for name, shade in classes.items():
            (root / part / name).mkdir(parents=True)
            for i in range(many):
                pixels = np.random.default_rng(shade + i + 100 * (part == "val")).integers(0, 255, (size, size, 3))
                Image.fromarray((pixels // 2 + shade).astype(np.uint8)).save(root / part / name / f"{i}.png")
    return root


MEASURED = [{"measure": {"batch": [1], "repeats": 6, "budget_s": 0.1}}, {"report": {"samples": 1}}]


def test_what_is_broken_or_oddly_named_in_the_data_is_in_the_report(tmp_path: Path) -> None:
    evil = "<b>\x1b[2Jevil"
    root = folder_of(tmp_path / "data", {"cat": 0, "dog <script>": 100})
    (root / "train" / "cat" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (root / "train" / "cat" / f"{evil}.png").write_bytes(b"")
    data = {"source": str(root), "max_bad": 0.5}
    tiny_plan = tiny.plan(data=data, steps=["baseline", *MEASURED])
    runs.run(tiny_plan, project=tmp_path)
    folder = tmp_path / "tiny"
    found = report.load(folder)
    assert {item["reason"] for item in found.skipped} == {"corrupt", "empty"}
    assert any("broken.png" in item["path"] for item in found.skipped)
    for name in ("log.txt", "report.html", "report.md", "model/README.md", "config.yaml", "env.json", "report.json"):
        text = (folder / name).read_text()
        assert "\x1b" not in text, name
        assert "<script>" not in text or not name.endswith((".html", ".md")), name
    assert "broken.png" in (folder / "report.html").read_text()


def test_a_class_mismatch_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    model = zoo.create("vit_digits", **{**tiny.CONFIG, "num_classes": 2})
    folder = artifact.save(model, tmp_path / "animals", classes=("cat", "dog"), preprocess=SMALL)
    line = r"data: .*animals knows 2 classes \(cat, dog\), the data has 10 \(0, 1, 2, 3, \.\.\.\); reset_head"
    with pytest.raises(OptionError, match=line):
        runs.run(tiny.plan(model=str(folder), steps=["load"]), project=tmp_path)
    done = runs.run(tiny.plan(model={"name": str(folder), "reset_head": True}, steps=["load"]), project=tmp_path)
    assert done.model.head.out_features == 10
    wrong = {"name": "vit_digits", "config": {**tiny.CONFIG, "num_classes": 7}}
    with pytest.raises(OptionError, match=r"vit_digits knows 7 classes, the data has 10 .*; reset_head"):
        runs.run(tiny.plan(model=wrong, steps=["baseline"]), project=tmp_path)


def test_weights_of_another_class_count(tmp_path: Path) -> None:
    theirs = zoo.create("vit_digits", **{**tiny.CONFIG, "num_classes": 1000})
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    spec = {"name": "vit_digits", "weights": str(tmp_path / "theirs.pth"), "config": tiny.CONFIG}
    with pytest.raises(OptionError, match=r"theirs\.pth has 1000 classes, the data 10; reset_head"):
        runs.run(tiny.plan(model=spec, steps=["load"]), project=tmp_path)
    before = torch.get_rng_state()
    done = runs.run(tiny.plan(model={**spec, "reset_head": True}, steps=["load"]), project=tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    mine, old = done.model.state_dict(), theirs.state_dict()
    assert mine["head.weight"].shape[0] == 10
    assert all(torch.equal(mine[name], old[name]) for name in old if not name.startswith("head"))
    torch.save({**theirs.state_dict(), "extra": torch.ones(2)}, tmp_path / "theirs.pth")
    with pytest.raises(InputError, match="unexpected_key"):
        runs.run(tiny.plan(model={**spec, "reset_head": True}, steps=["load"]), project=tmp_path)
    with pytest.raises(InputError, match="missing: no such weights file"):
        runs.run(tiny.plan(model={**spec, "weights": "none"}, steps=["load"]), project=tmp_path)


def test_what_cannot_be_run_is_said_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="data: the recipe names none: add `data: digits`"):
        runs.run(tiny.plan(data=None), project=tmp_path)
    with pytest.raises(OptionError, match="overrides: go with the name of a recipe"):
        runs.run(tiny.plan(), project=tmp_path, overrides=["seed=1"])
    with pytest.raises(InputError, match="did you mean 'digits'"):
        runs.run(tiny.plan(data="digit"), project=tmp_path)
    with pytest.raises(InputError, match=r"steps\[1\]\.tokens: .*block"):
        runs.run(tiny.plan(steps=["baseline", {"tokens": {"at": [50]}}]), project=tmp_path)


class Convolutions(nn.Module):
    """A user's own network, of which nobody described anything."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1))
        self.classifier = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).relu().mean((2, 3)))


class Mine(nn.Module):
    """A user's own transformer with names of its own."""

    def __init__(self) -> None:
        super().__init__()
        inner = zoo.create("vit_digits", **{**tiny.CONFIG, "num_classes": 10})
        self.patches, self.layers, self.last, self.out = inner.patch_embed, inner.blocks, inner.norm, inner.head
        self.cls, self.where = inner.cls_token, inner.pos_embed

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], dim=1) + self.where
        for layer in self.layers:
            x = layer(x)
        return self.out(self.last(x)[:, 0])


def compressed(module: nn.Module, project: Path, source: Any = None, **options: Any) -> work.Work:
    """`compress` with what takes long made short; every step that works is kept."""
    known = ["threads=1", "train.epochs=1", "train.images=32", "quantize.calibration_images=16", "measure.batch=[1]"]
    overrides = [*known, "measure.repeats=6", "measure.budget_s=0.1", "report.samples=1", "prune.samples=16"]
    overrides += options.pop("overrides", ["data.n_train=64", "data.n_val=20", "data.n_test=10"])
    settings = {"max_drop": "100%", "project": project, "name": "mine", "overrides": overrides, **options}
    return runs.compress(module, source or "digits", **settings)


@pytest.fixture
def all_help(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step that can be made is kept."""
    from featherweight import judge

    monkeypatch.setattr(judge, "RACE_SECONDS", 0.05)
    monkeypatch.setattr(judge, "verdict", lambda *_, **__: (True, "kept"))


@pytest.mark.usefixtures("all_help")
def test_a_users_convolutional_network_gets_what_it_can_have(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Convolutions()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    told = tiny.Told()
    done = compressed(module, tmp_path, preprocess=SMALL, progress=told)
    assert [stage.title for stage in done.stages] == ["baseline", "int8"]
    assert [text.split(":")[0] for text in done.left_out] == ["tokens", "prune"]
    assert all("this model cannot have it" in text and "Convolutions" in text for text in done.left_out)
    assert [event["text"] for event in told.of("note") if "left out" in event["text"]] == list(done.left_out)
    assert (tmp_path / "mine" / "export" / "model.onnx").is_file()
    assert set(done.left_out) <= set(report.load(tmp_path / "mine").warnings)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])
    again = artifact.load(tmp_path / "mine" / "model", base=Convolutions())
    picture = torch.rand(1, 3, 24, 24)
    with torch.inference_mode():
        assert torch.equal(again(picture), done.model(picture))
    second = compressed(module, tmp_path, preprocess=SMALL)
    with torch.inference_mode():
        assert torch.equal(second.model(picture), done.model(picture))


def test_another_module_of_the_same_kind_is_another_run(tmp_path: Path) -> None:
    plan = recipe.parse({**tiny.PLAN, "model": None, "steps": ["load"]}, partial=True)
    plan = dataclasses.replace(plan, model=recipe.ModelSpec("mine"))
    torch.manual_seed(0)
    one, two = Convolutions(), Convolutions()
    told = [tiny.Told() for _ in range(3)]
    done = [
        runs.run(plan, project=tmp_path, given={"mine": module}, preprocess=SMALL, progress=tell).model
        for module, tell in zip((one, one, two), told, strict=True)
    ]
    assert [len(tell.of("note")) for tell in told] == [0, 1, 0]
    for model, module in zip(done, (one, one, two), strict=True):
        assert model is not module and torch.equal(model.classifier.weight, module.classifier.weight)


def test_a_users_module_must_fit_the_data(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"the given model knows 4 classes, the data has 10"):
        compressed(Convolutions(4), tmp_path, preprocess=SMALL)
    with pytest.raises(OptionError, match="model: cannot take a picture of 3x224x224"):
        compressed(Mine(), tmp_path)


FEW = ["data.n_train=64", "data.n_val=20", "data.n_test=10", "tokens.at=[1]"]
TITLES = ["baseline", "tokens (keep 0.7)", "prune (MLP 30%, heads 30%)", "int8"]


@pytest.mark.slow
@pytest.mark.usefixtures("all_help")
def test_a_users_transformer_gets_everything_once_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anatomy, "_BY_CLASS", dict(anatomy._BY_CLASS))
    known = {"blocks": "layers", "norm": "last", "head": "out", "prefix": 1}
    anatomy.describe(Mine, anatomy.Anatomy(run=anatomy.OURS.run, **known))
    torch.manual_seed(0)
    done = compressed(Mine(), tmp_path, preprocess=SMALL, overrides=FEW)
    assert [stage.title for stage in done.stages] == TITLES
    assert done.left_out == ()
    assert edits_of(artifact.load(tmp_path / "mine" / "model", base=Mine())) == edits_of(done.model)


@pytest.mark.slow
@pytest.mark.usefixtures("all_help")
def test_a_model_of_timm_by_name(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    name = "timm:vit_tiny_patch16_224"
    config = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    torch.save(zoo.create(name, **config, num_classes=10).state_dict(), tmp_path / "w.pth")
    with pytest.raises(OptionError, match="weights: timm:vit_tiny_patch16_224 comes without"):
        compressed(name, tmp_path, config=config, overrides=FEW)
    done = compressed(name, tmp_path, config=config, weights=str(tmp_path / "w.pth"), overrides=FEW)
    assert [stage.title for stage in done.stages] == TITLES
    assert done.preprocess.size == (32, 32)
    assert edits_of(artifact.load(tmp_path / "mine" / "model")) == edits_of(done.model)


@pytest.mark.slow
@pytest.mark.usefixtures("all_help")
def test_a_model_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        image_size=24, patch_size=8, num_labels=10, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=48,
    )  # fmt: skip
    done = compressed(transformers.ViTForImageClassification(config), tmp_path, preprocess=SMALL, overrides=FEW)
    assert [stage.title for stage in done.stages] == TITLES


def test_a_name_to_compress_needs_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="weights: deit_tiny comes without: give a weights file, or train it first"):
        runs.compress("deit_tiny", "digits", project=tmp_path)
    seen: list[recipe.Recipe] = []
    monkeypatch.setattr(runs, "run", lambda plan, **_: seen.append(plan))
    runs.compress("vit_digits", "digits", project=tmp_path)
    assert seen[0].model == recipe.ModelSpec("vit_digits", "shipped")


def test_names_in_messages_are_clean(tmp_path: Path) -> None:
    (tmp_path / "\x1b[2J").mkdir()
    with pytest.raises(InputError) as caught:
        runs.run(tiny.plan(data=str(tmp_path / "\x1b[2J")), project=tmp_path)
    assert str(caught.value).isprintable()
    assert re.fullmatch(r"[ -~\n]*", (tmp_path / "tiny" / "log.txt").read_text())
