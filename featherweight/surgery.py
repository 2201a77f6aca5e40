# SPDX-License-Identifier: Apache-2.0
"""Copy a model and change it: the only place where a model's structure changes.

A change is an `Edit`, plain data: "at `path`, replace the module by kind(module, **spec)". `apply` makes the edits on a
copy and writes them down on it, so that the same list replayed on a fresh base gives the same structure. Edits stay in
the deployed model; what exists for training only is a method's scaffold and is not recorded.

Not covered: in-place surgery (two models exist for a moment), and edits that need data. A kind gets numbers only
through the weights that are loaded after the replay.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor, nn

from .errors import OptionError, closest

JSON = Any
M = TypeVar("M", bound=nn.Module)
_KINDS: dict[str, Callable[..., nn.Module]] = {}
_RECORD = "_featherweight_edits"
_REPLAYING = ContextVar("_REPLAYING", default=False)


@dataclass(frozen=True)
class Edit:
    """At `path` ("" is the model itself), replace the module m by kind(m, **spec). JSON-able."""

    path: str
    kind: str
    spec: Mapping[str, JSON] = field(default_factory=dict)

    def to_dict(self) -> dict[str, JSON]:
        return {"path": self.path, "kind": self.kind, "spec": dict(self.spec)}

    @classmethod
    def from_dict(cls, data: Mapping[str, JSON]) -> Edit:
        """The edit that `to_dict` wrote; an OptionError names what is missing or too much."""
        if not isinstance(data, Mapping) or set(data) != {"path", "kind", "spec"}:
            raise OptionError("edits", "an edit has exactly the keys path, kind and spec")
        path, kind, spec = data["path"], data["kind"], data["spec"]
        if not (isinstance(path, str) and isinstance(kind, str) and isinstance(spec, Mapping)):
            raise OptionError("edits", "an edit's path and kind are text, its spec is a mapping")
        return cls(path, kind, dict(spec))


def edit_kind(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Register build(module, **spec) -> module by its name. It may change the module it gets: `apply` copied it."""
    _KINDS[build.__name__] = build
    return build


def known_kinds() -> tuple[str, ...]:
    return tuple(sorted(_KINDS))


def apply(model: M, edits: Iterable[Edit]) -> M:
    """A copy of the model with the edits made, in order, and written down. The model given is untouched.

    Raises LookupError for a path that is not there, OptionError for an unknown kind.
    """
    edits = tuple(edits)
    new: nn.Module = copy.deepcopy(model)
    for edit in edits:
        if edit.kind not in _KINDS:
            raise OptionError(
                f"edit at {edit.path!r}",
                f"no kind {edit.kind!r}; {closest(edit.kind, _KINDS)}Known: {', '.join(known_kinds())}",
            )
        old = submodule(new, edit.path)
        known, training = set(old.modules()), old.training
        made = _KINDS[edit.kind](old, **edit.spec)
        for module in made.modules():
            if module not in known:  # what is new is in the mode of what it stands in for, not in PyTorch's default
                module.training = training
        new = made if edit.path == "" else put(new, edit.path, made)
    record(new, edits_of(model) + edits)
    return new  # type: ignore[return-value]


@contextmanager
def replaying() -> Iterator[None]:
    """While inside, edits only make the structure: the numbers follow from a file."""
    before = _REPLAYING.set(True)
    try:
        yield
    finally:
        _REPLAYING.reset(before)


def has_values(weight: Tensor) -> bool:
    """Whether an edit has to work out numbers from this weight: not of an outline, nor where a file has them."""
    return not weight.is_meta and not _REPLAYING.get()


def edits_of(model: nn.Module) -> tuple[Edit, ...]:
    """What `apply` did to this model so far, oldest first."""
    return getattr(model, _RECORD, ())


def record(model: nn.Module, edits: Iterable[Edit]) -> None:
    """Write the list down on a model that already has this structure."""
    object.__setattr__(model, _RECORD, tuple(edits))


def submodule(model: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path, or a LookupError that names the nearest ones."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        names = [name for name, _ in model.named_modules()]
        raise LookupError(f"{type(model).__name__} has no module {path!r}. {closest(path, names)}".strip()) from None


def put(model: M, path: str, module: nn.Module) -> M:
    """Set the module at `path` of this very model (not of a copy); returns the model."""
    parent, _, name = path.rpartition(".")
    setattr(submodule(model, parent), name, module)
    return model


def all_of(model: nn.Module, cls: type[M]) -> dict[str, M]:
    """Path -> module for every module of the class."""
    return {name: module for name, module in model.named_modules() if isinstance(module, cls)}


def find(model: nn.Module, cls: type[M]) -> M:
    """The one module of that class; LookupError says how many there are instead."""
    found = list(all_of(model, cls).values())
    if len(found) != 1:
        raise LookupError(f"{type(model).__name__} has {len(found)} modules of class {cls.__name__}, not one")
    return found[0]


class Aside:
    """What a module tells its loss, this step only. Copies and pickles start empty: it never travels with the model."""

    def __init__(self) -> None:
        object.__setattr__(self, "_items", {})

    def __setattr__(self, name: str, value: Any) -> None:
        self._items[name] = value

    def __getattr__(self, name: str) -> Any:
        try:
            return object.__getattribute__(self, "_items")[name]
        except (KeyError, AttributeError):
            raise AttributeError(f"nothing named {name!r} was put aside in this step") from None

    def __contains__(self, name: str) -> bool:
        return name in self._items

    def take(self, name: str) -> Any:
        """The value, which is then forgotten."""
        return self._items.pop(name)

    def clear(self) -> None:
        self._items.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> Aside:
        new = memo[id(self)] = Aside()
        return new

    def __reduce__(self) -> tuple[Any, ...]:
        return Aside, ()


@contextmanager
def unheard(model: nn.Module) -> Iterator[None]:
    """While inside, modules may put aside what they want; afterwards what they had put aside before is there again."""
    asides = [item for module in model.modules() for item in vars(module).values() if isinstance(item, Aside)]
    before = [dict(aside._items) for aside in asides]
    try:
        yield
    finally:
        for aside, items in zip(asides, before, strict=True):
            aside.clear()
            aside._items.update(items)


class Tap(nn.Module):
    """A scaffold around a module: passes its output on and puts it aside."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.aside = Aside()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.module(*args, **kwargs)
        self.aside.output = output
        return output


def tap(model: M, path: str) -> M:
    """A copy whose module at `path` is tapped; read `submodule(model, path).aside.output` after a forward pass."""
    new = copy.deepcopy(model)
    record(new, edits_of(model))
    return put(new, path, Tap(submodule(new, path)))


def untap(model: M) -> M:
    """A copy without taps."""
    new = copy.deepcopy(model)
    record(new, edits_of(model))
    for path, module in all_of(new, Tap).items():
        put(new, path, module.module)
    return new


@contextmanager
def watching(model: nn.Module, path: str) -> Iterator[list[Tensor]]:
    """While inside, outputs of the module at `path` are appended to the list. For teachers, which are not copied."""
    seen: list[Tensor] = []
    handle = submodule(model, path).register_forward_hook(lambda _module, _args, output: seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()
