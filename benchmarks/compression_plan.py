# SPDX-License-Identifier: Apache-2.0
"""What the study of compression trains and what it asks: data for `compression_study`, in the order it is done."""

from __future__ import annotations

from collections.abc import Sequence

from study_plan import Row, Side, Trial

BASE = "study_compression"
PARTS = {  # the study's questions
    "distillation": "A small network alone and taught, all trained equally long",
    "pruning": "90 % of the weights zero, equally long fine-tuned",
    "symmetry": "Networks that turn with the picture, at equal parameters",
    "bits": "Fewer and fewer bits, trained with them",
    "structure": "Structured matrices in place of a transformer's weights, against a thinner one of about as many",
    "relations": "The transformer of the structured matrices, taught by another",
    "branches": "Branches while training, merged after, against the same network without",
    "averaging": "Weights averaged, against the same training alone",
    "tokens": "Fewer tokens, narrower, 8 bits: the composition of the device page, trained",
    "best": "Compositions: file, speed and accuracy against the dense network",
}
FASHION = ("best",)  # parts on Fashion-MNIST; the others are on CIFAR-10
DENSE = ("model.config.widths=[16, 32, 64]",)  # the network that is compressed, and the small one's teacher
WIDE = ("model.config.widths=[32, 64, 128]", "model.config.image_size=[28, 28]")  # that of Fashion-MNIST
VIT = ("model={name: vit_cifar}", "train.lr=2.0e-3")
SHORT_VIT = (*VIT, "train.epochs=4")
TUNED = "epochs: 3, lr: 1.0e-3"  # of what goes on from a trained network
CUT = f"{{prune_channels: {{macs: 0.35, {TUNED}}}}}"
DEIT = (*VIT, "model.config.embed_dim=96", "model.config.num_heads=6", "model.config.mlp_ratio=4")  # its proportions
_NARROW = "{prune: {mlp: 0.3, heads: 0.34, epochs: 1, lr: 4.0e-4}}"
_FEWER = "{tokens: {keep: 0.7, epochs: 2, lr: 4.0e-4}}"
MIDDLE = "pairs: {layer2: layer2, layer3: layer3}"


def _steps(*steps: str) -> str:
    return f"steps=[{', '.join(steps)}]"


def _taught(name: str, says: str, step: str) -> Trial:
    """The small network taught by the dense one."""
    return Trial(name, "distillation", says, BASE, (_steps("teacher", "load", step),), teacher="dense")


def _alone(name: str, says: str, step: str, part: str = "distillation") -> Trial:
    return Trial(name, part, says, BASE, (_steps("load", step),))


def _pruned(name: str, says: str, step: str) -> Trial:
    return Trial(name, "pruning", says, BASE, (*DENSE, _steps("load", f"{{sparsify: {{{step}}}}}")), start="dense")


def _turned(name: str, says: str, widths: str, group: str) -> Trial:
    steps = _steps("load", f"{{equivariant: {{group: {group}}}}}")
    return Trial(name, "symmetry", says, BASE, (f"model.config.widths={widths}", steps))


def _rounded(name: str, says: str, step: str) -> Trial:
    return Trial(name, "bits", says, BASE, (*DENSE, _steps("load", step)), start="dense")


def _matrix(name: str, says: str = "{} matrices", more: str = "") -> Trial:
    step = f"{{structured: {{matrix: {name}, keep: 0.25, restart: true{more}}}}}"
    return Trial(f"matrix_{name}", "structure", says.format(name), BASE, (*SHORT_VIT, _steps("load", step)))


def _composed(name: str, says: str, *steps: str) -> Trial:
    """Compressed, coded, exported and raced against the dense network in the same runtime."""
    whole = ("teacher", "load", *steps, "code", "export", "{measure: {batch: [1]}}")
    return Trial(name, "best", says, BASE, (*WIDE, _steps(*whole)), teacher="wide", start="wide")


def _further(name: str, says: str, step: str) -> Trial:
    """The dense network, trained on."""
    return Trial(name, "averaging", says, BASE, (*DENSE, _steps("load", step)), start="dense")


def _fewer(name: str, says: str, *steps: str) -> Trial:
    """The transformer with fewer tokens and narrower, in 8 bits, and on its way there; trained on for three epochs."""
    whole = ("teacher", "load", *steps)
    return Trial(name, "tokens", says, BASE, (*DEIT, _steps(*whole)), teacher="deit", start="deit")


