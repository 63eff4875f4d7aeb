"""Every way to a base, and every base that is refused: what the error says is part of the contract."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from heptune.core.errors import BaseModelError
from heptune.core.events import Note
from heptune.models import load
from heptune.models.load import fingerprint, load_base, reads_both_ways
from tiny import FAMILIES, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A complete tiny base on the disk; copy it before changing it."""
    folder = tmp_path_factory.mktemp("saved")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def base_folder(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "base"))


def edit(file: Path, **changes) -> None:
    content = json.loads(file.read_text())
    content.update(changes)
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def refusal(name, **options) -> str:
    with pytest.raises(BaseModelError) as caught:
        load_base(str(name), device="cpu", **options)
    return str(caught.value)


class Trap:
    """Unpickling this creates the file; nothing may."""

    def __init__(self, witness: Path):
        self.witness = witness

    def __reduce__(self):
        return (os.mkdir, (str(self.witness),))


# --- what loads


def test_a_folder_gives_the_saved_model_frozen(saved):
    base = load_base(str(saved), device="cpu")
    assert type(base.model).__name__ == "LlamaForCausalLM" and not base.model.training
    assert {(p.dtype, p.device.type, p.requires_grad) for p in base.model.parameters()} == {
        (torch.float32, "cpu", False)
    }
    original = tiny_model("llama").state_dict()
    assert all(torch.equal(value, original[name]) for name, value in base.model.state_dict().items())
    assert (base.name, base.folder_or_id, base.revision) == (str(saved), str(saved.resolve()), None)
    assert base.tokenizer.encode("the text") == tiny_tokenizer().encode("the text")
    assert base.tokenizer.chat_template == tiny_tokenizer().chat_template


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads(family, tmp_path):
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    base = load_base(str(tmp_path), device="cpu")
    tokens = torch.arange(3, 43)[None]
    with torch.inference_mode():
        assert torch.equal(base.model(tokens, use_cache=False).logits, model(tokens, use_cache=False).logits)


def test_dtype_is_obeyed(saved):
    assert load_base(str(saved), device="cpu", dtype=torch.bfloat16).model.dtype is torch.bfloat16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gets_bfloat16(saved):
    parameter = next(load_base(str(saved)).model.parameters())
    assert (parameter.device.type, parameter.dtype) == ("cuda", torch.bfloat16)


def test_tied_weights_are_not_missing(tmp_path):
    tiny_model("qwen3").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    model = load_base(str(tmp_path), device="cpu").model
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_sharded_weights_load_with_the_same_fingerprint(saved, tmp_path):
    tiny_model("llama").save_pretrained(tmp_path, max_shard_size="40KB")
    tiny_tokenizer().save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert load_base(str(tmp_path), device="cpu").fingerprint == load_base(str(saved), device="cpu").fingerprint


def test_the_model_library_stays_silent_and_keeps_its_settings(saved, capfd):
    before = (logging.get_verbosity(), logging.is_progress_bar_enabled())
    load_base(str(saved), device="cpu")
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_an_embedded_name_is_fetched(saved, monkeypatch):
    monkeypatch.setattr(load, "fetch", lambda name, listener: saved)
    base = load_base("smollm2-135m", device="cpu")
    assert (base.name, base.folder_or_id) == ("smollm2-135m", str(saved))


def test_a_hub_id_comes_from_the_hubs_cache(saved, tmp_path, monkeypatch):
    """The hub client's own cache layout, read with the offline switch set."""
    revision = "a" * 40
    repository = tmp_path / "models--someone--tiny"
    shutil.copytree(saved, repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notes: list[Note] = []
    base = load_base("someone/tiny", device="cpu", listener=notes.append)
    assert (base.name, base.folder_or_id, base.revision) == ("someone/tiny", "someone/tiny", revision)
    assert base.fingerprint == fingerprint(saved) and "someone/tiny" in notes[0].text


def test_hub_bases_that_only_have_pickles_or_are_closed(saved, tmp_path, monkeypatch):
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    shutil.copy(saved / "config.json", tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: str(tmp_path))
    files = ["config.json", "pytorch_model.bin"]
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *a, **k: files)
    assert "someone/old has its weights in a pickle (pytorch_model.bin)" in refusal("someone/old")

    for kind, advice in ((GatedRepoError, "is gated: accept its terms"), (RepositoryNotFoundError, "nor such a model")):

        def closed(*a, kind=kind, **k):
            raise kind.__new__(kind)

        monkeypatch.setattr("huggingface_hub.snapshot_download", closed)
        assert advice in refusal("someone/closed")


