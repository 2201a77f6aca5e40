# SPDX-License-Identifier: Apache-2.0
"""Augmentation: neutral is identity, pure, in shape; mixing keeps a distribution."""

import numpy as np
import pytest
import torch
from golden_files import golden
from PIL import Image

from featherweight.data import Augment, mixing
from featherweight.data.presets import augmentation
from featherweight.data.randaugment import OPERATIONS, randaugment
from featherweight.data.transforms import affine, erase, jitter, random_crop
from featherweight.errors import OptionError


def rng(seed=0):
    return np.random.Generator(np.random.Philox(key=[seed, 0]))


@pytest.fixture
def picture():
    ramp = np.add.outer(np.arange(40) * 3, np.arange(52) * 2)
    return np.stack([ramp, ramp[::-1], 255 - ramp], axis=2).astype(np.uint8)


def test_neutral_options_are_the_identity(picture):
    before = picture.copy()
    assert Augment().picture(picture, rng(), size=(8, 8)) is picture
    assert np.array_equal(picture, before) and not Augment().mixes


EACH = [
    {"crop_min": 0.3},
    {"flip": 1.0},
    {"shift": 0.2},
    {"rotate": 20.0},
    {"zoom": 0.3},
    {"brightness": 0.4},
    {"contrast": 0.4},
    {"saturation": 0.4},
    {"randaugment": 9.0, "randaugment_ops": 6},
    {"erase": 1.0},
]


@pytest.mark.parametrize("options", EACH, ids=lambda o: next(iter(o)))
def test_each_option_changes_the_picture_purely(picture, options):
    before = picture.copy()
    one = Augment(**options).picture(picture, rng(1), size=(40, 52))
    two = Augment(**options).picture(picture, rng(1), size=(40, 52))
    assert np.array_equal(picture, before), "the input was touched"
    assert one.shape == picture.shape and one.dtype == np.uint8 and np.array_equal(one, two)
    assert not np.array_equal(one, picture)


def test_a_flip_is_a_mirror(picture):
    assert np.array_equal(Augment(flip=1.0).picture(picture, rng(), size=(1, 1)), picture[:, ::-1])


def test_zero_amounts_leave_the_picture(picture):
    assert np.array_equal(affine(picture, rng(), shift=0, rotate=0, zoom=0), picture)
    assert np.array_equal(jitter(picture, rng(), 0, 0, 0), picture)
    whole = random_crop(picture, rng(), size=(40, 52), smallest=1.0, ratio=(52 / 40, 52 / 40))
    assert np.array_equal(whole, picture)


@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (1, 1), (2, 3)])
def test_odd_shapes(shape):
    picture = np.full((*shape, 3), 77, np.uint8)
    options = {key: value for one in EACH for key, value in one.items()}
    for seed in range(10):
        assert Augment(**options).picture(picture, rng(seed), size=(16, 24)).shape == (16, 24, 3)


def test_erasing_stays_within_its_share(picture):
    for seed in range(30):
        changed = (erase(picture, rng(seed)) != picture).any(2).mean()
        assert 0.005 < changed < 0.36


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("increasing", [True, False])
def test_randaugment_operations_run_at_every_strength(picture, name, increasing):
    image = Image.fromarray(picture)
    for level in (0.0, 0.5, 1.0):
        assert OPERATIONS[name](image, level, increasing, rng()).size == image.size


def test_increasing_operations_do_nothing_at_zero(picture):
    image = Image.fromarray(picture)
    for name in set(OPERATIONS) - {"autocontrast", "equalize", "invert", "posterize"}:
        assert np.array_equal(np.asarray(OPERATIONS[name](image, 0.0, True, rng())), picture), name


def test_randaugment_draws_by_its_random_numbers(picture):
    found = {randaugment(picture, rng(seed), magnitude=9).tobytes() for seed in range(12)}
    assert len(found) > 6


def batch(n=6):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 3
    return {"image": torch.rand(n, 3, 8, 8, generator=generator), "label": labels, "index": torch.arange(n)}


