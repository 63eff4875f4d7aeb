"""AdapterHub's folder, in both directions: adapter_config.json and adapter.safetensors.

The layout of the library `adapters` 1.3. What it has no field for (which of our techniques wrote the folder, with which
settings) stands in the metadata of the weights file, see `_note.py`.

Tensors are named LAYER.PLACE.adapters.NAME.PART: the layer's path in the base model, `attention_adapters` or
`output_adapters`, the adapter's name, and `adapter_down.0.weight`, `adapter_down.0.bias` (an adapter's first part is a
list: linear map, activation), `adapter_up.weight`, `adapter_up.bias`. The library names so for Llama, Mistral and
GPT-2; for other architectures Heptune keeps to the same rule, and only Heptune reads such a folder rightly.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from heptune.core.errors import TechniqueError
from heptune.models.anatomy import Anatomy
from heptune.techniques import _note

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter.safetensors"
PICKLE_FILE = "pytorch_adapter.bin"
HEAD_FILE = "head_config.json"
VERSION = "adapters.1.3.0"

# The adapter's name in what Heptune writes.
NAME = "heptune"

PLACES = {"attention": "attention_adapters", "mlp": "output_adapters"}
PARTS = ("adapter_down.0.weight", "adapter_down.0.bias", "adapter_up.weight", "adapter_up.bias")

# The decoders in which the library's own code puts A where Heptune does. GPT-J's it gives r + h of the attention.
_KNOWN_MODELS = ("llama", "mistral", "gpt2")

# Fields of `config` that are settings of ours.
_SETTINGS = {"reduction_factor": 16, "non_linearity": "relu", "scaling": 1.0, "leave_out": []}

# Fields that tell the variants apart.
_VARIANTS: dict[str, dict[str, Any]] = {
    "pfeiffer": {"mh_adapter": False, "is_parallel": False, "original_ln_before": True},
    "houlsby": {"mh_adapter": True, "is_parallel": False, "original_ln_before": False},
    "parallel": {"mh_adapter": False, "is_parallel": True, "original_ln_before": False},
}

# Fields with the only value under which the tensors mean what our technique computes.
_FIXED: dict[str, Any] = {
    "adapter_residual_before_ln": False,
    "cross_adapter": False,
    "inv_adapter": None,
    "ln_after": False,
    "ln_before": False,
    "original_ln_after": True,
    "output_adapter": True,
    "phm_layer": False,
    "residual_before_ln": True,
    "stochastic_depth": 0.0,
    "use_gating": False,
}

# Fields that say how a training began or what was random in it, or that mean something only beside a field of _FIXED
# with another value. What is written is the library's default, and Heptune's initialisation.
_WITHOUT_EFFECT: dict[str, Any] = {
    "dropout": 0.0,
    "factorized_phm_W": True,
    "factorized_phm_rule": False,
    "hypercomplex_nonlinearity": "glorot-uniform",
    "init_weights": "mam_adapter",
    "init_weights_seed": None,
    "inv_adapter_reduction_factor": None,
    "learn_phm": True,
    "phm_bias": True,
    "phm_c_init": "normal",
    "phm_dim": 4,
    "phm_init_range": 0.0001,
    "phm_rank": 1,
    "shared_W_phm": False,
    "shared_phm_rule": True,
}


def tensor_name(layer_path: str, sublayer: str, part: str) -> str:
    """What one tensor of an adapter is called."""
    return f"{layer_path}.{PLACES[sublayer]}.adapters.{NAME}.{part}"


def write(
    folder: Path,
    anatomy: Anatomy,
    base: str,
    tensors: dict[str, torch.Tensor],
    technique: str,
    settings: dict[str, Any],
    chosen: dict[str, Any],
) -> None:
    """Writes both files. `chosen`: variant, reduction, activation, scaling and leave_out, none of them None."""
    own = {
        "reduction_factor": chosen["reduction"],
        "non_linearity": chosen["activation"],
        "scaling": float(chosen["scaling"]),  # the library takes an integer for no number
        "leave_out": list(chosen["leave_out"]),
    }
    config = {
        "config": dict(sorted({**_FIXED, **_WITHOUT_EFFECT, **_VARIANTS[chosen["variant"]], **own}.items())),
        "hidden_size": anatomy.shape.hidden,
        "model_class": anatomy.shape.architecture,
        "model_name": base,
        "model_type": anatomy.model.config.model_type,
        "name": NAME,
        "version": VERSION,
    }
    _note.write(folder / WEIGHTS_FILE, tensors, technique, settings, anatomy.shape.architecture)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def read_by_library(folder: Path) -> bool:
    """Whether the library puts the adapter in a folder where Heptune does, which is known of some architectures."""
    return json.loads((folder / CONFIG_FILE).read_text("utf-8"))["model_type"] in _KNOWN_MODELS


def recognises(folder: Path, technique: str) -> bool:
    """Whether a folder holds this technique: by Heptune's note where there is one, else a bottleneck of AdapterHub's.

    PEFT writes a file of the same name, with other keys.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        return False
    noted = _note.read(folder / WEIGHTS_FILE)
    if noted is not None:
        return noted.technique == technique
    try:
        return "reduction_factor" in json.loads(path.read_text("utf-8", errors="replace"))["config"]
    except (ValueError, TypeError, KeyError):
        return False