TRIALS: tuple[Trial, ...] = (  # what others need comes first
    Trial("dense", "distillation", "the dense network, labels alone", BASE, (*DENSE, "steps=[baseline]")),
    Trial("small", "distillation", "the small network, labels alone", BASE, ("steps=[baseline]",)),
    _taught("hinton", "Hinton, T 4, alpha 0.9", "{distill: {how: logits, distance: soft, temperature: 4, alpha: 0.9}}"),
    _taught("dkd", "DKD", "dkd"),
    _taught("dkd_mild", "DKD, beta 1", "{dkd: {beta: 1}}"),
    _taught("fitnets", "FitNets", "{fitnets: {hint: layer2, guided: layer2}}"),
    _alone("one", "ONE, 3 branches", "{one: {at: [layer3, fc]}}"),
    _pruned("one_shot", "at once", f"sparsity: 0.9, how: one_shot, scope: layer, {TUNED}"),
    _pruned("iterative", "in 3 rounds",
            "sparsity: 0.9, how: iterative, scope: layer, rounds: 3, epochs: 1, lr: 1.0e-3"),
    _pruned("one_shot_lamp", "at once, shares by LAMP", f"sparsity: 0.9, how: one_shot, scope: lamp, {TUNED}"),
    _pruned("iterative_lamp", "in 3 rounds, shares by LAMP",
            "sparsity: 0.9, how: iterative, scope: lamp, rounds: 3, epochs: 1, lr: 1.0e-3"),
    _turned("p4", "p4, 2 times the channels", "[16, 32, 64]", "p4"),
    _turned("p4m", "p4m, 2.83 times the channels", "[24, 48, 88]", "p4m"),
    _turned("p4_open", "p4, 2 times the channels, each read by the classifier", "[16, 32, 64]", "p4, pool: none"),
    _turned("p4m_open", "p4m, 2.83 times the channels, each read by the classifier", "[24, 48, 88]", "p4m, pool: none"),
    Trial("crelu", "symmetry", "CReLU in the first half of the dense network", BASE,
          (*DENSE, _steps("load", "{crelu: {first: 0.5, restart: true}}"))),
    _rounded("qat8", "8 bits", f"{{qat: {{weights: int8, {TUNED}}}}}"),
    _rounded("qat4", "4-bit weights and activations", f"{{qat: {{weights: int4, activations: 4, {TUNED}}}}}"),
    _rounded("qat2", "2-bit weights", f"{{qat: {{weights: int2, {TUNED}}}}}"),
    _rounded("qat1", "1-bit weights", f"{{binarize: {{how: weights, {TUNED}}}}}"),
    Trial("vit", "structure", "the transformer with dense weights", BASE, (*SHORT_VIT, "steps=[baseline]")),
    Trial("vit_thin", "structure", "the transformer, thinner", BASE, (*SHORT_VIT, "model.config.mlp_ratio=1.65",
                                                                     "model.config.embed_dim=40", "steps=[baseline]")),
    *(_matrix(name) for name in ("monarch", "kronecker", "circulant", "butterfly", "toeplitz")),
    _matrix("acdc", "{} matrices, without ReLUs inside", ", relu: false"),
    Trial("deit", "tokens", "DeiT's proportions, dense", BASE, (*DEIT, "steps=[baseline]")),
    Trial("deit_longer", "tokens", "the same, trained on for as long", BASE,
          (*DEIT, _steps("load", "{train: {epochs: 3, lr: 4.0e-4}}")), start="deit"),
    _fewer("deit_fewer", "tokens 0.7, MLP and heads cut", _NARROW, _FEWER),
    _fewer("deit_fewer_int8", "tokens 0.7, MLP and heads cut, 8 bits", _NARROW, _FEWER, "quantize", "export",
           "{measure: {batch: [1, 16]}}"),
    *(_alone(f"branches_{block}", f"branches: {block}",
             f"{{overparameterize: {{block: {block}, gamma: 1.0, restart: true}}}}", "branches")
      for block in ("repvgg", "acb")),
    _further("longer", "trained on for 3 epochs", f"{{train: {{{TUNED}}}}}"),
    _further("soup", "the mean of 3, each trained on for an epoch", "{soup: {count: 3, epochs: 1, rates: [1.0e-3]}}"),
    _further("swa", "stochastic weight averaging, 3 epochs", f"{{swa: {{{TUNED}}}}}"),
    Trial("wide", "best", "the dense network, labels alone", BASE, (*WIDE, "steps=[baseline]")),
    _composed("best_int8", "channels, masks, 8 bits", CUT,
              f"{{sparsify: {{sparsity: 0.8, how: gradual, scope: layer, {TUNED}}}}}",
              "{qat: {weights: int8, epochs: 6, lr: 1.0e-3}}"),
    _taught("hard", "the teacher's decision", "{distill: {how: logits, distance: hard}}"),
    _taught("dist", "DIST", "dist"),
    _taught("attention", "attention transfer", f"{{attention_transfer: {{{MIDDLE}}}}}"),
    _taught("similarity", "similarity-preserving", "{similarity: {pairs: {layer3: layer3}}}"),
    _taught("rkd", "RKD", "{rkd: {pairs: {layer3: layer3}}}"),
    Trial("minilm", "relations", "MiniLM, taught by the transformer of DeiT's proportions", BASE,
          (*SHORT_VIT, _steps("teacher", "load", "minilm")), teacher="deit"),
    _alone("mutual", "mutual learning, 1 peer", "mutual"),
    _alone("mean_teacher", "its own moving average", "mean_teacher"),
    _pruned("gradual", "while training", f"sparsity: 0.9, how: gradual, scope: layer, {TUNED}"),
)  # fmt: skip

