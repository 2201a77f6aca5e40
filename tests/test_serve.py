# SPDX-License-Identifier: Apache-2.0
"""The server: its answers are the pipelines', its limits hold, and nothing that is sent to it brings a trace out."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import re
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("uvicorn")
import tiny_files
import tiny_text
from serve_client import JSON, PNG, Client, running

from featherweight import pipeline
from featherweight.errors import InputError, OptionError
from featherweight.pictures import load
from featherweight.serving import server as serving
from featherweight.serving.guard import Guard
from featherweight.serving.limits import Limits
from featherweight.serving.metrics import Metrics
from featherweight.serving.models import Asked, Served, named

CORPUS = Path(__file__).parent / "reliability" / "corpus.tar.gz"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.onnx and the folder it was made of."""
    import torch

    from featherweight import artifact
    from featherweight.export import onnx
    from featherweight.export.check import describe

    folder, model = tmp_path_factory.mktemp("served"), tiny_files.model()
    known = {"classes": tiny_files.CLASSES, "preprocess": tiny_files.PREPROCESS}
    artifact.save(model, folder / "model", **known)
    images = torch.stack([torch.from_numpy(tiny_files.PREPROCESS(tiny_files.picture(seed))) for seed in range(2)])
    onnx.export(model, images, folder / "model.onnx", metadata=describe(**known), extra=("kept_tokens",))
    return folder


@pytest.fixture(scope="module")
def two(files: Path) -> Iterator[Client]:
    """An exported file and the folder it was made of."""
    with running(serving.open_models([files / "model.onnx", files / "model"])) as client:
        yield client


def png(seed: int = 0, size: tuple[int, int] = (30, 40)) -> bytes:
    stored = io.BytesIO()
    Image.fromarray(tiny_files.picture(seed, size)).save(stored, "PNG")
    return stored.getvalue()


class Fake:
    """A pipeline that does what a test wants; `act` is run where the model would be."""

    task = "text-classification"
    classes = ("yes", "no")

    class runner:  # noqa: N801
        backend, dtype, threads = "torch", "float32", 1

    def __init__(self, act: Callable[[], Any] = lambda: None, score: float = 0.5) -> None:
        self.act, self.score = act, score

    def preprocess(self, text: Any, call: Any) -> Any:
        return type("Encoding", (), {"ids": [1, 2]})()

    def forward(self, encodings: Any, call: Any) -> Any:
        self.act()
        return [None]

    def postprocess(self, logits: Any, call: Any) -> Any:
        return [{"label": "yes", "score": self.score}]


def test_answers_are_those_of_the_pipeline(two: Client, files: Path) -> None:
    status, found, _ = two.post(png(), "/predict?top_k=3")
    assert status == 200
    pipe = pipeline(model=files / "model")
    ours = pipe(tiny_files.picture(), top_k=3, return_tokens=True)
    assert found["picture"] == {"width": 40, "height": 30}
    assert [one["name"] for one in found["models"]] == ["model.onnx", "model"]
    for one in found["models"]:
        assert [a["label"] for a in one["answers"]] == [a["label"] for a in ours]
        assert [a["score"] for a in one["answers"]] == pytest.approx([a["score"] for a in ours], abs=1e-5)
        assert one["kept"] == ours[0]["kept"]
        assert (one["grid"], one["window"]) == ([6, 6], [0.0, 0.0, 1.0, 1.0])
        assert list(one["latency_ms"]) == ["decode", "prepare", "model", "answer"]
        assert all(value >= 0 for value in one["latency_ms"].values())


def test_a_detector_answers_in_pixels_of_the_picture() -> None:
    from tiny_detector import Told

    from featherweight.runtime.preprocess import Preprocess

    zero, one = (0.0,) * 3, (1.0,) * 3
    box = Preprocess(size=(64, 64), resize="letterbox", interpolation="bilinear", mean=zero, std=one)
    rows = [[10, 20, 30, 40, 0.9, 1], [40, 30, 60, 60, 0.3, 2]]
    options = {"preprocess": box, "classes": ("cat", "dog", "eel")}
    pipe: Any = pipeline("object-detection", Told(rows).eval(), **options)
    with running(named([("detector", pipe)])) as client:
        for path, count in (("/predict", 1), ("/predict?threshold=0.2&iou=0.5", 2)):
            status, found, _ = client.post(png(size=(128, 128)), path)
            assert status == 200
            threshold = 0.2 if count == 2 else 0.5
            assert found["models"][0]["answers"] == pipe(tiny_files.picture(0, (128, 128)), threshold=threshold)
            assert len(found["models"][0]["answers"]) == count


