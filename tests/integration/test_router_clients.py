"""The ``openai`` and ``ollama`` packages, as they are, against the router and real model servers."""

import base64
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ollama
import openai
import pytest
from tests.integration.ollama_double import HOLD, ODD_FIELD
from tests.integration.ollama_double import MODEL as OLLAMA_MODEL
from tests.integration.router_stack import ROUTER_KEY, RouterStack

pytestmark = pytest.mark.integration

EVERY_WAY = ["tiny", "smollm2"]
"""A llama-server of the pool, and the coordinator."""
QUESTION: list[Any] = [{"role": "user", "content": "Name three colours."}]
FEW: Any = {"num_predict": 6, "temperature": 0}
BROKEN = {
    "cut": b"{",
    "list": b"[]",
    "no model": b"{}",
    "model is a number": b'{"model": 1}',
    "model is half a surrogate pair": b'{"model": "\\ud800"}',
    "no text": b"\xff",
    "deep": b"[" * 50_000,
}


def png() -> bytes:
    """One black pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def stack(
    llama_build: Path, smollm2: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RouterStack]:
    stack = RouterStack(llama_build, smollm2, tmp_path_factory.mktemp("clients"))
    yield stack
    stack.close()


@pytest.fixture(scope="module")
def of_openai(stack: RouterStack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key=ROUTER_KEY, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def of_ollama(stack: RouterStack) -> Iterator[ollama.Client]:
    with ollama.Client(stack.url, headers={"Authorization": f"Bearer {ROUTER_KEY}"}) as client:
        yield client


@pytest.mark.parametrize("model", EVERY_WAY)
def test_openai_chat_whole_and_in_pieces_is_the_same(of_openai: openai.OpenAI, model: str) -> None:
    whole = of_openai.chat.completions.create(model=model, messages=QUESTION, max_tokens=6, temperature=0)
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 6
    assert whole.choices[0].finish_reason == "length"
    pieces = list(
        of_openai.chat.completions.create(
            model=model,
            messages=QUESTION,
            max_tokens=6,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert text == whole.choices[0].message.content
    assert pieces[-1].usage is not None
    assert pieces[-1].usage.completion_tokens == 6


def test_openai_stream_has_no_usage_that_was_not_asked_for(of_openai: openai.OpenAI) -> None:
    pieces = of_openai.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=2, stream=True)
    assert all(piece.usage is None and piece.choices for piece in pieces)


@pytest.mark.parametrize("model", EVERY_WAY)
def test_openai_completion(of_openai: openai.OpenAI, model: str) -> None:
    answer = of_openai.completions.create(model=model, prompt="Once upon a", max_tokens=3, temperature=0)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3
    assert answer.choices[0].text


def test_openai_embeddings(of_openai: openai.OpenAI) -> None:
    made = of_openai.embeddings.create(model="tiny", input=["red", "blue"])
    assert [len(one.embedding) for one in made.data] == [576, 576]


def test_embeddings_of_a_server_without_them_are_the_clients_mistake(
    of_openai: openai.OpenAI, of_ollama: ollama.Client
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        of_openai.embeddings.create(model="smollm2", input="red")
    assert refused.value.code == "no_embeddings"
    with pytest.raises(ollama.ResponseError, match="gives no embeddings") as told:
        of_ollama.embed("smollm2", "red")
    assert told.value.status_code == 400


def test_coordinator_started_with_embeddings_gives_them(stack: RouterStack, of_ollama: ollama.Client) -> None:
    flags = ["--embeddings", "--pooling", "last"]
    status, state = stack.admin("load", {"model": "other", "flags": flags})
    assert status == 200, state
    assert [len(one) for one in of_ollama.embed("other", ["red", "blue"]).embeddings] == [576, 576]
    assert of_ollama.chat("other", QUESTION, options=FEW).eval_count == 6


def test_openai_models(of_openai: openai.OpenAI) -> None:
    assert [m.id for m in of_openai.models.list()] == [OLLAMA_MODEL, "other", "smollm2", "tiny"]
    assert of_openai.models.retrieve("smollm2").created > 0
    with pytest.raises(openai.NotFoundError) as missing:
        of_openai.models.retrieve("nope")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")


def test_openai_errors_are_typed(stack: RouterStack, of_openai: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        of_openai.chat.completions.create(model="nope", messages=QUESTION)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{stack.url}/v1", api_key="wrong").models.list()
    picture = "data:image/png;base64," + base64.b64encode(png()).decode()
    parts: Any = [{"type": "image_url", "image_url": {"url": picture}}]
    with pytest.raises(openai.BadRequestError) as blind:
        of_openai.chat.completions.create(model="tiny", messages=[{"role": "user", "content": parts}])
    assert blind.value.code == "no_vision"


@pytest.mark.parametrize("model", EVERY_WAY)
def test_ollama_chat_whole_and_in_pieces_is_the_same(of_ollama: ollama.Client, model: str) -> None:
    whole = of_ollama.chat(model, QUESTION, options=FEW)
    assert (whole.done, whole.done_reason, whole.eval_count) == (True, "length", 6)
    assert whole.eval_duration
    assert whole.total_duration
    assert whole.eval_duration < whole.total_duration
    *pieces, last = of_ollama.chat(model, QUESTION, options=FEW, stream=True)
    assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content
    assert (last.done, last.done_reason, last.eval_count) == (True, "length", 6)
    assert last.prompt_eval_count == whole.prompt_eval_count


@pytest.mark.parametrize("model", EVERY_WAY)
def test_ollama_generate_with_a_system_prompt_is_that_chat(of_ollama: ollama.Client, model: str) -> None:
    made = of_ollama.generate(model, "Name three colours.", system="Be short.", options=FEW)
    chat = of_ollama.chat(model, [{"role": "system", "content": "Be short."}, *QUESTION], options=FEW)
    assert made.response == chat.message.content
    assert made.prompt_eval_count == chat.prompt_eval_count
    pieces = of_ollama.generate(model, "Name three colours.", system="Be short.", options=FEW, stream=True)
    assert "".join(piece.response or "" for piece in pieces) == made.response


def test_ollama_raw_prompt_gets_no_template(of_ollama: ollama.Client) -> None:
    raw = of_ollama.generate("tiny", "Once", raw=True, options=FEW)
    assert raw.prompt_eval_count == 1
    assert raw.eval_count == 6


def test_ollama_suffix_needs_a_model_for_it(of_ollama: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="does not support insert") as refused:
        of_ollama.generate("tiny", "def f(", suffix="return", options=FEW)
    assert refused.value.status_code == 400


@pytest.mark.parametrize("model", EVERY_WAY)
def test_ollama_format_is_kept(of_ollama: ollama.Client, model: str) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    limit: Any = {"num_predict": 40, "temperature": 0}
    answer = of_ollama.chat(model, [{"role": "user", "content": "Give n = 3."}], format=schema, options=limit)
    assert isinstance(json.loads(answer.message.content or "")["n"], int)
    free = of_ollama.generate(model, "Give an object with n = 3.", format="json", options=limit)
    assert (free.response or "").lstrip().startswith("{")


def test_ollama_embeddings_in_both_forms(of_ollama: ollama.Client) -> None:
    made = of_ollama.embed("tiny", ["red", "blue"])
    assert [len(one) for one in made.embeddings] == [576, 576]
    assert made.prompt_eval_count
    (short,) = of_ollama.embed("tiny", "red", dimensions=8).embeddings
    assert (len(short), round(sum(x * x for x in short), 6)) == (8, 1.0)
    assert list(of_ollama.embeddings("tiny", "red").embedding) == pytest.approx(made.embeddings[0], abs=1e-3)


def test_ollama_lists_and_shows_models(of_ollama: ollama.Client, smollm2: Path) -> None:
    listed = {model.model: model for model in of_ollama.list().models}
    assert sorted(listed) == [OLLAMA_MODEL, "other", "smollm2", "tiny"]
    assert listed["smollm2"].size == smollm2.stat().st_size
    assert listed[OLLAMA_MODEL].digest == "f" * 64
    assert listed["tiny"].details.parameter_size == "134.52M"
    shown = of_ollama.show("smollm2")
    assert shown.details is not None
    assert (shown.details.family, shown.details.parameter_size) == ("llama", "134.52M")
    assert shown.details.quantization_level == "Q4_1"
    assert shown.modelinfo["llama.context_length"] == 8192
    assert "completion" in (shown.capabilities or [])


def test_ollama_says_what_is_loaded_and_unloads_it(stack: RouterStack, of_ollama: ollama.Client) -> None:
    assert of_ollama.chat("smollm2", []).done_reason == "load"
    running = {model.model: model for model in of_ollama.ps().models}
    assert running["smollm2"].size_vram > 90_000_000
    assert running["smollm2"].context_length == 2048
    assert of_ollama.generate("smollm2", "", keep_alive=0).done_reason == "unload"
    assert "smollm2" not in {model.model for model in of_ollama.ps().models}
    assert stack.admin("coordinator")[1]["diagnosis"]["class"] == "stopped"


def test_ollama_errors_are_typed(stack: RouterStack, of_ollama: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError) as missing:
        of_ollama.chat("nope", QUESTION)
    assert (missing.value.status_code, missing.value.error) == (404, "model 'nope' not found")
    seeing = [{"role": "user", "content": "What is it?", "images": [png()]}]
    with pytest.raises(ollama.ResponseError, match="does not support images") as blind:
        of_ollama.chat("tiny", seeing)
    assert blind.value.status_code == 400
    with pytest.raises(ollama.ResponseError, match="bearer key") as unknown:
        ollama.Client(stack.url).list()
    assert unknown.value.status_code == 401


def test_ollama_version_is_one_that_clients_know(stack: RouterStack) -> None:
    assert stack.call("/api/version")[1] == {"version": "0.12.6"}


@pytest.mark.parametrize("stream", [False, True])
def test_body_to_a_real_ollama_and_its_answer_pass_as_they_are(stack: RouterStack, stream: bool) -> None:
    body = {"model": OLLAMA_MODEL, "messages": QUESTION, "stream": stream, "surprise": ["\u00fc", 1.50]}
    connection, answer = stack.send("/api/chat", body)
    lines = [json.loads(line) for line in answer]
    connection.close()
    assert answer.headers["x-llama-route"] == "pool"
    assert all(line[ODD_FIELD] for line in lines)
    assert (lines[-1]["done"], lines[-1]["eval_duration"]) == (True, 123456789)
    assert len(lines) > 1 if stream else len(lines) == 1
    asked = stack.call("/asked", port=stack.ollama_port)[1]["/api/chat"]
    assert asked == json.dumps(body)


def test_words_of_a_real_ollama_arrive_before_its_last(stack: RouterStack) -> None:
    asked = {"model": OLLAMA_MODEL, "messages": QUESTION, "options": FEW | {HOLD: True}}
    connection, answer = stack.send("/api/chat", asked, timeout=20)
    assert json.loads(answer.readline())["message"]["content"]
    assert stack.call("/go", port=stack.ollama_port)[0] == 200
    assert json.loads(answer.readlines()[-1])["done"]
    connection.close()


def test_both_packages_work_with_a_real_ollama_in_the_pool(
    of_openai: openai.OpenAI, of_ollama: ollama.Client
) -> None:
    pieces = list(of_ollama.chat(OLLAMA_MODEL, QUESTION, options=FEW, stream=True))
    assert (pieces[-1].done, bool(pieces[0].message.content)) == (True, True)
    assert len(of_ollama.embed(OLLAMA_MODEL, ["red"]).embeddings[0]) == 576
    assert of_ollama.show(OLLAMA_MODEL).modelinfo == {ODD_FIELD: 1}
    assert OLLAMA_MODEL in {model.model for model in of_ollama.ps().models}
    answer = of_openai.chat.completions.create(model=OLLAMA_MODEL, messages=QUESTION, max_tokens=3)
    assert answer.choices[0].message.content


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat", "/api/generate", "/api/embed"])
@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN)
def test_body_that_is_none_is_a_typed_400(stack: RouterStack, path: str, body: bytes) -> None:
    status, answer, _ = stack.call_bytes(path, body)
    assert status == 400, answer
    error = answer["error"] if path.startswith("/v1") else answer["details"]
    assert error["class"] == "bad_request"


def test_half_a_surrogate_pair_in_a_prompt_is_answered(stack: RouterStack) -> None:
    body = b'{"model": "tiny", "stream": false, "messages": [{"role": "user", "content": "a\\ud83d"}], '
    status, answer, _ = stack.call_bytes("/api/chat", body + b'"options": {"num_predict": 2}}')
    assert (status, answer["done"]) == (200, True)


def test_path_that_is_none_is_told_in_json(stack: RouterStack) -> None:
    assert stack.call("/v1/nothing")[1]["error"]["class"] == "no_such_path"
    assert stack.call("/api/pull", {"model": "x"})[0] == 404


def ollama_storage(folder: Path, model: Path) -> Path:
    """Ollama's storage with ``story:latest`` in it."""
    digest = "a" * 64
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs" / f"sha256-{digest}").symlink_to(model)
    manifest = folder / "manifests" / "registry.ollama.ai" / "library" / "story" / "latest"
    manifest.parent.mkdir(parents=True)
    layer = {
        "mediaType": "application/vnd.ollama.image.model",
        "digest": f"sha256:{digest}",
        "size": model.stat().st_size,
    }
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": [layer]}))
    return folder


def test_model_of_ollamas_is_loaded_once_however_it_is_spelled(
    llama_build: Path, smollm2: Path, tmp_path: Path
) -> None:
    storage = ollama_storage(tmp_path / "ollama", smollm2.resolve())
    stack = RouterStack(llama_build, smollm2, tmp_path, ollama_models=str(storage))
    try:
        client = ollama.Client(stack.url, headers={"authorization": f"Bearer {ROUTER_KEY}"})
        for name in ("story", "story:latest", "Story"):
            assert client.chat(name, QUESTION, options=FEW).done_reason == "length"
            assert client.show(name).details
        assert stack.admin("load", {"model": "story"})[0] == 200
        assert [one["model"] for one in stack.admin("starts")[1]] == ["story:latest"]
        assert [one.model for one in client.ps().models] == ["story:latest", OLLAMA_MODEL, "tiny"]
        assert client.generate("story", "", keep_alive=0).done_reason == "unload"
        assert stack.admin("coordinator")[1]["phase"] == "ended"
    finally:
        stack.close()
