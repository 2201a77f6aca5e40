# SPDX-License-Identifier: Apache-2.0
"""Options that calls of the transformers library bring along and that mean nothing here, or mean something said else.

They are checked and then taken away, so that a script which gives them runs as it stands; what cannot be granted is
refused in one line.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from featherweight.errors import OptionError

CALLS = ("num_workers", "timeout")  # inputs are prepared in this process; nothing is downloaded
TYPES = ("dtype", "torch_dtype")
MAKING = (*CALLS, "framework", "trust_remote_code", "use_fast", *TYPES)
PROCESSORS = ("image_processor", "feature_extractor")


def of_call(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a call without those that change nothing. OptionError for a value that none of them takes."""
    workers, seconds = options.get("num_workers"), options.get("timeout")
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 0):
        raise OptionError("num_workers", f"must be 0 or more, not {workers!r}")
    if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or seconds <= 0):
        raise OptionError("timeout", f"must be more than 0 seconds, not {seconds!r}")
    return {key: value for key, value in options.items() if key not in CALLS}


def of_pipeline(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a pipeline without those that change nothing; an image processor becomes `preprocess`."""
    rest = {key: value for key, value in of_call(options).items() if key not in (*MAKING, *PROCESSORS)}
    if options.get("framework") not in (None, "pt"):
        raise OptionError("framework", f"{options['framework']!r} is not run here; there are 'pt' and exported files")
    if options.get("trust_remote_code"):
        raise OptionError("trust_remote_code", "no code out of a model's folder is run; leave it out")
    for name in TYPES:
        if options.get(name) not in (None, "auto"):
            text = "a model answers in the type of its weights; give the module in that type, or precision for a file"
            raise OptionError(name, text)
    for name in PROCESSORS:
        if options.get(name) is not None:
            if rest.get("preprocess") is not None:
                raise OptionError(name, "and preprocess say the same; give one of the two")
            rest["preprocess"] = _prepared_by(options[name])
    return rest


def _prepared_by(processor: Any) -> Any:
    """What prepares as this image processor or its folder says: of a detector the processor itself."""
    from featherweight.models.pretrained_detectors import FINDS
    from featherweight.models.pretrained_images import described, processor_in

    found = processor_in(Path(processor)) if isinstance(processor, (str, os.PathLike)) else processor
    return found if hasattr(found, FINDS) else described(found)