def read_config(folder: Path, anatomy: Anatomy) -> dict[str, Any]:
    """adapter_config.json, if it fits the base.

    Raises `TechniqueError` naming the field that is not understood.
    """
    path = folder / CONFIG_FILE
    try:
        whole = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise TechniqueError(f"{folder} has no {CONFIG_FILE}; it is no adapter in AdapterHub's layout") from None
    except ValueError as error:
        raise TechniqueError(f"{path} is not valid JSON ({error}); the folder is damaged") from None
    wanted = ("config", "hidden_size", "model_type", "name", "version")
    if not isinstance(whole, dict) or not set(wanted) <= whole.keys() or not isinstance(whole["config"], dict):
        raise TechniqueError(f"{path} lacks one of {', '.join(wanted)}; it is no bottleneck adapter of AdapterHub")
    if whole["hidden_size"] != anatomy.shape.hidden:
        raise TechniqueError(
            f"{path}: hidden_size is {whole['hidden_size']}, {anatomy.shape.architecture} has {anatomy.shape.hidden}; "
            "was it trained on another base?"
        )
    return whole


def settings_of(folder: Path, whole: dict[str, Any], activations: Iterable[str]) -> dict[str, Any]:
    """Our settings (variant, reduction, activation, scaling, leave_out) from the library's configuration.

    Raises `TechniqueError` naming the field that is not understood.
    """
    path = folder / CONFIG_FILE
    if not str(whole["version"]).startswith("adapters."):
        raise _not_understood(path, "version", whole["version"])  # before `adapters`, names meant other activations
    if whole["model_type"] not in _KNOWN_MODELS:
        raise _not_understood(path, "model_type", whole["model_type"])
    _check_head(folder)
    config = {**_SETTINGS, **_FIXED, "original_ln_before": False, "is_parallel": False, **whole["config"]}
    known = _SETTINGS.keys() | _FIXED.keys() | _WITHOUT_EFFECT.keys() | _VARIANTS["pfeiffer"].keys()
    for key in sorted(config.keys() - known):
        raise _not_understood(path, key, config[key])
    variant = "parallel" if config["is_parallel"] else "houlsby" if config.get("mh_adapter") else "pfeiffer"
    for key, value in {**_FIXED, **_VARIANTS[variant]}.items():
        if config.get(key) != value:
            raise _not_understood(path, key, config.get(key))
    for key in ("reduction_factor", "scaling"):  # a factor for each layer; a scaling that is learned
        if isinstance(config[key], bool) or not isinstance(config[key], int | float):
            raise _not_understood(path, key, config[key])
    if str(config["non_linearity"]).lower() not in activations:
        raise _not_understood(path, "non_linearity", config["non_linearity"])
    if not isinstance(config["leave_out"], list) or not all(type(layer) is int for layer in config["leave_out"]):
        raise _not_understood(path, "leave_out", config["leave_out"])
    return {
        "variant": variant,
        "reduction": config["reduction_factor"],
        "activation": str(config["non_linearity"]).lower(),
        "scaling": config["scaling"],
        "leave_out": tuple(config["leave_out"]),
    }


def read_tensors(folder: Path, anatomy: Anatomy, name: str) -> dict[str, torch.Tensor]:
    """The tensors, under the names that Heptune gives them.

    Raises `TechniqueError` when the file is missing or damaged; a pickle is never read.
    """
    if not (folder / WEIGHTS_FILE).is_file() and (folder / PICKLE_FILE).is_file():
        raise TechniqueError(
            f"{folder} has {PICKLE_FILE} but no {WEIGHTS_FILE}; a pickle can run code and is never read. Load it with "
            "the adapters library and save it again: model.save_adapter(folder, name, use_safetensors=True)"
        )
    found = {}
    for key, tensor in _note.tensors(folder / WEIGHTS_FILE).items():
        if not key.startswith(f"{anatomy.layers_path}."):  # trained in the library's model without its head
            key = f"{anatomy.model.base_model_prefix}.{key}"
        found[key.replace(f".adapters.{name}.", f".adapters.{NAME}.")] = tensor
    return found


def _check_head(folder: Path) -> None:
    """A head that predicts tokens is the base's own; another one is part of what was trained."""
    path = folder / HEAD_FILE
    if not path.is_file():
        return
    try:
        head = json.loads(path.read_text("utf-8"))
        # Heads of transformers' own classes have no configuration.
        key, value = ("model_class", head["model_class"]) if head["config"] is None else ("head_type", head["config"])
        value = value if isinstance(value, str) else value["head_type"]
    except (ValueError, TypeError, KeyError):
        raise TechniqueError(f"{path} is not understood; nothing was loaded") from None
    if not value.endswith(("ForCausalLM", "LMHeadModel", "causal_lm")):
        raise _not_understood(path, key, value)


def _not_understood(path: Path, key: str, value: Any) -> TechniqueError:
    return TechniqueError(f"{path}: {key} = {value!r} is not understood; nothing was loaded")
