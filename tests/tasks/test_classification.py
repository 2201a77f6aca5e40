# SPDX-License-Identifier: Apache-2.0
"""Classification: loss, decoding, figures with an interval."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from featherweight.errors import Diverged, OptionError
from featherweight.tasks.classification import Classification, HuggingFace, confusion, scores, wilson


class Known(nn.Module):
    """Answers with the logits that are written in the picture."""

    def forward(self, x):
        return x[:, :, 0, 0]


def batches(logits, labels, size=4):
    x = torch.as_tensor(logits, dtype=torch.float32)[:, :, None, None]
    y = torch.as_tensor(labels)
    return [{"image": x[i : i + size], "label": y[i : i + size]} for i in range(0, len(y), size)]


def test_loss_with_labels_smoothing_and_soft_labels():
    logits, label = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    plain = Classification(3).loss(logits, {"label": label})
    assert plain.keys() == {"task"}
    assert torch.allclose(plain["task"], -logits.log_softmax(1)[range(5), label].mean())
    soft = nn.functional.one_hot(label, 3).float() * 0.9 + 0.1 / 3
    smooth = Classification(3, label_smoothing=0.1).loss(logits, {"label": label})["task"]
    assert torch.allclose(smooth, -(soft * logits.log_softmax(1)).sum(1).mean())
    mixed = Classification(3, label_smoothing=0.1).loss(logits, {"label": label, "soft_label": soft})["task"]
    assert torch.allclose(mixed, smooth)  # smoothed once, not twice


def test_decode():
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])
    first, second = Classification(("a", "b", "c")).decode(logits, top_k=2)
    assert [one["label"] for one in first] == ["b", "c"] and second[0]["label"] == "a"
    assert first[0]["score"] == pytest.approx(float(logits.softmax(1)[0, 1]))
    assert len(Classification().decode(logits, top_k=None)[0]) == 3
    assert Classification().decode(logits)[0][0]["label"] == "1"


def test_evaluate():
    logits = np.eye(8, dtype=np.float32)[[0, 1, 2, 3, 4, 5, 6, 7, 0, 0]]
    labels = np.array([0, 1, 2, 3, 4, 5, 6, 7, 1, 7])
    found = Classification(8).evaluate(nn.Identity(), batches_identity(logits, labels))
    assert found["top1"] == 0.8 and found["n"] == 10 and found["correct"] == 8
    assert found["top5"] == 0.9  # of equal logits the first count: class 1 is among 0..4, class 7 is not
    assert found["interval"] == wilson(8, 10)
    assert "top5" not in scores(logits[:, :5], np.zeros(10, np.int64))


def batches_identity(logits, labels):
    return [{"image": torch.from_numpy(logits), "label": torch.from_numpy(labels)}]


def test_predictions_keep_order_and_mode():
    model = nn.Sequential(Known(), nn.Dropout(0.9))
    model.train()
    model[0].eval()
    logits = np.arange(30, dtype=np.float32).reshape(10, 3)
    found, labels = Classification(3).predictions(model, batches(logits, np.arange(10) % 3))
    assert np.array_equal(found, logits), "dropout must be off"
    assert np.array_equal(labels, np.arange(10) % 3)
    assert model.training and not model[0].training and model[1].training


def test_what_cannot_be_evaluated():
    with pytest.raises(OptionError, match="no batches"):
        Classification(3).evaluate(Known(), [])
    with pytest.raises(Diverged, match="1 of 2 pictures are not finite"):
        Classification(3).evaluate(Known(), batches([[0, 1, 2], [0, float("nan"), 1]], [0, 1]))
    with pytest.raises(OptionError, match="has 3 classes, but the data has a class number 3"):
        Classification(3).evaluate(Known(), batches([[0, 1, 2]], [3]))


def test_hugging_face_models_are_called_their_way():
    class Theirs(nn.Module):
        def forward(self, pixel_values):
            return SimpleNamespace(logits=pixel_values[:, :, 0, 0])

    logits = np.eye(3, dtype=np.float32)
    assert HuggingFace(3).evaluate(Theirs(), batches(logits, [0, 1, 0]))["correct"] == 2


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [(8, 10, 0.4901625, 0.9433178), (0, 10, 0.0, 0.2775328), (10, 10, 0.7224672, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_interval_against_known_values(correct, n, low, high):
    # 81 of 263 is an example of Newcombe 1998, table I, which has four places
    assert wilson(correct, n) == pytest.approx((low, high), abs=5e-5 if n == 263 else 2e-6)
    assert wilson(0, 0) == (0.0, 1.0)


def test_confusion_has_truth_in_rows():
    logits = np.eye(3, dtype=np.float32)[[0, 1, 1, 2]]
    assert confusion(logits, np.array([0, 0, 1, 2])).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]


def test_options():
    assert Classification(num_classes=2).classes == ("0", "1") and Classification().num_classes is None
    with pytest.raises(OptionError, match="is 3, but there are 2 class names"):
        Classification(("a", "b"), num_classes=3)
    with pytest.raises(OptionError, match="label_smoothing"):
        Classification(2, label_smoothing=1.0)
