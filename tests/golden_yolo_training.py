# SPDX-License-Identifier: Apache-2.0
"""What golden files of detection training over time ask: schedules, and whole steps in float64, by `fit` itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import fill
import torch
from golden_case import Case, at
from golden_yolo_losses import close, items_of
from torch import Tensor, nn

import featherweight
from featherweight import optim
from featherweight.method import Method, Pass
from featherweight.models.yolov7_head import Detect
from featherweight.schedules import Ramp, Setting, by_epoch, nominal_decay
from featherweight.tasks.detection import Detection
from featherweight.tasks.detection.published import PUBLISHED
from featherweight.train import fit

EXACT = 1e-6  # in float64, of the numbers' deviation


# ---- schedules -----------------------------------------------------------------------------------------------------


def schedules(case: Case) -> None:
    """Warm-up, rates by epoch, the average's decay, first biases, scaled gains."""
    reference = case.reference
    for number, run in enumerate(reference["warmup"]):
        _warmup(case, f"warmup.{number}", run)
    for name, rates in reference["epoch_lr"].items():
        for kind in ("cosine", "linear"):
            final = PUBLISHED[name.rsplit(".", 1)[-1]].final_lr
            shape = {"epochs": rates["epochs"], "steps_per_epoch": 1, "batch_size": 64, "final": final}
            made = by_epoch(**shape, linear=kind == "linear", warmup_epochs=0)
            close(case, f"epoch_lr.{name}.{kind}", [0.01 * made.factor(e) for e in rates["at"]], rates[kind], rtol=1e-8)
    ramp = Ramp()
    close(case, "ema", [ramp(n) for n in reference["ema"]["updates"]], reference["ema"]["decay"], rtol=1e-8)
    _biases(case, reference["bias_init"])
    for number, row in enumerate(reference["gain_scaling"]):
        shape = {"levels": row["nl"], "classes": row["nc"], "size": row["imgsz"]}
        made_of = [known.gains.scaled(**shape) for known in PUBLISHED.values()]
        wanted = torch.tensor([row["box"], row["cls"], row["obj"]])
        fits = [torch.allclose(torch.tensor([g.box, g.cls, g.obj]), wanted, rtol=1e-6) for g in made_of]
        if not any(fits):
            case.wrong.append(f"gain_scaling.{number}: {made_of[0]}, not {wanted.tolist()}")


def _warmup(case: Case, place: str, run: Mapping[str, Any]) -> None:
    shape = {"epochs": run["epochs"], "steps_per_epoch": run["batches_per_epoch"], "batch_size": run["total_batch"]}
    made = by_epoch(**shape, final=0.1, warmup_share=1.0)
    case.equal(f"{place}.warmup_iterations", made.warmup)
    case.equal(f"{place}.initial_accumulate", made.accumulate)
    close(case, place, nominal_decay(5e-4, batch_size=run["total_batch"]), run["weight_decay"], rtol=1e-8)
    total = run["epochs"] * run["batches_per_epoch"]
    for number, point in enumerate(run["points"]):
        finals = [PUBLISHED[kind].final_lr for kind in ("p5", "p6", "tiny")]
        found = []
        for final in finals:
            now = by_epoch(**shape, final=final, warmup_share=1.0)((point["iteration"] + 1) / total)
            found.append([now.accumulate, 0.01 * now.factor, 0.01 * (now.bias_factor or 0.0), now.momentum])
        wanted = [point[name] for name in ("accumulate", "lr_weights", "lr_bias", "momentum")]
        fits = [torch.allclose(torch.tensor(f), torch.tensor(wanted), rtol=1e-6, atol=1e-9) for f in found]
        if not any(fits):
            case.wrong.append(f"{place}.points.{number}: {found[0]}, not {wanted}")


def _biases(case: Case, wanted: Mapping[str, Any]) -> None:
    """What a new head adds to its first biases."""
    for name, value in wanted.items():
        if name.startswith("class_nc"):
            head = Detect([4], [[1, 1]], [8], int(name.removeprefix("class_nc")))
            close(case, f"bias_init.{name}", float(_added(head)[0][0, 5]), value, rtol=1e-5)
    strides = [int(stride) for stride in wanted["objectness"]]
    head = Detect([4] * len(strides), [[1, 1]] * len(strides), strides, 3)
    found = [float(level[0, 4]) for level in _added(head)]
    close(case, "bias_init.objectness", found, [*wanted["objectness"].values()], rtol=1e-5)


def _added(head: Detect) -> list[Tensor]:
    """Per level (A, 5 + K): what setting the first biases adds."""
    for conv in head.m:
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    head.init_biases()
    return [conv.bias.detach().view(head.num_anchors, -1) for conv in head.m]  # type: ignore[operator, union-attr]


