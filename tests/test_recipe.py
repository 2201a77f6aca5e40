# SPDX-License-Identifier: Apache-2.0
"""A typo in a recipe stops before any work, in one line that says where, what, and what would be right."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from featherweight import artifact, overrides, recipe, steps
from featherweight.binding import options_of
from featherweight.doors import yaml
from featherweight.errors import InputError, OptionError
from featherweight.models import zoo

SHIPPED = sorted(path.stem for path in recipe.builtin("demo").parent.glob("*.yaml"))
GOOD = """
data: {source: digits, n_train: 60}
model: deit_tiny
teacher: resnet_digits
train: {epochs: 3, lr: 1e-3, batch_size: 8}
steps:
  - teacher
  - baseline
  - distill: {distance: soft}
  - tokens: {keep: 0.7, at: [1, 2]}
  - prune: {mlp: 0.4}
  - quantize
  - export
  - measure
  - report
"""
TYPOS = [  # what is typed, for what; place, reason, and a word of the help
    ("data:", "dta:", "top level", "unknown_key", "did you mean 'data'"),
    ("steps:", "stpes:", "top level", "unknown_key", "did you mean 'steps'"),
    ("epochs: 3", "epohcs: 3", "train", "unknown_key", "did you mean 'epochs'"),
    ("lr: 1e-3", "learning_rat: 1e-3", "train", "unknown_key", "Known: epochs"),
    ("n_train: 60", "n_trian: 60", "data", "unknown_key", "did you mean 'n_train'"),
    ("n_train: 60", "max_bda: 0.1", "data", "unknown_key", "did you mean 'max_bad'"),
    ("source: digits", "sorce: digits", "data", "unknown_key", "did you mean 'source'"),
    ("keep: 0.7", "kepe: 0.7", "steps[3].tokens", "unknown_key", "did you mean 'keep'"),
    ("mlp: 0.4", "ratio: 0.4", "steps[4].prune", "unknown_key", "Known: mlp, heads"),
    ("- quantize", "- quantise", "steps[5]", "unknown_name", "did you mean 'quantize'"),
    ("- report", "- rapport: {samples: 3}", "steps[8]", "unknown_name", "did you mean 'report'"),
    ("model: deit_tiny", "model: deit_tinny", "model", "unknown_name", "did you mean 'deit_tiny'"),
    ("resnet_digits", "resnet_digts", "teacher", "unknown_name", "did you mean 'resnet_digits'"),
    ("deit_tiny", "{name: deit_tiny, config: {dpeth: 3}}", "model.config", "unknown_key", "did you mean 'depth'"),
    ("deit_tiny", "{name: deit_tiny, wieghts: x}", "model", "unknown_key", "did you mean 'weights'"),
    ("distance: soft", "distance: sotf", "steps[2].distill.distance", "unknown_name", "did you mean 'soft'"),
    ("epochs: 3", "epochs: three", "train.epochs", "bad_type", "a whole number, not 'three'"),
    ("epochs: 3", "epochs: yes", "train.epochs", "bad_type", "a whole number, not 'yes'"),
    ("lr: 1e-3", "lr: -0.1", "train.lr", "out_of_range", "above 0"),
    ("lr: 1e-3", "lr: .nan", "train.lr", "out_of_range", "above 0"),
    ("batch_size: 8", "batch_size: 0", "train.batch_size", "out_of_range", "1..65536"),
    ("batch_size: 8", "augment: {flipp: 0.5}", "train.augment", "unknown_key", "did you mean 'flip'"),
    ("batch_size: 8", "augment: {flip: 1.5}", "train.augment", "out_of_range", "0..1"),
    ("batch_size: 8", "ema: 1.0", "train.ema", "out_of_range", "below 1"),
    ("n_train: 60", "n_train: many", "data.n_train", "bad_type", "a whole number"),
    ("at: [1, 2]", "at: 3", "steps[3].tokens.at", "bad_type", "a list, not 3"),
    ("at: [1, 2]", "at: [1, -2]", "steps[3].tokens.at[1]", "out_of_range", "0..1000"),
    ("at: [1, 2]", "at: []", "steps[3].tokens.at", "out_of_range", "at least one"),
    ("at: [1, 2]", "at: [1, 12]", "steps[3].tokens: at", "out_of_range", "no block 12: the model has 12"),
    ("at: [1, 2]", "threshold: 1", "steps[3].tokens.threshold", "out_of_range", "1 is not above 0 to below 1"),
    ("at: [1, 2]", "stage: 3", "steps[3].tokens: stage", "out_of_range", "is for timm's ConvNeXt and Swin"),
    ("keep: 0.7", "keep: 7", "steps[3].tokens.keep", "out_of_range", "7 is not above 0 to 1"),
    ("mlp: 0.4", "mlp:", "steps[4].prune.mlp", "bad_type", "a number, not None"),
    ("- quantize", "- quantize: {bits: 4}", "steps[5].quantize.bits", "unknown_name", "Known: 8"),
    ("- quantize", "- quantize: 8", "steps[5].quantize", "bad_type", "a mapping of options, not 8"),
    ("- export", "- export: {formats: [onx]}", "steps[6].export.formats[0]", "unknown_name", "did you mean 'onnx'"),
    ("  - teacher\n", "", "steps[1].distill", "missing_key", "put a step `teacher` before it"),
    ("  - baseline\n", "", "steps[1].distill", "missing_key", "`baseline`"),
    ("  - measure\n", "", "steps[7].report", "missing_key", "put a step `measure` before it"),
    ("teacher: resnet_digits", "seed: 1", "steps[0].teacher", "missing_key", "add `teacher: resnet_digits`"),
    ("model: deit_tiny", "seed: 1", "top level", "missing_key", "needs 'model'"),
    ("model: deit_tiny", "model: {weights: shipped}", "model", "missing_key", "needs 'name'"),
    ("deit_tiny", "{name: deit_tiny, weights: shipped}", "model.weights", "unknown_name", "vit_digits"),
    (
        "deit_tiny",
        "{name: vit_digits, weights: shipped, config: {depth: 3}}",
        "model.config",
        "bad_schema",
        "leave one",
    ),
    ("deit_tiny", "timm:../secret", "model", "unknown_name", "not a name of timm's"),
    ("deit_tiny", '\'__import__("os").system("id")\'', "model", "unknown_name", "Known: deit_base"),
]


def refused(text: str, **options: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        recipe.parse(text, "my recipe.yaml", **options)
    line = str(caught.value)
    assert "\n" not in line and len(line) <= 500 and line.isprintable()
    assert line.startswith(f"my recipe.yaml: {caught.value.reason}: ")
    return caught.value


@pytest.mark.parametrize(("right", "wrong", "place", "reason", "help_"), TYPOS, ids=[t[1][:40] for t in TYPOS])
def test_a_typo_is_one_line_with_its_place_and_what_would_be_right(
    right: str, wrong: str, place: str, reason: str, help_: str
) -> None:
    recipe.parse(GOOD)
    assert right in GOOD
    error = refused(re.sub(re.escape(right), lambda _: wrong, GOOD, count=1))
    assert error.reason == reason
    assert error.text.startswith(f"{place}: ")
    assert help_ in error.text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("steps: []", "empty"),
        ("steps:", "bad_type"),
        ("steps: {train: {}}", "bad_type"),
        ("steps: train", "bad_type"),
        ("steps: [null]", "bad_schema"),
        ("steps: [[train]]", "bad_schema"),
        ("steps: [3]", "bad_schema"),
        ("steps: ['']", "unknown_name"),
        ("steps: [{train: {}, prune: {}}]", "bad_schema"),
        ("steps: [{1: {}}]", "bad_schema"),
        ("steps: [{train: {1: 2}}]", "unknown_key"),
        ("steps: [{baseline: {lr: [1]}}]", "bad_type"),
        ("train:", "bad_type"),
        ("train: 3", "bad_type"),
        ("train: [epochs]", "bad_type"),
        ("train: {epochs: {a: 1}}", "bad_type"),
        ("train: {epochs: null}", "bad_type"),
        ("train: {epochs: 2.5}", "bad_type"),
        ("train: {lr: true}", "bad_type"),
        ("train: {lr: 1e400}", "out_of_range"),
        ("train: {optimizer: null}", "unknown_name"),
        ("train: {optimizer: [adamw]}", "unknown_name"),
        ("train: {augment: 3}", "bad_type"),
        ("train: {augment: {flip: [1]}}", "bad_type"),
        ("train: {augment: {crop_min: 0}}", "out_of_range"),
        ("model: 3", "bad_type"),
        ("model: []", "bad_type"),
        ("model: {name: [a]}", "bad_type"),
        ("model: {name: deit_tiny, config: [1]}", "bad_type"),
        ("model: {name: deit_tiny, config: {1: 2}}", "bad_type"),
        ("model: {name: deit_tiny, config: {depth: {a: 1}}}", "out_of_range"),
        ("model: {name: deit_tiny, config: {depth: 100000}}", "out_of_range"),
        ("model: {name: deit_tiny, config: {num_heads: 5}}", "out_of_range"),
        ("model: {name: deit_tiny, config: {num_heads: 0}}", "out_of_range"),
        (f"model: {'a' * 5000}", "unknown_name"),
        (f"model: {'a/' * 2500}", "unknown_name"),
        ("model: timm:nothing_at_all", "unknown_name"),
        ("model: {name: timm:vit_tiny_patch16_224, config: {pretrained: true}}", "unknown_key"),
        ("data: {}", "missing_key"),
        ("data: 3", "bad_type"),
        ("data: {source: 3}", "bad_type"),
        ("data: {source: digits, max_bad: 2}", "out_of_range"),
        ("data: {source: digits, options: 3}", "bad_type"),
        ("data: {source: digits, options: {n_train: 1, other: 2}}", "unknown_key"),
        ("data: {source: digits, options: {seed: 2}}", "unknown_key"),
        ("data: {source: digits, val_share: 0.2}", "unknown_key"),
        ("data: {source: pictures, n_train: 3}", "unknown_key"),
        ("data: {source: digits, 3: 4}", "bad_type"),
        ("budget: 2x", "bad_type"),
        ("budget: {target: fast}", "out_of_range"),
        ("budget: {max_drop: some}", "out_of_range"),
        ("budget: {backend: tensorrt}", "unknown_name"),
        ("schema: 2", "version"),
        ("schema: true", "version"),
        ("schema: null", "version"),
        ("schema: '1'", "version"),
        ("schema: [1]", "version"),
        ("task: detect", "unknown_name"),
        ("task: null", "bad_type"),
        ("task: [classify]", "bad_type"),
        ("name: null", "bad_type"),
        ("name: ''", "bad_name"),
        ("name: ..", "bad_name"),
        ("name: a/b", "bad_name"),
        ("name: latest", "bad_name"),
        (r'name: "\u202etxt"', "bad_name"),
        (f"name: {'漢' * 90}", "bad_name"),
        ("output: null", "bad_type"),
        ("seed: -1", "out_of_range"),
        ("seed: 4294967296", "out_of_range"),
        ("seed: 010", "bad_type"),
        ("threads: 0", "out_of_range"),
        ("source: elsewhere", "unknown_key"),
        ("1: 2", "unknown_key"),
        ("extra: {deep: {deeper: [1, 2]}}", "unknown_key"),
        ("x: " + "[" * 60 + "]" * 60, "bad_yaml"),
        ("- train", "bad_schema"),
    ],
)
def test_wrong_kinds_and_nothings_are_refused(text: str, reason: str) -> None:
    error = refused(text if "model" in text or text.startswith("- ") else f"model: deit_tiny\n{text}")
    assert error.reason == reason, error


def test_what_yaml_makes_of_things() -> None:
    found = recipe.flat(recipe.parse("model: deit_tiny\nname: 2024-01-01\ntrain: {lr: 1e-3, epochs: 3.0, clip: null}"))
    assert (found["name"], found["train.lr"], found["train.clip"]) == ("2024-01-01", 1e-3, None)
    assert found["train.epochs"] == 3 and type(found["train.epochs"]) is int


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_are_accepted(name: str) -> None:
    whole = not name.startswith("compress")  # whose model and data are typed
    plan = recipe.read(name, partial=not whole)
    assert plan.name == name
    assert (plan.model is not None) == (plan.data is not None) == whole
    steps = [step.name for step in plan.steps]
    evaluated = plan.task == "object-detection" and steps[-1] == "evaluate"
    assert evaluated or steps[-2:] == ["measure", "report"] or "from_scratch" in name


def test_a_recipe_without_a_model_needs_one_given() -> None:
    with pytest.raises(InputError, match="needs 'model'"):
        recipe.read("compress")
    plan = recipe.read("compress", given={"model": {"name": "deit_small"}, "data": {"source": "photos"}})
    assert plan.model == recipe.ModelSpec("deit_small") and plan.data == recipe.DataSpec("photos")


def test_given_fields_come_before_the_recipes_own_and_overrides_before_both() -> None:
    plan = recipe.parse(GOOD, given={"data": {"source": "x"}}, overrides=["data.max_bad=0.5", "model.name=deit_small"])
    assert plan.data == recipe.DataSpec("x", max_bad=0.5)
    assert plan.model == recipe.ModelSpec("deit_small")


def test_an_unknown_name_of_a_recipe_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"recipe: no 'demmo'; did you mean 'demo'\? Known: compress, .*demo, "):
        recipe.read("demmo")
    with pytest.raises(OptionError, match="Known"):
        recipe.read("x" * 5000)
    with pytest.raises(InputError, match="missing"):
        recipe.read(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("pair", "key", "value"),
    [
        ("train.lr=1e-3", "train.lr", 1e-3),
        ("steps[4].prune.mlp=0.25", "steps[4].prune.mlp", 0.25),
        ("prune.mlp=0.25", "steps[4].prune.mlp", 0.25),
        ("quantize.skip=[head, norm]", "steps[5].quantize.skip", ["head", "norm"]),
        ("tokens.at[1]=5", "steps[3].tokens.at", [1, 5]),
        ("data.n_train=10", "data.options.n_train", 10),
        ("data.max_bad=0", "data.max_bad", 0.0),
        ("model=deit_small", "model.name", "deit_small"),
        ("model.config.depth=3", "model.config.depth", 3),
        ("teacher.weights=shipped", "teacher.weights", "shipped"),
        ("train.clip=null", "train.clip", None),
        ("train.clip=", "train.clip", None),
        ("name='1e3'", "name", "1e3"),
        ("output=a=b", "output", "a=b"),
        ("train.augment.flip=0.5", "train.augment.flip", 0.5),
        ("budget.target=2x", "budget.target", "2x"),
    ],
)
def test_an_override_sets_its_place_and_no_other(pair: str, key: str, value: object) -> None:
    before, after = recipe.flat(recipe.parse(GOOD)), recipe.flat(recipe.parse(GOOD, overrides=[pair]))
    assert after[key] == value
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed <= {key} or key.startswith("budget")


def test_overrides_go_over_one_another_and_leave_what_they_were_given() -> None:
    raw = yaml.parse(GOOD, "x")
    plan = recipe.parse(raw, overrides=["train.lr=0.1", "train.lr=0.2", "steps[5].quantize.bits=8"])
    assert plan.train.lr == 0.2
    assert raw == yaml.parse(GOOD, "x")


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("train.lr", "is not key=value"),
        ("=3", "is not key=value"),
        ("train..lr=3", "is not a place"),
        ("train.lr[=3", "is not a place"),
        (f"steps[{'9' * 5000}].prune=1", "is not a place"),
        ("prun.mlp=0.4", "did you mean 'prune'"),
        ("steps[99].prune.mlp=1", "there is no entry 99"),
        ("steps[5].prune.mlp=1", "the step there is 'quantize', not 'prune'"),
        ("steps.prune.mlp=1", "no parts of its own"),
        ("train.lr.x=1", "no parts of its own"),
        ("train.lr=[1", "bad_yaml"),
        ("train.lr=1\nseed: 3", "of one line"),
        ("train.lr=!!python/name:os.system", "the tag"),
        ("train.lrr=1", "did you mean 'lr'"),
        ("train.lr=fast", "must be a number"),
        ("model.weights=none\x1b[2J", "is not text"),
    ],
)
def test_a_wrong_override_is_one_line(pair: str, said: str) -> None:
    with pytest.raises((OptionError, InputError)) as caught:
        recipe.parse(GOOD, overrides=[pair])
    assert said in str(caught.value)
    assert str(caught.value).isprintable() and len(str(caught.value)) <= 500


def test_a_step_that_comes_twice_has_to_be_numbered() -> None:
    text = "model: deit_tiny\nsteps: [baseline, {prune: {mlp: 0.1}}, prune]"
    with pytest.raises(OptionError, match=r"'prune' stands for 2 steps: say which, as steps\[1\]\.prune"):
        recipe.parse(text, overrides=["prune.mlp=0.5"])
    plan = recipe.parse(text, overrides=["steps[2].prune.mlp=0.5"])
    assert [step.options for step in plan.steps] == [{}, {"mlp": 0.1}, {"mlp": 0.5}]


@pytest.mark.parametrize("name", [*SHIPPED, "good", "odd"])
def test_a_resolved_recipe_reads_back_to_itself(name: str) -> None:
    odd = "model: deit_tiny\nname: '1e3'\noutput: 'yes: #no'\ntrain: {augment: {mixup: 0.2}}\nbudget: {target: 2MB}"
    text = {"good": GOOD, "odd": odd}.get(name)
    plan = recipe.parse(text) if text else recipe.read(name, partial=True)
    written = yaml.write(recipe.plain(plan))
    again = recipe.parse(written, partial=True)
    assert recipe.plain(again) == recipe.plain(plan)
    assert recipe.flat(again) == recipe.flat(plan)
    assert yaml.write(recipe.plain(again)) == written


def test_a_resolved_recipe_says_every_default() -> None:
    plain = recipe.plain(recipe.parse(GOOD))
    for step in plain["steps"]:
        ((name, options),) = step.items()
        assert set(options) == set(options_of(steps.STEPS[name]))
    assert plain["steps"][4]["prune"]["importance"] == recipe.defaults("prune")["importance"] == "l2"


def test_a_run_is_called_like_its_file(tmp_path: Path) -> None:
    for file, name in (("my small one.yaml", "my small one"), ("-rf.yaml", "run")):
        (tmp_path / file).write_text("model: deit_tiny\n")
        assert recipe.read(tmp_path / file).name == name
    (tmp_path / "a.yaml").write_text("model: deit_tiny\nname: b\n")
    assert recipe.read(tmp_path / "a.yaml").name == "b"


def test_a_model_folder_has_its_own_weights_and_configuration(tmp_path: Path) -> None:
    folder = artifact.save(zoo.create("resnet_digits"), tmp_path / "mine")
    assert recipe.parse({"model": str(folder)}).model == recipe.ModelSpec(str(folder))
    for key, value in (("weights", "x.pth"), ("config", {"num_classes": 3})):
        with pytest.raises(InputError, match=rf"model\.{key}: .*has its own"):
            recipe.parse({"model": {"name": str(folder), key: value}})


def test_numbers_python_can_hold_and_yaml_cannot() -> None:
    for value in (10**400, -(10**400), float("inf"), float("nan")):
        with pytest.raises(InputError, match=r"out_of_range|bad_type"):
            recipe.parse({"model": "deit_tiny", "train": {"lr": value}})
        with pytest.raises(InputError, match=r"out_of_range|bad_type"):
            recipe.parse({"model": "deit_tiny", "seed": value})


def test_paths_of_overrides_name_known_fields_only() -> None:
    with pytest.raises(OptionError, match="is no key and no step"):
        overrides.override({"steps": "train"}, ["a.b=1"], fields=("steps",))
