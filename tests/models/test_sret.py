# SPDX-License-Identifier: Apache-2.0
"""SReT against numbers of its authors' code, and what is ours: any number of passes, one answer in evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fill
import pytest
import torch
from golden_files import agrees, golden
from torch import Tensor

from featherweight import artifact, official
from featherweight.errors import InputError, OptionError
from featherweight.models import zoo
from featherweight.models.sret import Attention, SReT, SReTConfig, Stage, aliases
from featherweight.recurrence import NonLinearProjection

QUICK = ("sret_t", "sret_lt_wo_slice")
REST = (
    "sret_lt", "sret_t_wo_slice", "sret_t_distill", "sret_lt_distill", "sret_lt_wo_slice_distill", "sret_s_wo_slice",
    "sret_s_wo_slice_finetune_384",
)  # fmt: skip
FAMILY = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in REST)]
ATOL = 2e-5  # for numbers of about 1: right and wrong differ by 2.8e-4 and more, two right ones by 1e-6
FUNCTIONS = golden("functions_sret")


def filled(model: torch.nn.Module, *, scaled: list[str] | tuple[str, ...] = (), learned: bool = False) -> Any:
    """Stand-in weights; coefficients are 1, or about 1 where they are `learned`."""
    state = {}
    for key, tensor in model.state_dict().items():
        if "coefficient" in key:
            state[key] = 1 + 0.1 * fill.normal(key, tensor.shape) if learned else torch.ones_like(tensor)
        else:
            state[key] = fill.tensor(key, tensor.shape, tensor.dtype) * (1e-3 if key in scaled else 1)
    model.load_state_dict(state)
    return model.eval()


def orders(model: SReT, name: str = "") -> list[Tensor]:
    """The golden file's permutations, or the tokens in their order."""
    sizes = [len(p.order) for p in model.permutations()]
    if not name:
        return [torch.arange(n) for n in sizes]
    return [fill.normal(f"{name}:perm{k}", (n,)).argsort(stable=True) for k, n in enumerate(sizes)]


@torch.no_grad()
def outputs(model: SReT, image: Tensor) -> dict[str, Tensor]:
    """What the golden files call what the modules get and give."""
    seen: dict[str, Tensor] = {}
    places = {"patch_embed": "stem", "norm": "features", "pools.0": "pool0", "pools.1": "pool1"}
    handles = []
    for place, name in places.items():
        keep = lambda _m, _a, out, name=name: seen.update({name: out})  # noqa: E731
        handles.append(model.get_submodule(place).register_forward_hook(keep))
    for number, stage in enumerate(model.transformers):
        both = lambda _m, args, out, n=number: seen.update({f"stage{n}_in": args[0], f"stage{n}_out": out})  # noqa: E731
        handles.append(stage.register_forward_hook(both))
    seen["logits"] = model(image)
    for handle in handles:
        handle.remove()
    return seen


def compare(found: dict[str, Tensor], wanted: dict[str, Any]) -> None:
    digests = {name: digest for name, digest in wanted.items() if isinstance(digest, dict)}
    assert set(digests) <= set(found)
    for name, digest in digests.items():
        agrees(found[name], digest, atol=ATOL * max(1.0, digest["std"]))  # rounding grows with the numbers


@pytest.mark.parametrize("name", [*QUICK, *REST])
def test_keys_and_number_of_parameters(name: str) -> None:
    reference = golden(name)
    with torch.device("meta"):
        models = [zoo.create(name), zoo.create("sret", **reference["config"])]
    for model in models:
        shared = aliases(model.config)
        assert sorted(shared.items()) == sorted(map(tuple, reference["aliases"]))
        once = [row for row in reference["state_dict"] if ".".join(row[0].split(".")[:4]) not in shared]
        found = [[key, list(t.shape), str(t.dtype).removeprefix("torch.")] for key, t in model.state_dict().items()]
        assert found == once
        assert sum(p.numel() for p in model.parameters()) == reference["params"]


@pytest.mark.parametrize("name", FAMILY)
def test_outputs(name: str) -> None:
    reference = golden(name)
    model = filled(zoo.create("sret", **reference["config"]))
    image = fill.image(reference["input"]["image_name"], reference["input"]["shape"])
    model.set_permutations(orders(model))
    if "permutation" in reference:
        compare(outputs(model, image), reference["outputs"]["identity_permutation"])
        given = orders(model, name)
        assert [order[:8].tolist() for order in given] == reference["permutation"]["first8_of_each_call"]
        model.set_permutations(given)
        compare(outputs(model, image), reference["outputs"]["fixed_permutation"])
        model.set_permutations(orders(model))
    else:
        compare(outputs(model, image), reference["outputs"])
    compare(outputs(filled(model, learned=True), image), reference["outputs_lrc"])
    probe = reference["eps_probe"]
    agrees(outputs(filled(model, scaled=probe["scaled_by_1e-3"]), image)["logits"], probe["logits"], atol=ATOL)


