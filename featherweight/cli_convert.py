# SPDX-License-Identifier: Apache-2.0
"""The verb that takes over weights from elsewhere: convert."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from featherweight import cli_options as options
from featherweight.console import current, line
from featherweight.errors import shown


def convert(
    file: Annotated[str, Parameter(help="weights as published: .pt, .pth or .safetensors; nothing in it is run")],
    folder: Annotated[str, Parameter(help="the model folder to write")],
    *,
    arch: options.Arch = None,
    form: Annotated[str | None, Parameter(help="deploy or training, for detectors; the file's unless given")] = None,
    fuse: Annotated[bool, Parameter(help="merge batch norms and the like, compared before it is written")] = False,
) -> int:
    """Write published weights as a folder: safetensors, class names, nothing to execute."""
    from featherweight import verbs

    screen = current()
    found = verbs.convert(file, folder, arch=arch, form=form, fused=fuse)
    for note in found["notes"]:
        screen.say(line("note", note))
    screen.answer(line("model", f"{found['model']}, {found['params']:,} parameters"))
    names = ", ".join(map(shown, found["classes"][:5]))
    if names:
        screen.say(line("classes", f"{names}{', ...' if len(found['classes']) > 5 else ''}"))
    screen.say(line("saved", shown(found["folder"])))
    screen.emit(found)
    screen.next(f"featherweight info {shown(folder)}", f"featherweight export {shown(folder)}")
    return 0


VERBS = (convert,)