def test_texts_and_questions() -> None:
    transformers = pytest.importorskip("transformers")
    tokens = tiny_text.tokenizer(transformers)
    model = tiny_text.model(transformers, kind="BertForSequenceClassification")
    texts: Any = pipeline("text-classification", model, tokenizer=tokens)
    asks: Any = pipeline("question-answering", tiny_text.model(transformers), tokenizer=tokens)
    with running(named([("a", texts), ("b", texts)])) as client:
        status, found, _ = client.post(json.dumps({"text": tiny_text.SHORT}), "/predict?top_k=2")
        assert status == 200
        assert [one["answers"] for one in found["models"]] == 2 * [texts(tiny_text.SHORT, top_k=2)]
        assert list(found["models"][0]["latency_ms"]) == ["prepare", "model", "answer"]
        status, found, _ = client.post(json.dumps({"text": tiny_text.LONG}))
        assert (status, found["error"]["reason"]) == (413, "too_large")
        assert client.post(json.dumps({"text": tiny_text.LONG}), "/predict?truncation=true")[0] == 200
        for body, reason in (
            ("{}", "missing_key"),
            ('{"text": 3}', "bad_type"),
            ("[1]", "bad_type"),
            ("{", "bad_json"),
        ):
            status, found, _ = client.post(body)
            assert (status, found["error"]["reason"]) == (400, reason), body
        assert client.post(png())[0] == 415
    question = {"question": tiny_text.WHO, "context": tiny_text.SHORT}
    with running(named([("qa", asks)])) as client:
        status, found, _ = client.post(json.dumps(question), "/predict?top_k=1")
        tiny_text.same(found["models"][0]["answers"], [asks(question)])
        assert client.post(json.dumps({"question": "who?"}))[1]["error"]["reason"] == "missing_key"


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("topk=3", "did you mean 'top_k'"),
        ("top_k=x", "top_k: 'x' is not"),
        ("top_k=0", "top_k: must be 1..1000"),
        ("top_k=1&top_k=2", "top_k: is given twice"),
        ("threshold=2", "threshold: must be 0..1"),
        ("threshold=nan", "threshold: must be 0..1"),
        ("truncation=maybe", "truncation"),
        ("url=http://127.0.0.1/x.png", "url: no such option"),
    ],
)
def test_wrong_options(two: Client, query: str, says: str) -> None:
    status, found, _ = two.post(png(), f"/predict?{query}")
    assert (status, found["error"]["reason"]) == (400, "bad_option")
    assert says in found["error"]["text"]


def test_health_models_and_metrics(two: Client) -> None:
    two.post(png())
    two.post(b"no picture")
    assert two.ask("GET", "/health")[1]["status"] == "ok"
    known = two.ask("GET", "/models")[1]
    assert [(one["runtime"], one["input"]) for one in known["models"]] == [
        ("onnxruntime", [24, 24]),
        ("torch", [24, 24]),
    ]
    assert known["models"][0]["classes"] == list(tiny_files.CLASSES)
    _, text, headers = two.ask("GET", "/metrics")
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    sample = re.compile(r'[a-z_]+(\{([a-z]+="(\\.|[^"\\])*",?)+\})? [0-9.e+-]+')
    assert all(line.startswith("# ") or sample.fullmatch(line) for line in text.splitlines())
    assert 'featherweight_requests_total{path="/predict",code="415"}' in text
    assert 'featherweight_refused_total{reason="not_an_image"}' in text
    counts = re.findall(r'seconds_bucket\{model="model",stage="model",le="[^"]+"\} (\d+)', text)
    assert counts == sorted(counts, key=int)
    assert int(counts[-1]) >= 1
    assert "featherweight_busy 0" in text


