"""What the engine's tests train on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
