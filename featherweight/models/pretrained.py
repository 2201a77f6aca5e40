# SPDX-License-Identifier: Apache-2.0
"""Models of the transformers library: those of texts found in a folder, text and image classifiers built from a base.

A base is {"name": "transformers:BertForSequenceClassification", "config": {...}}. Families are names of a fixed table,
numbers are bounded, and no code of a folder is run. Not here: running them (`runners_text`) and exporting them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..doors import json as strict_json
from ..errors import InputError, OptionError, closest, missing_extra, shown
from ..runtime.tokens import METADATA, Tokens

PREFIX = "transformers:"
FAMILIES = (
    "Albert", "Bert", "Camembert", "DebertaV2", "DistilBert", "Electra", "ErnieM", "MobileBert", "ModernBert", "MPNet",
    "Roberta", "RoFormer", "SqueezeBert", "XLMRoberta",
)  # fmt: skip
HEADS = {"SequenceClassification": "text-classification", "QuestionAnswering": "question-answering"}
PICTURES = tuple(
    f"{family}ForImageClassification"
    for family in (
        "Beit", "ConvNext", "ConvNextV2", "DeiT", "Dinov2", "EfficientNet", "MobileNetV1", "MobileNetV2", "MobileViT",
        "PoolFormer", "Pvt", "PvtV2", "RegNet", "ResNet", "Swin", "Swinv2", "ViT",
    )
)  # fmt: skip
SOUNDS = ("Wav2Vec2", "Hubert", "WavLM", "UniSpeech", "SEW", "Data2VecAudio", "Whisper")  # their sequences are no texts
CONFIG = "config.json"
REFUSED = {"auto_map", "quantization_config", "attn_implementation", "experts_implementation"}  # may name code
WIDEST, DEEPEST = 1_000_000, 1000  # any number of a config, and a number of layers
DROPPED = {"architectures", "transformers_version", "dtype", "torch_dtype", "_name_or_path", "id2label", "label2id"}
_TOKENS = "_featherweight_tokens"


def task_of(model: object) -> str | None:
    """The task of a text model of the transformers library, by its class; None for every other module."""
    if not type(model).__module__.startswith("transformers.models."):
        return None
    return task_named(type(model).__name__)


def task_named(name: str) -> str | None:
    """The task of a class, of those families whose sequences are texts."""
    found = re.fullmatch(r"(\w+)For(\w+)", name)
    return None if found is None or found[1].startswith(SOUNDS) else HEADS.get(found[2])


def task_in(folder: Path) -> str | None:
    """The task of the text model in a folder of the transformers library; None where none is."""
    if not (folder / CONFIG).is_file():
        return None
    config = strict_json.read(folder / CONFIG, allow_nan=True)
    names = config.get("architectures") if isinstance(config, dict) else None
    tasks = [task_named(str(name)) for name in names or ()]
    return tasks[0] if tasks else None


def load(folder: Path, *, task: str) -> nn.Module:
    """The model in a folder of the transformers library, in evaluation mode; safetensors only, no code is run."""
    transformers = library("a folder of transformers")
    made = {label: getattr(transformers, f"AutoModelFor{head}") for head, label in HEADS.items()}[task]
    if not any(folder.glob("*.safetensors")):
        text = "has no weights as .safetensors; pickled ones are not read: save it again with transformers"
        raise InputError(folder, "missing", text)
    try:
        with quiet(transformers):
            model = made.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype="auto"
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(folder, "corrupt", f"transformers cannot load it: {gist(error)}") from None
    return model.eval()  # type: ignore[no-any-return]


def with_head(folder: Path, *, task: str, classes: Sequence[str] = ()) -> nn.Module:
    """The encoder in a folder with a new head for the task; classes: of a classifier. InputError where it has none."""
    transformers = library("a folder of transformers")
    label = {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}
    head = next(head for head, its in HEADS.items() if its == task)
    kind = getattr(transformers, f"AutoModelFor{head}")
    known: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    verbose = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # it would warn of the new head
    try:
        with quiet(transformers):
            config = transformers.AutoConfig.from_pretrained(str(folder), **known, **(label if classes else {}))
            known |= {"use_safetensors": True, "ignore_mismatched_sizes": True}  # of a head for other classes
            made: nn.Module = kind.from_pretrained(str(folder), config=config, **known)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(folder, "corrupt", f"transformers cannot load it: {gist(error)}") from None
    finally:
        transformers.logging.set_verbosity(verbose)
    if not _in_table(type(made).__name__):
        raise InputError(folder, "unknown_name", f"{type(made).__name__} is none of the known: {', '.join(FAMILIES)}")
    return made.eval()


def base_of(model: nn.Module) -> dict[str, Any] | None:
    """What builds this text model again; None for a class that is not in the table."""
    name = type(model).__name__
    if not type(model).__module__.startswith("transformers.models.") or not _in_table(name):
        return None
    config = model.config.to_dict()  # type: ignore[union-attr, operator]
    kept = {key: value for key, value in config.items() if key not in DROPPED and not key.startswith("_")}
    labels = model.config.id2label  # type: ignore[union-attr]
    kept["id2label"] = {str(i): str(labels[i]) for i in range(len(labels))}  # type: ignore[arg-type, index]
    return {"name": PREFIX + name, "config": _plain(kept)}


def build(name: str, config: Mapping[str, Any]) -> nn.Module:
    """The untouched model of a base, with random weights. OptionError for a name or number that is none of ours."""
    kind = name.removeprefix(PREFIX)
    if not _in_table(kind):
        families = ", ".join(FAMILIES)
        text = (
            f"no {shown(kind)!r}; {closest(kind, _classes())}Known: one of {families} with For{' or For'.join(HEADS)}"
        )
        raise OptionError("base.name", text)
    _check(config, name)
    transformers = library(f"the model {name}")
    classes = getattr(transformers, kind, None)
    if classes is None:
        raise OptionError("base.name", f"the installed transformers has no {kind}; update it")
    labels = {int(i): label for i, label in dict(config.get("id2label") or {}).items()}
    given = {key: value for key, value in config.items() if key not in ("model_type", "id2label")}
    made = classes.config_class(**given, **({"id2label": labels, "label2id": _numbers(labels)} if labels else {}))
    model: nn.Module = classes(made)
    return model


def _numbers(labels: Mapping[int, str]) -> dict[str, int]:
    return {label: number for number, label in labels.items()}


def labels_of(model: nn.Module) -> tuple[str, ...]:
    """The class names of a classifier of the transformers library."""
    named = getattr(getattr(model, "config", None), "id2label", None) or {}
    return tuple(str(named[i]) for i in range(len(named))) if all(i in named for i in range(len(named))) else ()


def function_of(model: nn.Module) -> str | None:
    """What the library applies to the logits: sigmoid, softmax or none; None where it goes by their number."""
    kinds = {"multi_label_classification": "sigmoid", "single_label_classification": "softmax", "regression": "none"}
    return kinds.get(str(getattr(getattr(model, "config", None), "problem_type", None)))


def longest_of(model: nn.Module) -> int | None:
    """How many tokens the model has positions for."""
    config = getattr(model, "config", None)
    size = getattr(config, "max_position_embeddings", None)
    if not isinstance(size, int) or size < 1:
        return None
    padding = getattr(config, "pad_token_id", None)
    counts_from_padding = getattr(config, "model_type", "") in ("roberta", "xlm-roberta", "camembert", "mpnet")
    return size - (padding or 0) - 1 if counts_from_padding else size


def with_tokens(model: nn.Module, tokens: Tokens) -> nn.Module:
    """Let this very model carry its tokenizer, for when it is saved or exported. Copies of it carry it too."""
    object.__setattr__(model, _TOKENS, tokens.to_metadata())
    return model


def noted(model: nn.Module) -> dict[str, str]:
    """What a record's note says of the tokenizer that a model carries."""
    told = tokens_of(model)
    return {} if told is None else {METADATA: told}


