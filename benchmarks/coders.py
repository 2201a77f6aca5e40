# SPDX-License-Identifier: Apache-2.0
"""How small and how fast each coder is, on streams as networks have them, and how long a whole file takes to load.

    python benchmarks/coders.py            all, a few minutes, kept in docs/measured/coders.json
    python benchmarks/coders.py --write    and written into docs/studies/coders.md

Streams: rounded normal numbers at 7.3, 4.7 and 3.1 bits of entropy (8-, 5- and 4-bit codes of EfficientNet-Lite0 have
about these), five-bit codes of which 92 % are zero, and the gaps and values of the same. Times are those of one thread
of the processor, the best of several; MB/s are 10^6 symbols of one byte. `constriction`, where installed, is the
asymmetric numeral system of a well-kept library, for comparison.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from results import ROOT, Rows, fill, table

from featherweight.coding import opened, streams, write
from featherweight.coding.frequencies import entropy_bytes
from featherweight.coding.tensors import _gaps
from featherweight.doors.stored import Stored

RESULTS = ROOT / "docs" / "measured" / "coders.json"
PAGE = ROOT / "docs" / "studies" / "coders.md"
COUNT = 2_300_000
CODERS = ("raw", "deflate", "zstd", "huffman", "rans", "constriction")
Array = Any


def symbols() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    found = {}
    for bits, deviation in ((8, 37.0), (5, 6.3), (4, 2.05)):
        drawn = np.clip(np.round(rng.normal(128, deviation, COUNT)), 0, 255).astype(np.uint8)
        found[f"{bits}-bit codes"] = drawn
    sparse = np.where(rng.random(COUNT) < 0.92, 0, 1 + np.abs(np.round(rng.normal(0, 8, COUNT))).clip(0, 30))
    places = np.flatnonzero(sparse)
    found["92 % zeros, dense"] = sparse.astype(np.uint8)
    found["92 % zeros, gaps"] = _gaps(places)
    found["92 % zeros, values"] = sparse[places].astype(np.uint8)
    return found


def clock(call: Callable[[], Any], turns: int = 3) -> tuple[float, Any]:
    """The least seconds of the processor, and the answer."""
    best, answer = float("inf"), None
    for _ in range(turns):
        start = time.process_time()
        answer = call()
        best = min(best, time.process_time() - start)
    return best, answer


def measured(name: str, coder: str, stream: Array) -> dict[str, Any]:
    least = entropy_bytes(np.bincount(stream, minlength=256))
    if coder == "constriction":
        encode_s, decode_s, size = by_constriction(stream)
    else:
        encode_s, coded = clock(lambda: streams.encode(stream, coder), 2)
        decode_s, again = clock(lambda: streams.decode(coded))
        if not np.array_equal(again, stream):
            raise SystemExit(f"{coder} is not lossless on {name}")
        size = len(coded.data)
    speed = {"encode_mb_s": len(stream) / encode_s / 1e6, "decode_mb_s": len(stream) / max(decode_s, 1e-9) / 1e6}
    bits = {"bits": size * 8 / len(stream), "entropy_bits": least * 8 / len(stream), "over": size / least - 1}
    return {"stream": name, "coder": coder, **bits, **speed}


def by_constriction(stream: Array) -> tuple[float, float, int]:
    import constriction

    counts = np.bincount(stream, minlength=256).astype(np.float64)
    model = constriction.stream.model.Categorical((counts / counts.sum()).astype(np.float32), perfect=False)
    wide = stream.astype(np.int32)

    def encode() -> Any:
        coder = constriction.stream.stack.AnsCoder()
        coder.encode_reverse(wide, model)
        return coder.get_compressed()

    encode_s, data = clock(encode, 2)
    decode_s, again = clock(lambda: constriction.stream.stack.AnsCoder(data).decode(model, len(stream)), 2)
    if not np.array_equal(again, wide):
        raise SystemExit("constriction was not called as it should be")
    return encode_s, decode_s, data.nbytes


def whole_file(coder: str, form: str) -> dict[str, Any]:
    """A network of 25 M weights in 54 layers, as ResNet-50 has, written and read."""
    rng = np.random.default_rng(0)
    tensors = {}
    for layer in range(54):
        count = 463_000
        if form == "5-bit codes":
            values = np.clip(np.round(rng.normal(16, 5, count)), 0, 31).astype(np.uint8)
        else:
            book = rng.normal(size=32).astype(np.float32)
            values = np.where(rng.random(count) < 0.9, 0, book[rng.integers(0, 32, count)]).astype(np.float32)
        tensors[f"layer{layer}.weight"] = Stored.of(values)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.fwz")
        start = time.process_time()
        write(path, tensors, coder=coder)
        written = time.process_time() - start

        def load() -> Any:
            with opened(path) as file:
                return file.tensors()

        seconds, again = clock(load, 2)
        if any(bytes(again[name].data) != bytes(tensors[name].data) for name in tensors):
            raise SystemExit("the file is not lossless")
        return {"form": form, "coder": coder, "size_bytes": path.stat().st_size, "write_s": written, "load_s": seconds}


def blocks(rows: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The page's tables."""
    names = list(dict.fromkeys(row["stream"] for row in rows.values() if "stream" in row))
    body = []
    for coder in CODERS[1:]:
        found = {row["stream"]: row for row in rows.values() if row.get("coder") == coder and "stream" in row}
        long = [row for n, row in found.items() if "codes" in n or "dense" in n]  # of 2.3 M symbols
        if found:
            body.append([
                coder,
                *(f"{100 * found[n]['over']:.1f} %" if n in found else "–" for n in names),
                "–".join(f"{f(row['encode_mb_s'] for row in long):.0f}" for f in (min, max)),
                "–".join(f"{f(row['decode_mb_s'] for row in long):.0f}" for f in (min, max)),
            ])  # fmt: skip
    head = ["bytes over the entropy of", *names, "encode MB/s", "decode MB/s"]
    files = [row for row in rows.values() if "form" in row]
    whole = [[r["form"], r["coder"], f"{r['size_bytes'] / 1e6:.2f} MB", f"{r['load_s']:.2f} s"] for r in files]
    return {
        "coders": table(head, body),
        "files": table(["25 M weights in 54 layers", "coder", "file", "loading, one thread"], whole),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the tables into docs/studies/coders.md")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = Rows(options.results)
    for name, stream in symbols().items():
        for coder in CODERS:
            if f"{name} {coder}" not in rows:
                rows.add(f"{name} {coder}", measured(name, coder, stream))
    for form in ("5-bit codes", "90 % zeros, 32 values"):
        for coder in ("auto", "rans", "zstd"):
            if f"file {form} {coder}" not in rows:
                rows.add(f"file {form} {coder}", whole_file(coder, form))
    if options.write:
        fill(PAGE, blocks(rows.rows))


if __name__ == "__main__":
    main()