def test_the_page_is_whole_and_lets_nothing_else_in(two: Client) -> None:
    status, html, headers = two.ask("GET", "/")
    assert status == 200
    assert not re.search(r"""(src|href)=["']?(https?:)?//|@import|url\(""", html)
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert (policy["default-src"], policy["connect-src"]) == ("'none'", "'self'")
    for tag in ("script", "style"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert "innerHTML" not in html
    for path in ("/", "/health", "/metrics", "/models", "/nowhere"):
        told = two.ask("GET", path)[2]
        assert told["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in told["content-security-policy"]
        assert "server" not in told


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/predict", 405), ("POST", "/", 405), ("GET", "/../etc/passwd", 404), ("GET", "//", 404)],
)
def test_wrong_addresses(two: Client, method: str, path: str, status: int) -> None:
    found = two.ask(method, path)
    assert (found[0], found[1]["error"]["reason"]) == (status, "bad_address")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:9"}, 200),
        ({"Host": "[::1]:9"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "192.168.1.2"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "localhost@evil.example"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Host": "localhost:9", "Origin": "http://localhost:9"}, 200),
        ({"Host": "localhost:9", "Origin": "http://localhost:10"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Encoding": "gzip"}, 415),
    ],
)
def test_who_may_ask(two: Client, headers: dict[str, str], status: int) -> None:
    found = two.post(png(), **headers)
    assert found[0] == status, found
    if status == 403 and "Host" in headers and "Origin" not in headers:
        assert two.ask("GET", "/", headers=headers)[0] == 403


def test_another_host_takes_addresses_and_the_names_it_was_given() -> None:
    async def app(*_: Any) -> None: ...

    open_ = Guard(app, names=["Box.Example"], loopback=False, metrics=Metrics(), report=lambda _: None)
    assert all(
        open_.known(host) for host in ("192.168.1.2:8000", "box.example", "BOX.example.:1", "[fe80::1]", "localhost")
    )
    assert not any(open_.known(host) for host in ("evil.example", "box.example.evil", "", "a b", "box.example:999999"))


def test_limits_of_an_upload(files: Path) -> None:
    models = serving.open_models([files / "model.onnx"])
    with running(models, max_bytes=8000, max_pixels=2000, body_seconds=0.5) as client:
        assert client.post(png())[0] == 200
        assert client.post(bytes(8001))[1]["error"]["reason"] == "too_large"
        chunked = client.ask("POST", "/predict", iter([bytes(1000)] * 9), {**PNG, "Transfer-Encoding": "chunked"})
        assert chunked[0] == 413
        status, found, _ = client.post(png(size=(41, 49)))
        assert (status, found["error"]["reason"]) == (413, "too_large")
        assert "2000" in found["error"]["text"]
        with socket.create_connection(("127.0.0.1", client.port), timeout=10) as slow:
            head = (
                "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\nabc"
            )
            slow.sendall(head.encode())
            assert slow.recv(20).startswith(b"HTTP/1.1 408")
        assert client.post(png())[0] == 200


def test_a_full_house_says_when_to_come_back() -> None:
    go, text = threading.Event(), json.dumps({"text": "a"})
    found: list[Any] = []
    with running(named([("slow", Fake(lambda: go.wait(10)))]), waiting=1) as client:
        threads = [threading.Thread(target=lambda: found.append(client.post(text))) for _ in range(2)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 10
        while "featherweight_busy 2" not in client.ask("GET", "/metrics")[1]:
            assert time.monotonic() < deadline
        status, answer, headers = client.post(text)
        assert (status, answer["error"]["reason"], headers["retry-after"]) == (503, "busy", "1")
        assert client.ask("GET", "/health")[0] == 200  # it answers all the time
        go.set()
        for thread in threads:
            thread.join()
        assert [one[0] for one in found] == [200, 200]
        assert client.post(text)[0] == 200


def test_a_slow_answer_is_given_up_and_its_place_stays_taken_until_it_ends() -> None:
    go, text = threading.Event(), json.dumps({"text": "a"})
    with running(named([("slow", Fake(lambda: go.wait(10)))]), waiting=0, answer_seconds=0.2) as client:
        assert client.post(text)[0] == 504
        assert client.post(text)[0] == 503
        go.set()
        deadline = time.monotonic() + 10
        while client.post(text)[0] != 200:
            assert time.monotonic() < deadline


@pytest.mark.parametrize("error", [RuntimeError("/secret/path"), InputError("/secret/path", "non_finite", "is broken")])
def test_a_model_that_fails_is_an_answer_without_a_trace(error: Exception) -> None:
    def fail() -> None:
        raise error

    with running(named([("bad", Fake(fail))])) as client:
        status, found, _ = client.post('{"text": "a"}')
        assert status == 500
        assert "secret" not in json.dumps(found)
        assert client.reported == [error]
        assert client.ask("GET", "/health")[0] == 200
    with running(named([("nan", Fake(score=float("nan")))])) as client:
        assert client.post('{"text": "a"}')[1]["error"]["reason"] == "model_failed"


def test_connections_that_say_nothing_end() -> None:
    with running(named([("a", Fake())]), header_seconds=0.4, connections=3) as client:
        began = time.monotonic()
        quiet = [socket.create_connection(("127.0.0.1", client.port), timeout=10) for _ in range(3)]
        quiet[1].sendall(b"GET / HT")
        fourth = socket.create_connection(("127.0.0.1", client.port), timeout=10)
        assert ended(fourth)
        assert time.monotonic() - began < 0.4
        for number in range(3):  # a drop at a time does not help
            time.sleep(0.1)
            with contextlib.suppress(OSError):
                quiet[1].sendall(b"TP/1.1\r\nHo"[number : number + 1])
        assert all(ended(one) for one in quiet)
        assert time.monotonic() - began < 5
        assert client.post('{"text": "a"}')[0] == 200


def ended(connection: socket.socket) -> bool:
    with connection:
        try:
            return connection.recv(1) == b""
        except ConnectionResetError:
            return True


def test_garbage_is_no_request(two: Client) -> None:
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 40000,
        b"\r\n" * 3000,
    ):
        with socket.create_connection(("127.0.0.1", two.port), timeout=10) as raw:
            raw.sendall(data)
            raw.shutdown(socket.SHUT_WR)
            answer = raw.recv(4096)
            assert b"Traceback" not in answer
            assert not answer or answer.startswith(b"HTTP/1.1 4")
    assert two.ask("GET", "/health")[0] == 200


def harmless(two: Client, data: bytes, name: str) -> int:
    status, found, _ = two.post(data)
    assert status in (200, 400, 413, 415), (name, status, found)
    text = json.dumps(found)
    assert "Traceback" not in text and "/work" not in text and ".py" not in text, (name, text)
    if status != 200:
        assert set(found["error"]) == {"reason", "text"} and len(found["error"]["text"]) <= 500, name
    return status


def test_hostile_pictures_are_refused_in_one_line(two: Client) -> None:
    with tarfile.open(CORPUS) as archive:
        members = [one for one in archive.getmembers() if one.isfile() and one.size < 20 << 20]
        found = [harmless(two, archive.extractfile(one).read(), one.name) for one in members]  # type: ignore[union-attr]
    assert len(found) > 100
    assert found.count(200) > 5
    assert found.count(200) < len(found) / 2
    assert two.reported == []


def test_damaged_pictures_and_texts(two: Client) -> None:
    rng = np.random.default_rng(0)
    stored = io.BytesIO()
    Image.fromarray(tiny_files.picture()).save(stored, "JPEG")
    for whole in (png(), stored.getvalue()):
        for number in range(30):
            data = bytearray(whole)
            for place in rng.integers(0, len(data), 3):
                data[place] = rng.integers(256)
            harmless(two, bytes(data[: rng.integers(1, len(data))] if number % 3 == 0 else data), f"{number}")
    with running(named([("a", Fake())])) as client:
        for body in ("[" * 1000, '{"text": "\\ud800"}', '{"text": "a", "text": "b"}', "nul", "\0", '{"text": NaN}', ""):
            status, found, _ = client.post(body)
            assert status == 400, body
            assert "error" in found
        assert client.ask("POST", "/predict", b"\xff\xfe", JSON)[0] == 400
        assert client.post(json.dumps({"text": "a" * 100_000}))[0] == 413
        assert client.reported == []


def test_where_it_listens(capsys: pytest.CaptureFixture[str]) -> None:
    with serving.listen("localhost", 0) as sock:
        port = sock.getsockname()[1]
        assert serving.url(sock) == f"http://127.0.0.1:{port}/"
        with pytest.raises(OptionError, match=f"port: {port} is taken"):
            serving.listen("127.0.0.1", port)
        from featherweight import cli

        assert cli.main(["serve", "nowhere.onnx", "--port", str(port)]) == 2
        assert capsys.readouterr().err.startswith(f"✗ --port: {port} is taken by another program")
    for host in ("example.org", "http://127.0.0.1", "", "256.1.1.1"):
        with pytest.raises(OptionError, match=r"host: .*is no address"):
            serving.listen(host, 0)
    with pytest.raises(OptionError, match="give an address of this machine"):
        serving.listen("192.0.2.1", 0)
    with pytest.raises(OptionError, match=r"port: must be 0\.\.65535"):
        serving.listen(port=65536)
    assert serving.is_loopback("127.0.0.2") and serving.is_loopback("::1")
    assert not serving.is_loopback("0.0.0.0")


def test_names_and_pairs() -> None:
    fake, other = Fake(), Fake()
    other.task = "question-answering"
    assert [one.name for one in named([("a/x.onnx", fake), ("b/x.onnx", fake)])] == ["a/x.onnx", "b/x.onnx"]
    assert [one.name for one in named([("x", fake), ("x", fake)])] == ["x (1)", "x (2)"]
    with pytest.raises(OptionError, match="--against: text-classification and question-answering"):
        named([("a", fake), ("b", other)])
    for wrong in (
        {"max_bytes": 0},
        {"waiting": -1},
        {"answer_seconds": 0},
        {"max_pixels": True},
        {"body_seconds": float("nan")},
    ):
        with pytest.raises(OptionError, match=next(iter(wrong))):
            Limits(**wrong)  # type: ignore[arg-type]


def test_the_page_of_the_docs_tells_the_limits_that_hold() -> None:
    text = (Path(__file__).parents[1] / "docs" / "serve.md").read_text(encoding="utf-8").replace("\n", " ")
    known = Limits()
    for said in (
        f"| `--max-bytes` | {known.max_bytes >> 20} MiB |",
        f"at most {known.max_text:,} bytes".replace(",", " "),
        f"| `--max-pixels` | {known.max_pixels:,} |".replace(",", " "),
        f"| `--waiting` | {known.waiting} |",
        f"| `--timeout` | {known.answer_seconds:g} s |",
        f"A body has {known.body_seconds:g} seconds to arrive, a request's head {known.header_seconds:g}",
        f"at most {known.connections} connections",
        f"| `top_k` | {Asked().top_k} |",
    ):
        assert said in text, said


def test_kept_patches_lie_where_the_crop_was(files: Path) -> None:
    from featherweight.runtime.preprocess import Preprocess

    cropped = Preprocess(size=(24, 24), resize="shorter", interpolation="bilinear")
    pipe: Any = pipeline(model=files / "model.onnx", preprocess=cropped)
    found = Served("m", pipe).answer(load(tiny_files.picture(0, (30, 60))), Asked())
    assert found["window"] == pytest.approx([0.25, 0, 0.75, 1])


TALK = """
import sys
from featherweight.cli import main
code = main(sys.argv[1:])
print([name for name in ("torch", "transformers", "onnx", "timm", "matplotlib") if name in sys.modules])
sys.exit(code)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of another kind")
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_exported_file_is_served_without_torch_until_it_is_stopped(files: Path, number: int) -> None:
    command = [
        sys.executable,
        "-W",
        "error",
        "-c",
        TALK,
        "serve",
        str(files / "model.onnx"),
        "--port",
        "0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            lines = [process.stdout.readline(), process.stdout.readline()]
            (port,) = re.findall(r"^serving http://127.0.0.1:(\d+)/ ", lines[1], re.MULTILINE)
            assert Client(int(port)).post(png())[0] == 200
        finally:
            process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")
    assert out.splitlines()[-2].startswith("stopped")
    assert out.splitlines()[-1] == "[]"