def take_note(model: nn.Module, note: Mapping[str, Any]) -> None:
    """Let this very model carry the tokenizer of a note, where there is one."""
    if isinstance(told := note.get(METADATA), str):
        object.__setattr__(model, _TOKENS, told)


def tokens_of(model: nn.Module) -> str | None:
    """The tokenizer that a model carries, as `Tokens.to_metadata` writes it."""
    return getattr(model, _TOKENS, None)


@contextlib.contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """While inside, the library draws no bars of progress."""
    shows = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shows:
            transformers.utils.logging.enable_progress_bar()


def library(what: str) -> Any:
    try:
        import transformers
    except ImportError:
        raise missing_extra(what, "transformers", "text") from None
    return transformers


def _classes() -> list[str]:
    return [f"{family}For{head}" for family in FAMILIES for head in HEADS]


def _in_table(name: str) -> bool:
    return name in _classes() or name in PICTURES


def _check(config: Mapping[str, Any], where: str) -> None:
    """OptionError for what a config may not hold: code, private fields, numbers beyond all bounds."""
    for key, value in config.items():
        if key.startswith("_") or key in REFUSED:
            raise OptionError(f"{where}.{key}", "is not a field that a model is built from")
        layers = key in ("num_hidden_layers", "n_layers")
        if isinstance(value, (int, float)) and not -WIDEST <= value <= (DEEPEST if layers else WIDEST):
            raise OptionError(f"{where}.{key}", f"{value!r} is not in 1..{DEEPEST if layers else WIDEST}")


def _plain(value: Any) -> Any:
    """As JSON has it: texts as keys, lists all the way down."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def gist(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