NOT_HERE = "no number at this scale"
ROWS: tuple[Row, ...] = (
    Row("distillation", "Hinton beats none", Side("hinton"), Side("small"), NOT_HERE),
    Row("distillation", "DKD beats none", Side("dkd"), Side("small"), NOT_HERE),
    Row("distillation", "DKD beats none, beta 1", Side("dkd_mild"), Side("small"), NOT_HERE),
    Row("distillation", "DKD beats Hinton", Side("dkd"), Side("hinton"), "ResNet-34 to 18, ImageNet: 71.70 over 70.66 "
        "(recalled from the paper, not checked again)"),
    Row("distillation", "DIST beats none", Side("dist"), Side("small"), NOT_HERE),
    Row("distillation", "FitNets beat none", Side("fitnets"), Side("small"), NOT_HERE),
    Row("distillation", "ONE beats none", Side("one"), Side("small"), "ResNet-32, CIFAR-10: 94.01 over 93.07"),
    Row("relations", "MiniLM beats the same transformer alone", Side("minilm"), Side("vit"), NOT_HERE),
    Row("pruning", "rounds beat one shot", Side("iterative"), Side("one_shot"), "AlexNet: 9 times over 5 times"),
    Row("pruning", "while training beats one shot", Side("gradual"), Side("one_shot"), NOT_HERE),
    Row("pruning", "rounds beat one shot, shares by LAMP", Side("iterative_lamp"), Side("one_shot_lamp"), NOT_HERE),
    Row("pruning", "LAMP beats the same share of each layer", Side("one_shot_lamp"), Side("one_shot"), NOT_HERE),
    Row("pruning", "90 % are not missed, 0.5 points allowed", Side("iterative"), Side("longer"), NOT_HERE, margin=0.5),
    Row("symmetry", "p4 beats plain", Side("p4"), Side("small"), "All-CNN, CIFAR-10: 91.16 over 90.56"),
    Row("symmetry", "p4m beats plain", Side("p4m"), Side("small"), "All-CNN, CIFAR-10: 92.41 over 90.56"),
    Row("symmetry", "p4 beats plain, its classifier reading every channel", Side("p4_open"), Side("small"), NOT_HERE),
    Row("symmetry", "p4m beats plain, its classifier reading every channel", Side("p4m_open"), Side("small"), NOT_HERE),
    Row("symmetry", "CReLU: as good as the dense network, 0.5 points allowed", Side("crelu"), Side("dense"), NOT_HERE,
        margin=0.5),
    *(Row("bits", f"{says}: as good as 32, 0.5 points allowed", Side(name), Side("longer"), NOT_HERE, margin=0.5)
      for name, says in (("qat8", "8 bits"), ("qat4", "4 bits"), ("qat2", "2 bits"), ("qat1", "1 bit"))),
    *(Row("structure", f"{name} beats a thinner transformer", Side(f"matrix_{name}"), Side("vit_thin"), NOT_HERE)
      for name in ("monarch", "kronecker", "circulant", "butterfly", "toeplitz", "acdc")),
    *(Row("branches", f"{block} beats plain", Side(f"branches_{block}"), Side("small"), NOT_HERE)
      for block in ("repvgg", "acb")),
    Row("averaging", "a soup beats its training alone", Side("soup"), Side("longer"), NOT_HERE),
    Row("averaging", "SWA beats its training alone", Side("swa"), Side("longer"), NOT_HERE),
    Row("tokens", "composed, 8 bits: as good as dense, 0.5 points allowed",
        Side("deit_fewer_int8"), Side("deit"), NOT_HERE, margin=0.5),
    Row("tokens", "composed, 8 bits: as good as dense trained on for as long, 0.5 points allowed",
        Side("deit_fewer_int8"), Side("deit_longer"), NOT_HERE, margin=0.5),
    Row("best", "as good as the dense network, 0.5 points allowed", Side("best_int8"), Side("wide"), NOT_HERE,
        margin=0.5),
)  # fmt: skip


def trial(name: str) -> Trial:
    """By its name. LookupError for one that is not planned."""
    for one in TRIALS:
        if one.name == name:
            return one
    raise LookupError(f"no trial {name!r}")


def chosen(only: Sequence[str]) -> tuple[Trial, ...]:
    """Trials by name or part, with all they need; all of them if nothing is named."""
    names = {one.name for one in TRIALS if not only or one.name in only or one.claim in only}
    unknown = [word for word in only if word not in PARTS and not any(word == one.name for one in TRIALS)]
    if unknown:
        known = ", ".join([*PARTS, *(one.name for one in TRIALS)])
        raise SystemExit(f"--only: no {unknown[0]!r}; known: {known}")
    while missing := {need for name in names for need in trial(name).needs()} - names:
        names |= missing
    return tuple(one for one in TRIALS if one.name in names)