# ---- whole steps ---------------------------------------------------------------------------------------------------


class One:
    """The same batch in every epoch of one step."""

    steps_per_epoch = 1

    def __init__(self, batch: Mapping[str, Tensor]) -> None:
        self.batch = batch

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Mapping[str, Tensor]]:
        yield self.batch

    def shard(self, rank: int, world: int) -> One:
        return self


class Spy(Method):
    """Compares what `fit` does in each step with the file."""

    def __init__(self, case: Case) -> None:
        self.case, self.number = case, 0

    def loss(self, terms: dict[str, Tensor], run: Pass) -> dict[str, Tensor]:
        place, said = f"steps.{self.number}", self.case.reference["steps"][self.number]
        for level, raw in enumerate([*run.output, *run.output.aux][: len(said["raw"])]):
            self.compare(f"{place}.raw.{level}", raw)
        items = items_of(terms)
        close(self.case, f"{place}.items", items, said["items_box_obj_cls_total"], rtol=EXACT)
        close(self.case, f"{place}.loss", items[3] * len(run.output[0]), said["loss_times_batch"], rtol=EXACT)
        return terms

    def after_step(self, model: nn.Module, progress: float) -> None:
        place, named = f"steps.{self.number}", dict(model.named_parameters())
        self.inside(f"{place}.grad", {name: p.grad for name, p in named.items() if p.grad is not None})
        total = torch.stack([p.grad.norm() for p in named.values() if p.grad is not None]).norm()
        close(self.case, f"{place}.norm", float(total), at(self.case.reference, f"{place}.grad_norm_total"), rtol=EXACT)
        self.inside(f"{place}.param_after", named)
        self.inside(f"{place}.running", model.state_dict())

    def averaged(self, model: nn.Module) -> dict[str, float]:
        """Of the moving average, once the step is over."""
        for name in ("ema_after", "ema_running"):
            self.inside(f"steps.{self.number}.{name}", model.state_dict())
        self.number += 1
        return {}

    def inside(self, place: str, tensors: Mapping[str, Tensor]) -> None:
        for name in at(self.case.reference, place) or {}:
            self.compare(f"{place}.{name}", tensors[name])

    def compare(self, place: str, tensor: Tensor) -> None:
        std = (at(self.case.reference, place) or {}).get("std", 1.0)
        self.case.compare(place, tensor, atol=EXACT * min(std, 1.0) + 1e-12)


def steps(case: Case) -> None:
    """Training steps on a fixed batch: maps, loss, gradients, weights, statistics of batch norm, the moving average."""
    reference = case.reference
    form, variant = reference["cfg"].split("/")
    model: Any = featherweight.create("yolov7", variant=variant.replace("-", "_"), form=form)
    load_stand_ins(model, reference["recipe"])
    kind = PUBLISHED[reference["hyp_file"].rsplit(".", 1)[-1]]
    task = Detection(model.head.num_classes, gains=kind.gains, image_size=reference["imgsz_for_obj_gain"])
    lr, bias_lr = reference["lr"][0], reference["lr"][2]
    sgd = optim.sgd(lr, weight_decay=reference["weight_decay_scaled"], momentum=0.937, nesterov=True, decay="yolo")
    found = [len(group["params"]) for group in sgd.build(model).param_groups]
    if found != list(reference["group_sizes"].values()):
        case.wrong.append(f"group_sizes: {found}, not {reference['group_sizes']}")
    close(case, "ema_decay", [Ramp()(n + 1) for n in range(len(reference["ema_decay"]))], reference["ema_decay"])
    image = (fill.normal(reference["image"]["fill.normal"], reference["shape"]).double() * 0.25 + 0.5).clamp(0, 1)
    batch = {"image": image, "targets": torch.tensor(reference["targets"], dtype=torch.float32).double()}
    setting = Setting(1.0, bias_lr / lr, reference["momentum"][0])
    options: dict[str, Any] = {"clip": None, "reduction": "sum", "ema": Ramp(), "epochs": len(reference["steps"])}
    spy = Spy(case)
    fit(
        model.double(),
        One(batch),
        task,
        methods=[spy],
        optimizer=sgd,
        schedule=lambda progress: setting,
        validate=spy.averaged,
        **options,
    )


def load_stand_ins(model: nn.Module, recipe: Mapping[str, Any]) -> None:
    """The stand-in weights that a golden file's recipe describes."""
    state = fill.fill_(model.state_dict(), keep=tuple(recipe["keep"]))
    head = recipe["head"]
    for name, tensor in state.items():
        if tensor.ndim == 4 and name.endswith(".weight") and not name.startswith(head):
            tensor *= recipe["gain"]
        elif recipe.get("im_plus_one") and name.startswith(f"{head}im."):
            tensor += 1.0
    model.load_state_dict(state)
