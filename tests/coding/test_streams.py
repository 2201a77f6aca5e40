# SPDX-License-Identifier: Apache-2.0
"""Coders: what goes in comes out, near the entropy, and damaged bytes are an error of Python and no crash."""

from __future__ import annotations

import numpy as np
import pytest

from featherweight.coding import huffman, rans, streams
from featherweight.coding.frequencies import MANY, best_table, entropy_bytes, normalized, read
from featherweight.errors import MissingExtra, OptionError

CODERS = ["raw", "deflate", "rans", "huffman", "auto"]


def drawn(kind: str, count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "uniform":
        return rng.integers(0, 256, count).astype(np.uint8)
    if kind == "normal":
        return np.clip(np.round(rng.normal(128, 20, count)), 0, 255).astype(np.uint8)
    if kind == "few":
        return rng.choice(5, count, p=[0.4, 0.3, 0.2, 0.09, 0.01]).astype(np.uint8)
    if kind == "sparse":
        return np.where(rng.random(count) < 0.92, 0, rng.integers(1, 32, count)).astype(np.uint8)
    if kind == "one other":
        found = np.full(count, 7, np.uint8)
        found[count // 2] = 255
        return found
    return np.full(count, 3, np.uint8)


KINDS = ["uniform", "normal", "few", "sparse", "one other", "constant"]


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 511, 512, 20_000])
def test_what_goes_in_comes_out(coder: str, kind: str, count: int) -> None:
    symbols = drawn(kind, count)
    coded = streams.encode(symbols, coder)
    assert np.array_equal(streams.decode(coded), symbols)
    assert len(coded.data) <= count


def test_nothing_is_a_stream_too() -> None:
    assert len(streams.decode(streams.encode(np.empty(0, np.uint8)))) == 0


@pytest.mark.parametrize("kind", ["normal", "few", "sparse", "one other"])
def test_rans_is_within_one_percent_of_the_entropy(kind: str) -> None:
    symbols = drawn(kind, 200_000)
    least = entropy_bytes(np.bincount(symbols, minlength=256))
    assert len(rans.encode(symbols)) <= 1.01 * least + 4 * 256 + 40  # the lanes' states, and the table


def test_huffman_is_at_most_a_bit_over_and_is_optimal_for_powers_of_two() -> None:
    symbols = np.repeat(np.arange(4), [4096, 2048, 1024, 1024]).astype(np.uint8)
    assert huffman.lengths(np.bincount(symbols, minlength=256))[:4].tolist() == [1, 2, 3, 3]
    np.random.default_rng(0).shuffle(symbols)
    assert len(huffman.encode(symbols)) <= entropy_bytes(np.bincount(symbols)) + 8 * 4.5 + 8


def test_huffman_codes_are_canonical_and_never_longer_than_a_table() -> None:
    counts = np.array([1 << min(i, 40) for i in range(60)] + [0] * 196)  # Huffman's own codes would have 59 bits
    found = huffman.lengths(counts)
    assert found.max() == huffman.LONGEST
    assert sum(2.0 ** -int(n) for n in found if n) == 1.0
    codes = huffman.codes_of(found)
    words = [f"{codes[s]:0{found[s]}b}" for s in np.flatnonzero(found)]
    assert not any(a != b and b.startswith(a) for a in words for b in words)
    same = [int(codes[s]) for s in np.flatnonzero(found == huffman.LONGEST)]
    assert same == sorted(same)


def test_one_symbol_has_a_code_of_one_bit() -> None:
    assert huffman.lengths(np.eye(256, dtype=np.int64)[3] * 9).tolist() == [0, 0, 0, 1] + [0] * 252
    symbols = np.full(3000, 3, np.uint8)
    assert np.array_equal(huffman.decode(memoryview(huffman.encode(symbols)), 3000), symbols)


def test_frequencies_sum_up_and_keep_every_symbol() -> None:
    counts = np.zeros(256, np.int64)
    counts[[0, 9, 200]] = 1_000_000, 1, 3
    for scale in (5, 8, 12):
        found = normalized(counts, scale)
        assert int(found.sum()) == 1 << scale
        assert ((found > 0) == (counts > 0)).all()


