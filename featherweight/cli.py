# SPDX-License-Identifier: Apache-2.0
"""The command line: a thin face over the functions. Verbs are in cli_run, cli_use, cli_look; here tokens become a call.

`--flag value` and `key=value` mean the same, dotted keys are fields of the recipe. A mistake is one line with a
suggestion and exit code 2 before any work; a failed check or budget is 1, an interruption 130. Nothing heavy is
imported here.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter

from featherweight import (
    __version__,
    cli_convert,
    cli_explain,
    cli_fit,
    cli_look,
    cli_plot,
    cli_predict,
    cli_run,
    cli_serve,
    cli_text,
    cli_use,
    console,
)
from featherweight.console import Screen
from featherweight.errors import FeatherweightError, OptionError, closest, missing_extra

GLOBALS = {
    "-q": "quiet", "--quiet": "quiet", "-v": "verbose", "--verbose": "verbose", "--json": "json", "--debug": "debug",
}  # fmt: skip
EXTRAS = {  # module -> the extra that brings it
    "torch": "torch", "onnx": "onnx", "onnxscript": "onnx", "onnxruntime": "onnx", "openvino": "openvino",
    "timm": "timm", "torchvision": "timm", "transformers": "text", "tokenizers": "text", "huggingface_hub": "text",
    "pyarrow": "parquet", "sklearn": "demo", "skimage": "demo", "faster_coco_eval": "detection",
    "starlette": "serve", "uvicorn": "serve", "optuna": "search",
}  # fmt: skip
PAIR = re.compile(r"([A-Za-z][\w.\[\]-]*)=(.*)", re.DOTALL)
HELP = "Make a vision model small and fast, and prove it."
EVERYWHERE = "Everywhere: -q, -v, --json (stdout holds JSON alone), --debug, --version, NO_COLOR."


VERBS: tuple[Callable[..., int], ...] = (
    *cli_run.VERBS,
    *cli_fit.VERBS,
    *cli_predict.VERBS,
    *cli_use.VERBS,
    *cli_serve.VERBS,
    *cli_text.VERBS,
    *cli_convert.VERBS,
    *cli_plot.VERBS,
    *cli_explain.VERBS,
    *cli_look.VERBS,
)


def overview() -> str:
    """What `featherweight --help` says; written here because drawing it takes longer than everything else."""
    lines = [(verb.__name__.rstrip("_"), (verb.__doc__ or "").partition("\n")[0]) for verb in VERBS]
    verbs = "\n".join(f"  {name:11} {text}" for name, text in [*lines, ("data check", cli_look.check.__doc__)])
    usage = "Usage: featherweight VERB [MODEL] [--option value] [key=value]"
    return f"{usage}\n\n{HELP}\n\n{verbs}\n\n{EVERYWHERE}\nfeatherweight VERB --help tells the options of a verb."


def build() -> App:
    """The verbs and their options."""
    app = App(
        name="featherweight",
        help=HELP,
        version=__version__,
        help_epilogue=EVERYWHERE,
        help_format="plaintext",
        default_parameter=Parameter(negative=()),
        result_action="return_value",
        print_error=False,
        exit_on_error=False,
        suppress_keyboard_interrupt=False,
    )
    for number, verb in enumerate(VERBS):
        app.command(verb, name=verb.__name__.rstrip("_"), sort_key=number)
    app.command(cli_use.bench, name="benchmark", show=False)
    data = App(name="data", help="Data sets: check.", sort_key=99)
    data.command(cli_look.check, name="check")
    app.command(data)
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    tokens = list(sys.argv[1:] if argv is None else argv)
    screen = Screen()
    try:
        screen, tokens = _screen(tokens)
        if os.environ.get("RANK", "0") != "0":  # under torchrun the first process speaks for all
            screen.quiet, screen.json = True, False
        console.use(screen)
        _prepare(screen)
        if not tokens or tokens in (["--help"], ["-h"], ["help"]):
            print(overview())
            return 0
        app = build()
        return int(app(_rewritten(tokens, app)) or 0)
    except CycloptsError as error:
        error.verbose = False
        return _stopped(screen, _worded(error), 2, error)
    except FeatherweightError as error:
        return _stopped(screen, str(error), error.exit_code, error)
    except KeyboardInterrupt as error:
        return _stopped(screen, str(error) or "interrupted", getattr(error, "exit_code", 130), error)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (its closing at exit must not fail again)
        return 1
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            return _crashed(screen, error, tokens)
        return _stopped(screen, str(missing_extra("this command", str(error.name), extra)), 2, error)
    except Exception as error:  # noqa: BLE001  (the last door: what nobody foresaw becomes four lines and a file)
        return _crashed(screen, error, tokens)
    finally:
        screen.close()


def _screen(tokens: list[str]) -> tuple[Screen, list[str]]:
    """The options that every verb has, and the tokens without them."""
    found: dict[str, Any] = {}
    rest = []
    for token in tokens:
        pair = PAIR.fullmatch(token)
        name = GLOBALS.get(token) or (pair and GLOBALS.get(f"--{pair[1]}"))
        if not name:
            rest.append(token)
        elif pair and pair[2].lower() not in ("true", "false"):
            raise OptionError(token, "give true or false")
        else:
            found[name] = not pair or pair[2].lower() == "true"
    return Screen(**found), rest


def _prepare(screen: Screen) -> None:
    """As many threads as this process may use, printable output whatever the locale, warnings as lines."""
    if hasattr(os, "sched_getaffinity"):
        os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    screen.listen_to_warnings()


def _rewritten(tokens: list[str], app: App) -> list[str]:
    """`key=value` as `--key=value`; OptionError for a verb or option that does not exist."""
    verb, rest, command = [], list(tokens), app
    while rest and not rest[0].startswith("-") and rest[0] in (known := _verbs(command)):
        verb.append(rest.pop(0))
        command = command[verb[-1]]
    if verb in (["train"], ["demo"]) and rest and rest[0] in TASKS:
        rest[0] = f"--task={rest[0]}"
    known = _verbs(command)
    if known and rest and not rest[0].startswith("-"):
        place = f"command '{' '.join([*verb, rest[0]])}'"
        raise OptionError(f"unknown {place}", f"{closest(rest[0], known)}Known: {', '.join(known)}")
    if not verb or known or "--help" in rest or "-h" in rest:
        return [*verb, *rest]
    found = command.assemble_argument_collection()
    names = {name: argument.token_count()[0] for argument in found for name in argument.names}
    shown = [argument.names[0] for argument in found if argument.names[0].startswith("-")]
    done: list[str] = []
    taken = False
    for number, token in enumerate(rest):
        if token == "--":
            return [*verb, *done, *rest[number:]]
        if taken:  # the value of the option before it
            done = [*done[:-1], f"{done[-1]}={token}"] if token == "-" else [*done, token]
            taken = False
            continue
        done.append(_token(token, names, shown, " ".join(verb)))
        taken = names.get(done[-1].replace("_", "-"), 0) > 0
    return [*verb, *done]


def _verbs(command: App) -> list[str]:
    """The names of an app's commands that are shown."""
    return [name for name in command if not name.startswith("-")]


