"""`heptune export` as a person sees it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def run(base: Path, conversations: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from heptune.cli.main import main

    folder = tmp_path_factory.mktemp("export") / "runs" / "one"
    words = ["--rank", "4", "--max-steps", "3", "--max-length", "128", "--threads", "1"]
    assert main(["tune", str(base), str(conversations), *words, "--out", str(folder)]) == 0
    return folder


def test_it_prints_what_was_measured_and_how_it_goes_on(
    heptune: Any, run: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    said = heptune("export", run, "--to", "gguf", "--type", "q8_0", "--threads", 1)
    assert said.code == 0, said.err
    out = tmp_path / "exports" / "one-gguf"
    assert {path.name for path in out.iterdir()} == {"one-q8_0.gguf", "Modelfile", "README.md", "parity.json"}
    assert said.out.startswith("exports/one-gguf:")
    assert re.search(r"one-q8_0\.gguf +\d", said.out) and re.search(r"^ +transformers .* allowed$", said.out, re.M)
    assert re.search(r"largest difference of a logit +0\.\d+", said.out)
    assert re.search(r"all logits, relative to their size +0\.0\d+ .*0\.15", said.out)
    assert re.search(r"what the run learned, in the same measure +0\.\d+", said.out)
    assert re.search(r"greedy tokens that agree +\d+ of \d+", said.out)
    assert re.search(r"loss of 3 held-out records +\d\.\d{4} -> \d\.\d{4}", said.out)
    assert re.search(r"the chat template writes the same +yes", said.out)
    assert "llama-server -m exports/one-gguf/one-q8_0.gguf" in said.out
    assert "cd exports/one-gguf && ollama create one -f Modelfile" in said.out
    assert "writing gguf" in said.err
    assert ("llama-cpp-python is not installed" in said.err) == (importlib.util.find_spec("llama_cpp") is None)
    again = heptune("export", run, "--to", "gguf")
    assert again.code == 2 and "exports/one-gguf is there already and not empty" in again.err


def test_a_lora_for_vllm(heptune: Any, run: Path, base: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    said = heptune("export", run, "--to", "peft", "--out", tmp_path / "one")
    assert said.code == 0, said.err
    wanted = f"vllm serve {base} --enable-lora --max-lora-rank 8 --lora-modules one={tmp_path / 'one'}"
    assert f"With vLLM, on many GPUs:\n  {wanted}\n" in said.out


def test_refusals_are_one_line(heptune: Any, run: Path, tmp_path: Path) -> None:
    for words, code, message in (
        (["--to", "onnx"], 2, "there is no format named 'onnx'"),
        (["--to", "adapterhub"], 2, "choose --to peft"),
        (["--to", "hf", "--type", "q8_0"], 2, "hf has f32, f16, bf16"),
        (["--to", "hf", "--lora-only"], 2, "--lora-only is for --to gguf"),
        ([], 2, "--to"),
    ):
        said = heptune("export", run, *words, "--out", tmp_path / "out")
        assert said.code == code and message in said.err and "Traceback" not in said.err, (words, said)
    assert not (tmp_path / "out").exists()