@pytest.mark.parametrize("count", [3000, 2 * MANY])
def test_a_table_is_read_back(count: int) -> None:
    counts = np.bincount(drawn("normal", count), minlength=256)
    table = best_table(counts)
    assert table.runs == (count < MANY)
    again, used = read(memoryview(table.data + b"more"), table.scale, runs=table.runs)
    assert used == len(table.data)
    assert np.array_equal(again, table.frequencies)
    assert (again[counts > 0] > 0).all()


def test_every_table_sums_up_whatever_is_counted() -> None:
    rng = np.random.default_rng(0)
    for number in range(300):
        counts = np.zeros(256, np.int64)
        places = rng.choice(256, rng.integers(2, 257), replace=False)
        counts[places] = np.maximum(1, rng.pareto(0.5, len(places)) * rng.integers(1, 9)).clip(max=30_000)
        table = best_table(counts)
        again, _ = read(memoryview(table.data), table.scale, runs=table.runs)
        assert np.array_equal(again, table.frequencies), number
        assert int(again.sum()) == 1 << table.scale and (again[counts > 0] > 0).all(), number


def test_runs_bring_the_gaps_of_a_pruned_layer_near_their_entropy() -> None:
    gaps = np.random.default_rng(0).geometric(0.03, 5000).clip(max=255).astype(np.uint8)
    counts = np.bincount(gaps, minlength=256)
    plain = len(streams.encode(gaps, "deflate").data)
    assert len(streams.encode(gaps, "rans").data) < 1.016 * entropy_bytes(counts) < plain / 1.01


def test_a_run_too_long_for_its_table_is_an_error() -> None:
    table = best_table(np.bincount(drawn("normal", 3000), minlength=256))
    with pytest.raises(ValueError, match="more symbols"):
        read(memoryview(bytes([table.data[0] - 1]) + table.data[1:]), table.scale, runs=True)


def test_the_scale_is_worth_its_table() -> None:
    small, large = (np.bincount(drawn("normal", count), minlength=256) for count in (300, 300_000))
    assert best_table(small).scale < best_table(large).scale


@pytest.mark.parametrize("coder", ["deflate", "rans", "huffman"])
def test_damage_is_a_value_error_or_other_symbols(coder: str) -> None:
    symbols = drawn("few", 1500)
    data = streams.encode(symbols, coder).data
    rng = np.random.default_rng(1)
    for _ in range(100):
        broken = bytearray(data)
        broken[rng.integers(len(broken))] ^= 1 << rng.integers(8)
        cut = bytes(broken[: rng.integers(len(broken))]) if rng.random() < 0.3 else bytes(broken)
        try:
            found = streams.decode(streams.Coded(coder, 1500, cut))
        except ValueError:
            continue
        assert len(found) == 1500


def test_rans_notices_nearly_every_flip_by_itself() -> None:
    symbols = drawn("few", 1500)
    data = streams.encode(symbols, "rans").data
    noticed = 0
    for place in range(0, len(data), 15):
        broken = bytearray(data)
        broken[place] ^= 1
        try:
            streams.decode(streams.Coded("rans", 1500, bytes(broken)))
        except ValueError:
            noticed += 1
    assert noticed >= 0.99 * len(range(0, len(data), 15))


def test_a_wrong_coder_is_named() -> None:
    with pytest.raises(OptionError, match="did you mean 'huffman'"):
        streams.encode(drawn("few", 10), "hufman")


def test_a_coder_that_is_not_installed_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingExtra, match=r"featherweight\[zstd\]"):
        streams.encode(drawn("few", 100), "zstd")
    with pytest.raises(MissingExtra, match=r"featherweight\[zstd\]"):
        streams.decode(streams.Coded("zstd", 100, b"1234"))


@pytest.mark.parametrize("kind", KINDS)
def test_zstd(kind: str) -> None:
    pytest.importorskip("zstandard")
    symbols = drawn(kind, 5000)
    coded = streams.encode(symbols, "zstd")
    assert np.array_equal(streams.decode(coded), symbols)
    for data in (coded.data[:-3], coded.data + b"x"):
        if coded.coder == "zstd":
            with pytest.raises(ValueError):  # noqa: PT011  whatever it says
                streams.decode(streams.Coded("zstd", 5000, data))