def test_what_is_not_causal_is_refused_before_its_weights_are_downloaded(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    (tmp_path / "config.json").write_text('{"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}')
    asked = []

    def snapshot(name, *, allow_patterns, **rest):
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert "not a causal language model" in refusal("someone/encoder")
    assert asked == [["config.json"]]


# --- the fingerprint


def test_the_fingerprint_tells_bases_apart(base_folder):
    first = fingerprint(base_folder)
    assert first == fingerprint(base_folder) and len(first) == 64
    seen = {first}
    tiny_model("llama", seed=1).save_pretrained(base_folder)  # other numbers in the same shapes
    seen.add(fingerprint(base_folder))
    tiny_model("llama", seed=1).bfloat16().save_pretrained(base_folder)
    seen.add(fingerprint(base_folder))
    edit(base_folder / "config.json", rms_norm_eps=0.1)
    seen.add(fingerprint(base_folder))
    edit(base_folder / "tokenizer.json", version="2.0")
    seen.add(fingerprint(base_folder))
    assert len(seen) == 5


# --- what is refused


def test_a_missing_folder(tmp_path):
    assert (
        f"there is no folder or file {tmp_path}/nothing; a base is an embedded one (minilm, smollm2-135m)"
        in refusal(tmp_path / "nothing")
    )


def test_an_unknown_name_gets_the_nearest_and_the_form_of_a_hub_id():
    text = refusal("smolm2-135")
    assert "did you mean smollm2-135m or minilm?" in text and "owner/name" in text


@pytest.mark.parametrize("switch", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_and_not_cached_names_the_switch(tmp_path, monkeypatch, switch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setenv(switch, "1")
    text = refusal("someone/something")
    assert f"{switch} is set" in text and "unset it to download it once" in text


def test_a_folder_without_a_configuration_lists_what_is_there(base_folder):
    (base_folder / "config.json").unlink()
    text = refusal(base_folder)
    assert "has no config.json" in text and "model.safetensors" in text and "tokenizer.json" in text
    (base_folder / "adapter_config.json").write_text("{}")
    assert "this is an adapter; name the base" in refusal(base_folder)


def test_an_empty_folder(tmp_path):
    assert "it holds: nothing" in refusal(tmp_path)


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_a_broken_configuration(base_folder, content):
    (base_folder / "config.json").write_text(content)
    assert "is no JSON object" in refusal(base_folder)


def test_remote_code_is_never_executed(base_folder, tmp_path):
    witness = tmp_path / "executed"
    (base_folder / "own.py").write_text(
        f"import os; os.mkdir({str(witness)!r})\nclass OwnConfig: pass\nOwn = OwnConfig\n"
    )
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
    edit(base_folder / "config.json", model_type="own_model", auto_map=own)
    text = refusal(base_folder)
    assert "own.Own" in text and "'own_model'" in text and "never executes code" in text
    # With a model type that transformers has itself, its own class is used and the code beside it is not.
    edit(base_folder / "config.json", model_type="llama")
    edit(base_folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", None]})
    assert type(load_base(str(base_folder), device="cpu").model) is transformers.LlamaForCausalLM
    assert not witness.exists()


def test_an_unknown_model_type_gets_the_nearest(base_folder):
    edit(base_folder / "config.json", model_type="lama")
    assert "the model type 'lama'" in (text := refusal(base_folder)) and "llama" in text.split("near:")[1]
    edit(base_folder / "config.json", model_type=None)
    assert "the model type None" in refusal(base_folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "model.pth"])
def test_a_pickle_is_never_read(base_folder, tmp_path, name):
    (base_folder / "model.safetensors").unlink()
    witness = tmp_path / "executed"
    (base_folder / name).write_bytes(pickle.dumps(Trap(witness)))
    for asked in (base_folder, base_folder / name):
        text = refusal(asked)
        assert name in text and "pickle" in text and "save_pretrained" in text
    assert not witness.exists()
    with (base_folder / name).open("rb") as file:  # the trap does work
        pickle.load(file)
    assert witness.exists()


def test_a_pickle_beside_safetensors_is_left_alone(base_folder, tmp_path):
    (base_folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "executed")))
    load_base(str(base_folder), device="cpu")
    assert not (tmp_path / "executed").exists()


def test_no_weights_at_all(base_folder):
    (base_folder / "model.safetensors").unlink()
    assert "holds no weights: there is no *.safetensors" in refusal(base_folder)


def test_a_lost_shard_is_named(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path, max_shard_size="40KB")
    tiny_tokenizer().save_pretrained(tmp_path)
    lost = sorted(tmp_path.glob("*.safetensors"))[1]
    lost.unlink()
    assert "lacks 1 of its" in (text := refusal(tmp_path)) and lost.name in text
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    assert "is damaged" in refusal(tmp_path)


ENCODER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
T5 = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2}


