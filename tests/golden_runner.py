# SPDX-License-Identifier: Apache-2.0
"""Every number of golden files against our models: `make golden DIR=path`, one line a file, exit 1 if one disagrees.

A file names a family and its configuration, and a method with its options. The model is made by `featherweight.create`;
stand-in weights (`fill`) under the official names go through a `.pth` file and the checkpoint reader; then each digest
of the file is compared with what our model computes there. A digest that nothing is compared with is a failure too.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fill
import torch
from torch import Tensor, nn

import featherweight
from featherweight import official, official_names
from featherweight.errors import FeatherweightError

ATOL = 2e-5  # right and wrong differ by 2.8e-4 and more, two right ones by 3e-6
DIGEST = {"shape", "at", "values", "l2"}


@dataclass
class Case:
    """One file while it is checked: what was found wrong, and which digests were looked at."""

    name: str
    reference: dict[str, Any]
    wrong: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def compare(self, place: str, found: Tensor, *, atol: float = ATOL) -> None:
        """A tensor of ours against the digest at a dotted place of the file."""
        digest = at(self.reference, place)
        self.seen.add(place)
        if list(found.shape) != digest["shape"]:
            self.wrong.append(f"{place}: shape {list(found.shape)}, not {digest['shape']}")
            return
        flat = found.detach().double().flatten()
        values = torch.tensor(digest["values"], dtype=torch.float64)
        off = float((flat[digest["at"]] - values).abs().max())
        size = flat.numel() ** 0.5
        norm = abs(float(flat.norm()) - digest["l2"]) / size
        if not (off <= atol and norm <= atol):  # NaN is wrong too
            self.wrong.append(f"{place}: off by {off:.1e}, norm by {norm:.1e} (allowed {atol:.0e})")

    def equal(self, place: str, found: Any) -> None:
        """A plain value of ours against the one at this place, where the file has one."""
        wanted = at(self.reference, place)
        if wanted is not None and found != wanted:
            self.wrong.append(f"{place}: {str(found)[:80]}, not {str(wanted)[:80]}")

    def inside(self, place: str, names: Mapping[str, Tensor]) -> None:
        """Those of the tensors that have a digest below this place."""
        for name in at(self.reference, place) or {}:
            if name in names and f"{place}.{name}" not in self.seen:
                self.compare(f"{place}.{name}", names[name])


def at(tree: Any, place: str) -> Any:
    """The value at a dotted place, or None; a part of the place may hold a dot of its own (a rate such as 0.7)."""
    parts = place.split(".")
    for end in range(len(parts), 0, -1):
        key = ".".join(parts[:end])
        step = tree.get(key) if isinstance(tree, dict) else None
        if isinstance(tree, list) and end == 1 and key.isdigit() and int(key) < len(tree):
            step = tree[int(key)]
        if step is not None:
            return step if end == len(parts) else at(step, ".".join(parts[end:]))
    return None


def digests(tree: Any, place: str = "") -> Iterator[str]:
    """The places of all digests."""
    if isinstance(tree, dict) and tree.keys() >= DIGEST:
        yield place
    elif isinstance(tree, (dict, list)):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for key, value in items:
            yield from digests(value, f"{place}.{key}".lstrip("."))


@contextmanager
def watched(model: nn.Module, places: Mapping[str, str]) -> Iterator[dict[str, Tensor]]:
    """While inside, what the modules at these official paths return is kept under the given names."""
    seen: dict[str, Tensor] = {}
    handles = []
    for name, place in places.items():
        try:
            module = model.get_submodule(place)
        except AttributeError:
            continue

        def keep(_module: nn.Module, _args: Any, output: Any, name: str = name) -> None:
            seen[name] = output

        handles.append(module.register_forward_hook(keep))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def stand_in(
    case: Case, model: nn.Module, *, scaled: tuple[str, ...] = (), **rules: Callable[..., Tensor]
) -> nn.Module:
    """A copy with the file's stand-in weights, through a file in the official layout and the reader.

    scaled: entries that are a thousandth. rules: part of a name -> (name, shape) -> values in place of the usual ones.
    """
    keep = case.reference.get("keep", ())
    names = official_names.of(model)
    own = model.state_dict()
    aliases = dict(case.reference.get("aliases", ()))
    state: dict[str, Tensor] = {}
    for key, shape, dtype in case.reference["state_dict"]:
        prefix = next((alias for alias in aliases if key.startswith(f"{alias}.")), None)
        first = key if prefix is None else aliases[prefix] + key.removeprefix(prefix)
        rule = next((make for part, make in rules.items() if part in key), None)
        if first in state:
            state[key] = state[first]
        elif rule is not None:
            state[key] = rule(key, shape)
        elif any(part in key for part in keep):
            state[key] = own[official_names.ours(key, names)].clone()
        else:
            state[key] = fill.tensor(key, shape, getattr(torch, dtype))
        if key in scaled:
            state[key] = state[key] * 1e-3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "official.pth"
        torch.save({"model": state}, path)
        return official.load(model, path, tell=lambda text: case.wrong.append(f"adapted: {text}"))


def image(case: Case) -> Tensor:
    source = case.reference["input"]
    return fill.image(source["image_name"], source["shape"])


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@torch.no_grad()
def vit(case: Case, model: nn.Module) -> None:
    """DeiT and LV-ViT without a method."""
    places = {
        "patch_embed": "patch_embed", "after_block0": "blocks.0", "tokens_after_norm": "norm",
        "head_cls": "head", "head_dist": "head_dist", "head_aux": "aux_head",
    }  # fmt: skip
    loaded = stand_in(case, model).eval()
    with watched(loaded, places) as seen:
        logits = loaded(image(case))
    tokens = seen["tokens_after_norm"]
    case.inside(
        "outputs",
        {**seen, "logits": logits, "eval_average": logits, "features_cls": tokens[:, 0], "features_dist": tokens[:, 1]},
    )
    probe = case.reference.get("eps_probe")
    if probe:
        scaled = stand_in(case, model, scaled=tuple(probe["scaled_by_1e-3"])).eval()
        case.compare("eps_probe.logits", scaled(image(case)))


FAMILIES: dict[str, Callable[[Case, nn.Module], None]] = {"vit": vit}


def check(path: Path) -> Case | None:
    """A golden file against our model; None for a file that is not about one."""
    reference = json.loads(path.read_text())
    if "family" not in reference:
        return None
    case = Case(reference.get("name", path.stem), reference)
    family, method = reference["family"], (reference.get("method") or {}).get("name", "")
    handler = FAMILIES.get(f"{family}+{method}" if method else family)
    if handler is None:
        case.wrong.append(f"no {method or family} for the family {family} here")
        return case
    try:
        model = featherweight.create(family, **reference["config"])
        handler(case, model)
    except (FeatherweightError, LookupError, ValueError, TypeError, RuntimeError) as error:
        case.wrong.append(f"{type(error).__name__}: {error}")
        return case
    case.wrong += [f"{place}: compared with nothing" for place in digests(reference) if place not in case.seen]
    return case


def main(folder: str) -> int:
    """One line for each golden file below a folder; 1 if one fails or there is none."""
    failed = done = 0
    for path in sorted(Path(folder).rglob("*.json")):
        start = time.perf_counter()
        case = check(path)
        if case is None:
            continue
        done += 1
        failed += bool(case.wrong)
        result = "FAILED" if case.wrong else "ok"
        said = "; ".join(case.wrong[:4]) or f"{len(case.seen)} digests"
        print(f"{result:6} {path.name}: {said} ({time.perf_counter() - start:.1f} s)", flush=True)
    print(f"{done - failed} of {done} golden files agree")
    return 1 if failed or not done else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: make golden DIR=path")
    sys.exit(main(sys.argv[1]))