def _token(token: str, names: dict[str, int], shown: list[str], verb: str) -> str:
    """An option as the parser takes it; OptionError for one that the verb does not have."""
    pair = PAIR.fullmatch(token)
    if pair and not os.path.exists(token):
        key, value = pair[1], pair[2]
        flag = f"--{key.replace('_', '-')}"
        if flag in names:
            return f"{flag}={value}"
        if "--set" in names and ("." in key or "[" in key or key in RECIPE_KEYS):
            return f"--set={token}"
        raise _unknown(flag, key, names, shown, verb)
    if re.match(r"--?[A-Za-z]", token):
        flag = token.partition("=")[0]
        if flag.replace("_", "-") not in names:
            raise _unknown(flag, flag, names, shown, verb)
    return token


RECIPE_KEYS = frozenset({"name", "task", "model", "teacher", "data", "seed", "output", "threads", "steps", "budget"})
TASKS = (
    "detect", "detection", "object-detection", "classify", "classification", "image-classification", "text",
    "text-classification", "sentiment-analysis", "question-answering",
)  # fmt: skip


def _unknown(option: str, typed: str, names: Iterable[str], shown: list[str], verb: str) -> OptionError:
    text = f"{closest(option, [*names, *GLOBALS])}{verb} knows: {', '.join([*shown, '--json', '--debug', '-q', '-v'])}"
    return OptionError(f"unknown option {typed}", text)


def _worded(error: CycloptsError) -> str:
    """Its message on one line."""
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        verb = " ".join(error.command_chain or ())
        return f"{verb}: {error.argument.names[0]} is missing; featherweight {verb} --help tells more"
    return " ".join(str(error).split())


def _stopped(screen: Screen, text: str, code: int, error: BaseException) -> int:
    if screen.debug:
        sys.excepthook(type(error), error, error.__traceback__)
    screen.problem(text)
    return code


def _crashed(screen: Screen, error: BaseException, tokens: Sequence[str]) -> int:
    if screen.debug:
        sys.excepthook(type(error), error, error.__traceback__)
    screen.crashed(error, " ".join(tokens))
    return 1
