# SPDX-License-Identifier: Apache-2.0
"""Edits are data, applied to copies and written down; what modules put aside does not travel."""

from __future__ import annotations

import copy
import io
import json

import pytest
import torch
from torch import Tensor, nn

from featherweight import surgery
from featherweight.errors import OptionError
from featherweight.surgery import Aside, Edit, Tap, all_of, apply, edits_of, find, put, submodule, tap, untap, watching


@pytest.fixture(autouse=True)
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two kinds of edit that exist in these tests only."""
    monkeypatch.setattr(surgery, "_KINDS", dict(surgery._KINDS))

    @surgery.edit_kind
    def widened(module: nn.Module, outputs: int) -> nn.Module:
        assert isinstance(module, nn.Linear)
        return nn.Sequential(module, nn.Dropout(0.5), nn.Linear(module.out_features, outputs))

    @surgery.edit_kind
    def renamed(module: nn.Module) -> nn.Module:
        return nn.ModuleDict({"inside": module})


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Sequential(nn.Linear(3, 2)))


def test_apply_changes_a_copy_and_writes_it_down() -> None:
    model, edit = network(), Edit("2.0", "widened", {"outputs": 7})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    new = apply(model, [edit])
    assert new(torch.zeros(1, 4)).shape == (1, 7)
    assert model(torch.zeros(1, 4)).shape == (1, 2)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert edits_of(new) == (edit,)
    assert edits_of(model) == ()
    assert torch.equal(new.get_submodule("2.0.0").weight, model.get_submodule("2.0").weight)


def test_edits_add_up_and_travel_with_copies() -> None:
    first, second = Edit("0", "widened", {"outputs": 3}), Edit("0.2", "widened", {"outputs": 3})
    new = apply(apply(network(), [first]), [second])
    assert edits_of(new) == (first, second)
    assert edits_of(copy.deepcopy(new)) == (first, second)
    assert edits_of(apply(new, [])) == (first, second)
    assert [(k, t.shape) for k, t in apply(network(), edits_of(new)).state_dict().items()] == [
        (k, t.shape) for k, t in new.state_dict().items()
    ]


def test_the_model_itself_can_be_replaced() -> None:
    new = apply(network(), [Edit("", "renamed"), Edit("inside.0", "widened", {"outputs": 3})])
    assert isinstance(new, nn.ModuleDict)
    assert [edit.kind for edit in edits_of(new)] == ["renamed", "widened"]


def test_an_edit_on_a_part_that_an_edit_made() -> None:
    assert apply(network(), [Edit("0", "widened", {"outputs": 3}), Edit("0.0", "widened", {"outputs": 3})])


@pytest.mark.parametrize("training", [True, False])
def test_what_is_new_is_in_the_mode_of_what_it_stands_in_for(training: bool) -> None:
    model = network().train(training)
    model[2].eval()
    new = apply(model, [Edit("0", "widened", {"outputs": 3}), Edit("2.0", "widened", {"outputs": 2})])
    assert {m.training for m in new[0].modules()} == {training}
    assert {m.training for m in new[2].modules()} == {False}


def test_edits_are_json() -> None:
    edit = Edit("a.b", "widened", {"outputs": 3, "list": [[1, 0.5]], "none": None})
    assert Edit.from_dict(json.loads(json.dumps(edit.to_dict()))) == edit


@pytest.mark.parametrize(
    "data",
    [{}, [], None, {"path": "", "kind": "x"}, {"path": "", "kind": "x", "spec": {}, "more": 1},
     {"path": 1, "kind": "x", "spec": {}}, {"path": "", "kind": None, "spec": {}},
     {"path": "", "kind": "x", "spec": []}],
)  # fmt: skip
def test_what_is_not_an_edit_is_refused(data: object) -> None:
    with pytest.raises(OptionError, match="edits: an edit"):
        Edit.from_dict(data)  # type: ignore[arg-type]


def test_mistakes_are_named() -> None:
    with pytest.raises(OptionError, match="no kind 'wideneds'; did you mean 'widened'"):
        apply(network(), [Edit("0", "wideneds")])
    with pytest.raises(LookupError, match=r"Sequential has no module '2\.1'\. did you mean '2"):
        apply(network(), [Edit("2.1", "widened")])
    with pytest.raises(LookupError, match="has 2 modules of class Linear, not one"):
        find(network(), nn.Linear)
    with pytest.raises(LookupError, match="has 0 modules of class Conv2d, not one"):
        find(network(), nn.Conv2d)


def test_find_put_and_all_of() -> None:
    model = network()
    assert find(model, nn.ReLU) is model[1]
    assert list(all_of(model, nn.Linear)) == ["0", "2.0"]
    new = nn.Identity()
    assert put(model, "2.0", new) is model
    assert submodule(model, "2.0") is new
    assert submodule(model, "") is model


def test_what_is_put_aside_stays_behind() -> None:
    aside = Aside()
    aside.loss = (torch.ones(2, requires_grad=True) * 2).sum()
    assert "loss" in aside
    with pytest.raises(AttributeError, match="nothing named 'other' was put aside"):
        aside.other  # noqa: B018
    for copied in (copy.deepcopy(aside), copy.copy(aside)):
        assert "loss" not in copied
    assert float(aside.take("loss").detach()) == 4.0
    assert "loss" not in aside
    aside.more = 1
    aside.clear()
    assert "more" not in aside


def test_two_that_share_an_aside_share_it_in_a_copy() -> None:
    class Writer(nn.Module):
        def __init__(self, letter: Aside) -> None:
            super().__init__()
            self.letter = letter

    letter = Aside()
    pair = copy.deepcopy(nn.ModuleList([Writer(letter), Writer(letter)]))
    assert pair[0].letter is pair[1].letter is not letter


def test_a_module_with_an_aside_can_be_saved_whole() -> None:
    model = tap(network(), "0")
    model(torch.zeros(1, 4))
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    assert "output" not in torch.load(stream, weights_only=False)[0].aside


def test_taps_pass_on_and_come_off() -> None:
    model, x = apply(network(), [Edit("2.0", "widened", {"outputs": 3})]).eval(), torch.randn(2, 4)
    tapped = tap(tap(model, "0"), "2.0.2")
    assert torch.equal(tapped(x), model(x))
    assert torch.equal(submodule(tapped, "0").aside.output, model[0](x))
    assert torch.equal(submodule(tapped, "2.0.2").aside.output, model(x))
    assert not all_of(model, Tap)
    clean = untap(tapped)
    assert not all_of(clean, Tap)
    assert len(all_of(tapped, Tap)) == 2  # the one given is untouched
    assert list(clean.state_dict()) == list(model.state_dict())
    assert edits_of(clean) == edits_of(tapped) == edits_of(model)


def test_watching_sees_every_output_and_leaves_no_hook() -> None:
    model = network()
    with watching(model, "1") as seen:
        outputs: list[Tensor] = [model(torch.randn(1, 4)), model(torch.randn(2, 4))]
    model(torch.randn(3, 4))
    assert [len(tensor) for tensor in seen] == [len(tensor) for tensor in outputs] == [1, 2]
    with pytest.raises(RuntimeError), watching(model, "1"):
        model(torch.randn(1, 5))
    assert not model[1]._forward_hooks