@torch.no_grad()
def test_attention_in_groups() -> None:
    wanted = FUNCTIONS["group_attention"]
    attention, x = filled(Attention(8, 2)), fill.normal("ga:x", (2, 16, 8))
    order = fill.normal("ga:perm", (16,)).argsort()
    assert order.tolist() == wanted["permutation"]
    agrees(attention(x, 4), wanted["first_pass"], atol=1e-6)
    agrees(attention(x, 2, (order, order.argsort())), wanted["recursive_fixed_permutation"], atol=1e-6)
    agrees(attention(x, 2), wanted["recursive_identity"], atol=1e-6)
    agrees(attention(x), wanted["ungrouped_same_weights"], atol=1e-6)


def small(**config: Any) -> SReT:
    options: dict[str, Any] = {
        "image_size": (32, 48), "num_classes": 3, "base_dim": 8, "depths": (4, 2), "unique_blocks": (2, 1),
        "num_heads": (1, 2), "groups": (4, 2), "groups_recursive": (2, 1),
    }  # fmt: skip
    torch.manual_seed(0)
    return SReT(SReTConfig(**{**options, **config}))


@torch.no_grad()
def test_a_stage_and_a_projection() -> None:
    config = SReTConfig(
        image_size=32, base_dim=8, depths=(4,), unique_blocks=(2,), num_heads=(2,), mlp_ratio=2.0, groups=(4,),
        groups_recursive=(2,), permutation="none",
    )  # fmt: skip
    wanted = FUNCTIONS["transformer_stage"]
    stage = filled(Stage(config, 0), learned=True)
    assert [key for key in wanted["state_dict_keys"] if key not in wanted["aliases"]] == list(stage.state_dict())
    agrees(stage(fill.normal("tr:x", (2, 16, 4, 4))), wanted["out"], atol=2e-6)
    wanted = FUNCTIONS["non_linear_projection"]
    projection = filled(NonLinearProjection(8, 1.0, norm_eps=1e-5), learned=True)  # as theirs made by itself
    assert [[k, list(t.shape), "float32"] for k, t in projection.state_dict().items()] == wanted["state_dict"]
    agrees(projection(fill.normal("nl:x", (2, 5, 8))), wanted["out"], atol=1e-6)


@pytest.mark.parametrize(
    ("case", "name", "rate"),
    [("SReT_T", "sret_t", 0.1), ("SReT_S_wo_slice(drop_path_rate=0.2)", "sret_s_wo_slice", 0.2)],
)
def test_drop_path_is_that_of_the_authors(case: str, name: str, rate: float) -> None:
    with torch.device("meta"):
        model = zoo.create(name, drop_path_rate=rate)
    found = {n: round(m.rate, 6) for n, m in model.named_modules() if n.endswith("drop_path") and m.rate}
    assert found == pytest.approx(FUNCTIONS["drop_path_installed"][case])


@torch.no_grad()
@pytest.mark.parametrize(("depth", "unique"), [(3, 3), (6, 2), (8, 2), (5, 1)])
def test_any_number_of_passes_is_the_same_block_again(depth: int, unique: int) -> None:
    """Passes take turns: contiguous groups, permuted groups. Every block is there once, every projection for itself."""
    model = small(depths=(depth, 2), unique_blocks=(unique, 1)).eval()
    stage, loops, x = model.transformers[0], depth // unique, torch.randn(2, 8, 4, 6)
    tokens = x.flatten(2).transpose(1, 2)
    permutations = iter(model.permutations())
    for number in range(depth):
        block = stage.blocks[str(2 * (number - number % loops))]
        order = next(permutations)() if number % 2 else None
        tokens = block(tokens, (4, 2)[number % 2], order)
        tokens = stage.blocks[str(2 * number + 1)](tokens)
    torch.testing.assert_close(stage(x).flatten(2).transpose(1, 2), tokens, atol=1e-6, rtol=0)
    assert sum(name.endswith("attn.qkv.weight") for name in stage.state_dict()) == unique
    assert sum(name.endswith("mlp.fc1.weight") for name in stage.state_dict()) == unique + depth


@torch.no_grad()
def test_one_answer_in_evaluation_and_new_permutations_in_training() -> None:
    model, images = small().eval(), torch.randn(2, 3, 32, 48)
    answer = model(images)
    assert torch.equal(model(images), answer)
    assert torch.equal(small().eval()(images), answer)  # the permutations are those of the seed
    assert not torch.equal(small(permutation_seed=2).eval()(images), answer)
    assert not any("order" in key or "inverse" in key for key in model.state_dict())
    tokens = torch.randn(1, 8, 4, 6)
    for how, varies in (("redrawn", True), ("fixed", False), ("none", False)):
        stage = small(permutation=how).train().transformers[0]
        assert torch.equal(stage(tokens), stage(tokens)) != varies
    assert small(permutation="none").permutations() == []