@pytest.mark.parametrize("options", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixed_labels_sum_to_one_and_say_what_is_in_the_picture(options, smoothing):
    given = batch()
    before = given["image"].clone()
    augment = Augment(**options, num_classes=3, label_smoothing=smoothing)
    mixed = augment.mix(given, [rng(i) for i in range(6)])
    soft = mixed["soft_label"]
    assert soft.shape == (6, 3) and soft.dtype == torch.float32
    assert torch.allclose(soft.sum(1), torch.ones(6), atol=1e-6) and soft.min() >= smoothing / 3 - 1e-7
    assert torch.equal(given["image"], before), "the input was touched"
    assert torch.equal(mixed["label"], given["label"])
    if smoothing == 0:
        own = torch.nn.functional.one_hot(given["label"], 3).float()
        for i in range(6):
            partner = before[5 - i]
            share = 1 - ((mixed["image"][i] - before[i]) / (partner - before[i])).mean()  # what the pixels say
            expected = own[i] * share + own[5 - i] * (1 - share)
            assert torch.allclose(soft[i], expected, atol=1e-3)


def test_mixing_never_leaves_it_when_probability_is_zero():
    mixed = Augment(mixup=1.0, num_classes=3, mix_probability=0.0).mix(batch(), [rng(i) for i in range(6)])
    assert torch.equal(mixed["image"], batch()["image"])
    assert torch.equal(mixed["soft_label"].argmax(1), batch()["label"])


@pytest.mark.parametrize(
    "options", [{"flip": 1.5}, {"crop_min": 0.0}, {"randaugment": 11}, {"mixup": -1}, {"mixup": 1.0}, {"zoom": 1.0}]
)
def test_wrong_options(options):
    name = "num_classes" if options == {"mixup": 1.0} else next(iter(options))
    with pytest.raises(OptionError, match=f"augment.{name}"):
        Augment(**options)


def test_the_mixed_target_is_deits():
    wanted = golden("functions_deit")["mixup_target"]["value"]
    found = mixing.target(torch.tensor([1, 3, 5, 7]), torch.full((4,), 0.3), num_classes=10, smoothing=0.1)
    assert torch.allclose(found, torch.tensor(wanted), atol=1e-7)


@pytest.mark.parametrize("options", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_a_batch_may_draw_one_share_for_all(options):
    given = {**batch(), "label": torch.arange(6)}
    mixed = Augment(**options, num_classes=6, mix_per="batch").mix(given, [rng(i) for i in range(6)])
    own = mixed["soft_label"].diagonal()
    assert torch.equal(own, own[:1].expand(6)) and 0 < own[0] < 1
    each = Augment(**options, num_classes=6).mix(given, [rng(i) for i in range(6)])["soft_label"].diagonal()
    assert len(set(each.tolist())) > 3, "the control"


@pytest.mark.parametrize(("switch", "cut"), [(0.0, False), (1.0, True)])
def test_the_switch_says_which_of_both(switch, cut):
    both = mixing.Mixing(0.8, 1.0, switch=switch)
    assert all((both.draw(rng(i), 8, 8)[1] is not None) == cut for i in range(20))


def test_deits_augmentation_by_name():
    found = augmentation({"preset": "deit", "erase": 0.1}, 10)
    assert (found.mixup, found.cutmix, found.mix_per, found.label_smoothing, found.erase) == (
        0.8,
        1.0,
        "batch",
        0.1,
        0.1,
    )
    assert (found.randaugment, found.randaugment_ops, found.randaugment_std) == (9.0, 2, 0.5)
    assert found.randaugment_increasing and found.crop_min == 0.08 and found.flip == 0.5
    plain = augmentation({"randaugment": "rand-m7-n3"}, 10)
    assert (plain.randaugment, plain.randaugment_ops, plain.randaugment_std) == (7.0, 3, 0.0)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"preset": "diet"}, r"augment\.preset: no 'diet'; did you mean 'deit'"),
        ({"randaugment": "rand-9"}, r"augment\.randaugment: no '9'"),
        ({"randaugment": "augmix-m3"}, r"augment\.randaugment: 'augmix-m3' is not like rand-m9"),
        ({"mix_per": "pair"}, r"augment\.mix_per: no 'pair'"),
        ({"mix_switch": 2}, r"augment\.mix_switch"),
    ],
)
def test_wrong_names(options, told):
    with pytest.raises(OptionError, match=told):
        augmentation(options, 10)
