"""Law 5: what is saved comes back bit for bit, holds nothing else, and is refused when it is damaged or foreign."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from heptune import techniques
from heptune.core.errors import TechniqueError
from heptune.models.anatomy import Anatomy
from laws.cases import CASES, MAIN_CASES, Case, assert_same_state, disturb, logits, saved, state


@pytest.mark.parametrize("case", CASES, ids=str)
def test_law_5_restoring_is_bit_equal(case: Case, tmp_path: Path) -> None:
    anatomy, attached = case.trained(torch.float32)
    folder = saved(attached, tmp_path / "artifact")
    held = {name for path in folder.glob("*.safetensors") for name in load_file(path)}
    assert held == set(attached.saved()), "the files hold the technique's own weights and nothing else"

    assert techniques.recognise(folder).name == case.technique
    fresh = case.base(torch.float32)
    restored = techniques.get(case.technique).restore(fresh, folder)
    assert list(restored.parameters) == list(attached.parameters)
    for name, parameter in attached.parameters.items():
        assert torch.equal(restored.parameters[name], parameter), name
        assert restored.parameters[name].requires_grad, name
    assert torch.equal(logits(fresh), logits(anatomy))
    assert restored.settings.cost(fresh.shape) == case.build().cost(fresh.shape)

    again = saved(restored, tmp_path / "again")
    for path in folder.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name


def _refused(case: Case, folder: Path) -> str:
    """The message of the refusal; the model stays as it was."""
    anatomy: Anatomy = case.base(torch.float32)
    before, before_logits = state(anatomy), logits(anatomy)
    with pytest.raises(TechniqueError) as caught:
        techniques.get(case.technique).restore(anatomy, folder)
    assert_same_state(state(anatomy), before)
    assert torch.equal(logits(anatomy), before_logits)
    return str(caught.value)


# The refusals read files, not architectures: one family suffices, and gpt2's files are the foreign ones.
LLAMA = [case for case in MAIN_CASES if case.family == "llama"]


@pytest.mark.parametrize("case", LLAMA, ids=str)
def test_law_5_damaged_files_are_refused(case: Case, tmp_path: Path) -> None:
    _, attached = case.trained(torch.float32)
    whole = {p.name: p.read_bytes() for p in saved(attached, tmp_path / "artifact").iterdir()}
    folder = tmp_path / "artifact"
    for name, content in whole.items():
        damaged = [content[: len(content) // 2], b""]
        damaged += [b"[]", b"{}", b"null"] if name.endswith(".json") else [b"\xff" * 8 + content[8:], content[:-4]]
        for data in damaged:
            (folder / name).write_bytes(data)
            assert name in _refused(case, folder)
        (folder / name).unlink()
        assert name in _refused(case, folder)
        (folder / name).write_bytes(content)
    techniques.get(case.technique).restore(case.base(torch.float32), folder)


@pytest.mark.parametrize("case", LLAMA, ids=str)
def test_law_5_tensors_that_do_not_fit_are_refused(case: Case, tmp_path: Path) -> None:
    _, attached = case.trained(torch.float32)
    folder = saved(attached, tmp_path / "artifact")
    for path in folder.glob("*.safetensors"):
        whole = path.read_bytes()
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        first = next(iter(tensors))
        narrow = {**tensors, first: tensors[first][..., :-1].contiguous()}
        fewer = {name: tensor for name, tensor in tensors.items() if name != first}
        for wrong in (narrow, fewer, {}, {**tensors, "model.unknown.weight": torch.zeros(2)}):
            save_file(wrong, path, metadata=metadata)
            _refused(case, folder)
        path.write_bytes(whole)


@pytest.mark.parametrize("case", LLAMA, ids=str)
def test_law_5_another_architectures_artifact_is_refused(case: Case, tmp_path: Path) -> None:
    _, foreign = Case(case.technique, case.variant, "gpt2").trained(torch.float32)
    message = _refused(case, saved(foreign, tmp_path / "artifact"))
    assert "LlamaForCausalLM" in message


@pytest.mark.parametrize("case", LLAMA, ids=str)
def test_law_5_another_techniques_artifact_is_not_recognised(case: Case, tmp_path: Path) -> None:
    _, attached = case.trained(torch.float32)
    folder = saved(attached, tmp_path / "artifact")
    assert [name for name in techniques.names() if techniques.get(name).recognises(folder)] == [case.technique]
    for config in folder.glob("*.json"):
        config.rename(folder / "something_else.json")
    with pytest.raises(TechniqueError, match="no artifact of a known technique"):
        techniques.recognise(folder)
    with pytest.raises(TechniqueError, match="no folder"):
        techniques.recognise(tmp_path / "absent")


@pytest.mark.parametrize("case", LLAMA, ids=str)
def test_saving_does_not_disturb_training(case: Case, tmp_path: Path) -> None:
    anatomy, attached = case.trained(torch.float32)
    before = state(anatomy)
    folder = saved(attached, tmp_path / "artifact")
    assert_same_state(state(anatomy), before)
    disturb(attached)
    attached.save(folder, "tiny")
    restored = techniques.get(case.technique).restore(case.base(torch.float32), folder)
    for name, parameter in attached.parameters.items():
        assert torch.equal(restored.parameters[name], parameter), name