def test_permutations_are_checked() -> None:
    model = small()
    assert [len(p.order) for p in model.permutations()] == [24, 24]
    assert model.permutations()[0].order.tolist() != model.permutations()[1].order.tolist()
    with pytest.raises(OptionError, match="1 given; this model uses 2"):
        model.set_permutations([torch.arange(24)])
    with pytest.raises(OptionError, match="0 to 23 once each"):
        model.set_permutations([torch.arange(24), torch.zeros(24, dtype=torch.int64)])


def test_images_need_not_be_square_but_of_the_right_size() -> None:
    assert small()(torch.zeros(2, 3, 32, 48)).shape == (2, 3)
    with pytest.raises(ValueError, match=r"image of \(48, 32\) given to a model for \(32, 48\)"):
        small()(torch.zeros(2, 3, 48, 32))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"image_size": (32, 44)}, "image_size: (32, 44) is not a pair of multiples of 8"),
        ({"groups": (5, 1)}, "groups: 5 does not divide the 24 tokens (4 x 6) of stage 1"),
        ({"groups_recursive": (2, 4)}, "groups_recursive: 4 does not divide the 6 tokens (2 x 3) of stage 2"),
        ({"unique_blocks": (3, 1)}, "unique_blocks: 3 blocks do not divide depth 4 of stage 1"),
        ({"num_heads": (2, 3)}, "stage 2 is 24 wide, which is no multiple of the 16 before it"),
        ({"num_heads": (1, 2, 4)}, "num_heads: (1, 2, 4) and depths (4, 2) must name the same stages"),
        ({"permutation": "random"}, "permutation: 'random' is not one of redrawn, fixed, none"),
        ({"drop_path_rate": 1.0}, "drop_path_rate: 1.0 is not from 0 to below 1"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError) as error:
        small(**config)
    assert says in str(error.value)


CONFIG: dict[str, Any] = {
    "image_size": [32, 32], "num_classes": 3, "base_dim": 8, "depths": [2, 2], "unique_blocks": [1, 1],
    "num_heads": [1, 2], "groups": [4, 2], "groups_recursive": [2, 1],
}  # fmt: skip


def test_a_file_lists_shared_tensors_twice(tmp_path: Path) -> None:
    model = filled(zoo.create("sret", **CONFIG))
    state = dict(model.state_dict())
    for alias, first in aliases(model.config).items():
        state |= {alias + key.removeprefix(first): t for key, t in state.items() if key.startswith(f"{first}.")}
    assert len(state) > len(model.state_dict())
    torch.save({"model": state}, tmp_path / "official.pth")
    loaded = official.load(zoo.create("sret", **CONFIG), tmp_path / "official.pth")
    assert all(torch.equal(t, loaded.state_dict()[key]) for key, t in model.state_dict().items())
    larger = official.load(zoo.create("sret", **{**CONFIG, "image_size": [64, 96]}), tmp_path / "official.pth")
    assert larger.pos_embed.shape == (1, 8, 8, 12)
    state["transformers.1.blocks.2.norm1.bias"] = state["transformers.1.blocks.2.norm1.bias"] + 1
    torch.save({"model": state}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="one shared tensor, but differ"):
        official.load(zoo.create("sret", **CONFIG), tmp_path / "other.pth")


@torch.no_grad()
def test_it_saves_and_exports_with_any_batch(tmp_path: Path) -> None:
    onnx = pytest.importorskip("featherweight.export.onnx")
    session = pytest.importorskip("featherweight.runtime.session")
    model = filled(zoo.create("sret", **CONFIG))
    loaded = artifact.load(artifact.save(model, tmp_path / "model"))
    images = fill.normal("images", (3, 3, 32, 32))
    assert torch.equal(loaded(images), model(images))
    exported = onnx.export(model, images, tmp_path / "model.onnx")
    runs = session.open_session(exported.path, backend="onnxruntime", threads=1)
    for count in (1, 2, 3):
        (found,) = runs.run({runs.inputs[0].name: images[:count].numpy()}).values()
        torch.testing.assert_close(torch.from_numpy(found), model(images[:count]), atol=1e-4, rtol=0)


@torch.no_grad()
def test_positions_of_another_size() -> None:
    wanted = golden("pos_embed_resize")["sret_4d"]
    from featherweight.models.positions import resize_map

    agrees(resize_map(fill.normal("pe:sret", (1, 32, 28, 28)), (48, 48)), wanted["bicubic"], atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_it_answers_the_same() -> None:
    model, images = filled(zoo.create("sret", **CONFIG)), fill.normal("images", (2, 3, 32, 32))
    torch.testing.assert_close(torch.compile(model)(images), model(images), atol=2e-5, rtol=0)
