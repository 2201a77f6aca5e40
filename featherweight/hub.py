# SPDX-License-Identifier: Apache-2.0
"""Models of the Hugging Face hub: fetched when a pipeline is asked for one by name, pushed by explicit command.

Nothing of it happens by itself: a name of the hub is looked up only where a task was asked for and no such folder is
here, and only weights as .safetensors, configurations and tokenizers are taken. Needs huggingface_hub.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from featherweight.errors import FeatherweightError, InputError, OptionError, missing_extra, shown
from featherweight.runtime.record import RECORD, WEIGHTS
from featherweight.sources import EXPORTS, WEIGHT_FILES

NAME = re.compile(r"\w[\w.-]{0,95}(/\w[\w.-]{0,95})?")
WANTED = ("*.json", "*.safetensors", "vocab.txt", "merges.txt", "*.model")
MORE = ("README.md", "*.onnx", "*.xml", "openvino_model.bin", "*.fwz")  # the card and files that were exported


def is_name(model: object) -> bool:
    """Whether this could be a name of the hub and is no path."""
    if not isinstance(model, str) or NAME.fullmatch(model) is None or os.path.lexists(model):
        return False
    return Path(model).suffix not in (*EXPORTS, *WEIGHT_FILES) and not model.startswith("runs/")


def fetched(name: str, *, revision: str | None = None, token: str | bool | None = None) -> Path:
    """The folder of a model of the hub, from its cache if it is there; FeatherweightError where it cannot be had."""
    hub = _library(f"the hub's model {name}")
    asked: dict[str, Any] = {"repo_id": name, "revision": revision, "token": token, "allow_patterns": list(WANTED)}
    try:
        return Path(hub.snapshot_download(**asked, local_files_only=True))
    except (OSError, ValueError):
        pass  # not in the cache; now over the net
    return Path(_asked(lambda: hub.snapshot_download(**asked), f"{shown(name)} is no folder here"))


def get(name: str, *, folder: str | os.PathLike[str] = "models", revision: str | None = None) -> Path:
    """Download a model of the hub, OWNER/NAME, with its tokenizer and card; gives the folder, `folder`/NAME.

    OptionError for what is no such name, FeatherweightError where the hub cannot be reached or refuses.
    """
    name = name.removeprefix("hf:")
    if not NAME.fullmatch(name) or "/" not in name:
        raise OptionError("name", f"{shown(name)!r} is no name of the hub; give OWNER/NAME")
    hub = _library("getting a model from the hub")
    place = Path(folder) / name.rpartition("/")[2]
    asked: dict[str, Any] = {"repo_id": name, "revision": revision, "local_dir": str(place)}
    _asked(lambda: hub.snapshot_download(**asked, allow_patterns=[*WANTED, *MORE]), f"{shown(name)} was not fetched")
    return place


def push(
    folder: str | os.PathLike[str], name: str, *, private: bool = False, token: str | None = None, message: str = ""
) -> str:
    """Upload a model's folder to the hub as `name` (owner/name) and give its address.

    Only the files of a model go: record, weights, configuration, tokenizer, exported files and card. token: where left
    out, the one that `hf auth login` keeps. OptionError for a name or folder that is none, FeatherweightError where the
    hub cannot be reached or does not take it.
    """
    folder = Path(folder)
    if not NAME.fullmatch(name) or "/" not in name:
        raise OptionError("name", f"{shown(name)!r} is no name of the hub; give OWNER/NAME")
    if not folder.is_dir() or not ((folder / RECORD).is_file() or any(folder.glob("*.safetensors"))):
        raise InputError(folder, "not_an_artifact", f"is no model's folder: it has neither {RECORD} nor {WEIGHTS}")
    hub = _library("pushing to the hub")
    api = hub.HfApi(token=token)
    what = f"{shown(folder)} was not pushed"
    _asked(lambda: api.create_repo(name, private=private, exist_ok=True), what)
    given = {"repo_id": name, "folder_path": str(folder), "allow_patterns": [*WANTED, *MORE]}
    done = _asked(lambda: api.upload_folder(**given, commit_message=message or "Model of featherweight"), what)
    return str(getattr(done, "repo_url", None) or f"https://huggingface.co/{name}")


def _library(what: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise missing_extra(what, "huggingface_hub", "text") from None
    return huggingface_hub


def _asked(call: Callable[[], Any], what: str) -> Any:
    """What a call over the net gives; its errors have many classes, all below these."""
    try:
        return call()
    except (OSError, ValueError, RuntimeError) as error:
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise FeatherweightError(f"{what}, and the hub cannot be reached or refuses: {said}") from None