@pytest.mark.parametrize(
    ("config", "model", "settings"),
    [
        ("T5Config", "T5ForConditionalGeneration", T5),
        ("LlamaConfig", "LlamaForSequenceClassification", ENCODER),
    ],
)
def test_a_model_that_is_neither_causal_nor_an_encoder(tmp_path, config, model, settings):
    configuration = getattr(transformers, config)(vocab_size=64, pad_token_id=0, **settings)
    getattr(transformers, model)(configuration).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    text = refusal(tmp_path)
    assert f"({model}), not a causal language model" in text and "ForCausalLM" in text


@pytest.mark.parametrize("model", ["BertForMaskedLM", "BertModel", "BertForSequenceClassification"])
def test_an_encoder_is_loaded_without_its_heads(tmp_path, model):
    configuration = transformers.BertConfig(vocab_size=64, pad_token_id=0, **ENCODER)
    kept = getattr(transformers, model)(configuration)
    kept.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    base = load_base(str(tmp_path))
    assert type(base.model) is transformers.BertModel and base.model.pooler is None
    own = kept.state_dict()
    for name, tensor in base.model.state_dict().items():
        assert torch.equal(tensor, own[name if name in own else f"bert.{name}"])
    assert reads_both_ways(str(tmp_path))


def test_a_decoder_made_of_bert_is_no_encoder(tmp_path):
    configuration = transformers.BertConfig(vocab_size=64, pad_token_id=0, is_decoder=True, **ENCODER)
    transformers.BertLMHeadModel(configuration).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert not reads_both_ways(str(tmp_path))


@pytest.mark.parametrize("keep", [0, 5, 200, -1, -1000])
def test_cut_off_weights(base_folder, keep):
    file = base_folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    text = refusal(base_folder)
    assert str(file) in text and "the download was cut off; get it again" in text


def test_weights_that_are_something_else(base_folder):
    (base_folder / "model.safetensors").write_text("<html>Not found, but with a friendly page</html>")
    assert "no readable safetensors file" in refusal(base_folder)


def test_missing_parameters_are_not_made_up(base_folder):
    file = base_folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"], tensors["lm_head.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    text = refusal(base_folder)
    assert "no weights for 2 parameters of LlamaForCausalLM (lm_head.weight, model.layers.1.mlp.up_proj.weight)" in text


def test_tensors_that_nobody_uses_are_told(base_folder):
    file = base_folder / "model.safetensors"
    save_file({**load_file(file), "surplus.weight": torch.zeros(3)}, file, metadata={"format": "pt"})
    notes: list[Note] = []
    load_base(str(base_folder), device="cpu", listener=notes.append)
    assert "1 tensors are not used by LlamaForCausalLM (surplus.weight)" in notes[0].text


def test_shapes_that_contradict_the_configuration(base_folder):
    edit(base_folder / "config.json", vocab_size=400)
    assert "cannot load" in (text := refusal(base_folder)) and "causal language model" in text


def test_a_missing_tokenizer(base_folder):
    for file in base_folder.glob("tokenizer*"):
        file.unlink()
    assert "has no tokenizer: none of tokenizer.json" in refusal(base_folder)


def test_a_broken_tokenizer(base_folder):
    (base_folder / "tokenizer.json").write_text("{}")
    assert "the tokenizer in" in (text := refusal(base_folder)) and "cannot be loaded" in text


def test_a_file_that_is_no_base(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    assert "is a file that is no base" in refusal(tmp_path / "notes.txt")
    (tmp_path / "x.gguf").write_text("hello")
    assert "cannot read" in refusal(tmp_path / "x.gguf")


def test_devices_that_are_not_there(saved, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BaseModelError, match="sees no CUDA GPU; use the CPU"):
        load_base(str(saved), device="cuda")
    with pytest.raises(BaseModelError, match="'abacus' is no device"):
        load_base(str(saved), device="abacus")
