"""Loads a base: an embedded one, a local folder, a hub id or a GGUF file.

Everything that can be told from the small files is checked before a weight is read, so that a wrong base is refused in
a moment and with its reason. Code that comes with a base is never executed and a pickle is never read.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers import __version__ as transformers_version
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from heptune.core.errors import BaseModelError
from heptune.core.events import Listener, Note, ignore
from heptune.core.registry import nearest
from heptune.models.anatomy import ENCODERS, without_pooler
from heptune.models.embedded import DEFAULT, EMBEDDED, fetch, offline_switch, source_of
from heptune.models.gguf_file import read_gguf
from heptune.models.quiet import quiet

# What loads models is imported where one is loaded: it takes 40 MiB that a tokenizer alone does not need.
if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_KNOWN = (
    f"a base is an embedded one ({', '.join(sorted(EMBEDDED))}), a folder with config.json, *.safetensors and a "
    "tokenizer, a .gguf file, or a hub id of the form owner/name, like HuggingFaceTB/SmolLM2-135M-Instruct"
)


@dataclass(frozen=True)
class Base:
    """A loaded base: the model is in evaluation mode and every parameter is frozen.

    `name` is what was asked for, `folder_or_id` where it came from, `revision` the commit on the hub or the package
    that it was taken from (None for a local folder). `fingerprint` is a SHA-256 that tells bases apart: over the
    configuration, the tokenizer, and every tensor's name, type, shape and first bytes.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    folder_or_id: str
    revision: str | None
    fingerprint: str


def load_base(
    name: str, *, dtype: torch.dtype | None = None, device: str | None = None, listener: Listener = ignore
) -> Base:
    """Loads the base called `name` with its tokenizer.

    `device` is 'cpu', 'cuda' and the like; by default a GPU where there is one. `dtype` is the weights' type; by
    default float32 on a CPU and bfloat16 on a GPU. Raises `BaseModelError`, which says what is wrong with the base.
    """
    place = _device(device)
    if dtype is None:
        dtype = torch.bfloat16 if place.type == "cuda" else torch.float32
    path = Path(name).expanduser()
    if name in EMBEDDED and not path.exists():
        folder = fetch(name, listener=listener)
        revision = source_of(folder).get("revision")
        base = _load_folder(name, folder, dtype, listener, where=str(folder), revision=revision)
    elif path.is_dir():
        base = _load_folder(name, path, dtype, listener, where=str(path.resolve()))
    elif path.is_file():
        base = _load_file(name, path, dtype)
    else:
        folder = _from_hub(name, listener)
        base = _load_folder(name, folder, dtype, listener, where=name, revision=folder.name)
    base.model.to(place)
    base.model.eval().requires_grad_(False)
    return base


def fetch_base(name: str, *, listener: Listener = ignore) -> None:
    """Brings the files of the base called `name` onto this machine, where they are not yet; nothing is loaded.

    Raises `BaseModelError` as `load_base` does.
    """
    path = Path(name).expanduser()
    if name in EMBEDDED and not path.exists():
        fetch(name, listener=listener)
    elif not path.exists():
        _from_hub(name, listener)


def load_tokenizer(name: str, *, listener: Listener = ignore) -> PreTrainedTokenizerBase:
    """The tokenizer of the base called `name` alone; from a hub only small files are fetched.

    Raises `BaseModelError` as `load_base` does.
    """
    path = Path(name).expanduser()
    if name in EMBEDDED and not path.exists():
        return _tokenizer(fetch(name, listener=listener), name)
    if path.is_dir():
        return _tokenizer(path, str(path.resolve()))
    if path.is_file():
        return _load_file(name, path, torch.float32).tokenizer
    return _tokenizer(_from_hub(name, listener, weights=False), name)


def read_config(name: str, *, listener: Listener = ignore) -> dict[str, Any]:
    """The configuration of the base called `name`, without its weights: of a GGUF file its header is read, from a hub
    config.json alone is fetched. Raises `BaseModelError` as `load_base` does."""
    path = Path(name).expanduser()
    if name in EMBEDDED and not path.exists():
        folder = fetch(name, listener=listener)
    elif path.is_dir():
        folder = path
    elif path.is_file():
        if path.suffix != ".gguf":
            raise BaseModelError(f"{path} is a file that is no base; {_KNOWN}")
        try:
            return AutoConfig.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True).to_dict()
        except Exception as problem:
            raise BaseModelError(f"transformers cannot read {path}: {_first_line(problem)}") from problem
    else:
        folder = _from_hub(name, listener, only_config=True)
    _check_config(folder, name)
    return json.loads((folder / "config.json").read_text("utf-8"))


def fingerprint(folder: Path) -> str:
    """SHA-256 over config.json, tokenizer.json and the head of every tensor in `folder`; reads a few MB at the most.

    Raises `BaseModelError` where a safetensors file is damaged.
    """
    digest = hashlib.sha256()
    for name in ("config.json", "tokenizer.json"):
        file = folder / name
        digest.update(name.encode() + b"\0" + (file.read_bytes() if file.is_file() else b"") + b"\0")
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors.update(_tensor_heads(file))
    for name in sorted(tensors):  # not by file: how a base is cut into files does not matter
        digest.update(name.encode() + b"\0" + tensors[name] + b"\0")
    return digest.hexdigest()


def _tensor_heads(file: Path) -> dict[str, bytes]:
    """Each tensor's type, shape and first 256 bytes; the header of safetensors is an 8-byte length and JSON."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        try:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > size:
                raise ValueError(f"its header should have {length} bytes and the whole file has {size}")
            header = json.loads(opened.read(length))
            header.pop("__metadata__", None)
            spans = {name: tensor["data_offsets"] for name, tensor in header.items()}
            end = 8 + length + max((span[1] for span in spans.values()), default=0)
        except (struct.error, ValueError, KeyError, TypeError, AttributeError) as problem:
            raise BaseModelError(
                f"{file} is no readable safetensors file: {problem}; it is damaged or the download was cut off; "
                "get it again"
            ) from problem
        if end != size:
            raise BaseModelError(
                f"{file} has {size} bytes where its header promises {end}; it is damaged or the download was cut off; "
                "get it again"
            )
        heads = {}
        for name, (first, last) in spans.items():
            opened.seek(8 + length + first)
            head = opened.read(min(256, last - first))
            heads[name] = f"{header[name]['dtype']}{header[name]['shape']}".encode() + head
    return heads


def _device(device: str | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as problem:
        raise BaseModelError(f"{device!r} is no device; use cpu, cuda or cuda:0") from problem
    if place.type == "cuda" and not torch.cuda.is_available():
        raise BaseModelError(
            f"device {device!r} was asked for, but this PyTorch ({torch.__version__}) sees no CUDA GPU; use "
            "the CPU, or install a driver and a CUDA build of PyTorch"
        )
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise BaseModelError(f"device {device!r} was asked for, but there are only {torch.cuda.device_count()} GPUs")
    return place


def _load_file(name: str, path: Path, dtype: torch.dtype) -> Base:
    if any(path.match(pattern) for pattern in _PICKLES):
        raise _pickle_error(path, path.name)
    if path.suffix != ".gguf":
        raise BaseModelError(f"{path} is a file that is no base; {_KNOWN}")
    try:
        model, tokenizer = read_gguf(path, dtype)
    except Exception as problem:
        raise BaseModelError(
            f"transformers {transformers_version} cannot read {path}: {_first_line(problem)}; it reads the GGUF files "
            "of the common architectures; take the base's original folder or hub id instead"
        ) from problem
    with path.open("rb") as file:  # the whole file: a GGUF's head does not tell its weights
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Base(name, model, tokenizer, str(path.resolve()), None, digest)


def _load_folder(
    name: str, folder: Path, dtype: torch.dtype, listener: Listener, *, where: str, revision: str | None = None
) -> Base:
    _check_config(folder, where)
    _check_weights(folder, where)
    mark = fingerprint(folder)
    tokenizer = _tokenizer(folder, where)
    both_ways = _is_encoder(folder)
    from transformers import AutoModel, AutoModelForCausalLM

    try:
        with quiet():
            model, info = (AutoModel if both_ways else AutoModelForCausalLM).from_pretrained(
                folder,
                dtype=dtype,
                trust_remote_code=False,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as problem:
        raise BaseModelError(
            f"transformers {transformers_version} cannot load {where} as "
            f"{'an encoder' if both_ways else 'a causal language model'}: {_first_line(problem)}"
        ) from problem
    if both_ways:
        model = without_pooler(model)
        info["missing_keys"] = {name for name in info["missing_keys"] if not name.startswith("pooler.")}
    if missing := sorted(info["missing_keys"]):
        raise BaseModelError(
            f"{where} has no weights for {len(missing)} parameters of {type(model).__name__} ({_some(missing)}); they "
            "would start as random numbers; take a complete checkpoint, or the right config.json for this one"
        )
    if unused := sorted(info["unexpected_keys"]):
        listener(Note(f"{where}: {len(unused)} tensors are not used by {type(model).__name__} ({_some(unused)})"))
    return Base(name, model, tokenizer, where, revision, mark)


def _tokenizer(folder: Path, where: str) -> PreTrainedTokenizerBase:
    _check_tokenizer(folder, where)
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as problem:
        raise BaseModelError(
            f"the tokenizer in {where} cannot be loaded: {_first_line(problem)}; transformers' AutoTokenizer has to be "
            "able to load it without remote code"
        ) from problem


def _check_config(folder: Path, where: str) -> None:
    """Refuses what is no causal language model of transformers itself, from config.json alone."""
    file = folder / "config.json"
    if not file.is_file():
        found = sorted(x.name for x in folder.iterdir())
        hint = ""
        if "adapter_config.json" in found:
            hint = "this is an adapter; name the base that it was trained on; "
        elif ggufs := [x for x in found if x.endswith(".gguf")]:
            hint = f"name the GGUF file itself ({folder / ggufs[0]}); "
        raise BaseModelError(f"{where} has no config.json (it holds: {_some(found) or 'nothing'}); {hint}{_KNOWN}")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        kind = config.get("model_type")
    except (ValueError, AttributeError) as problem:
        raise BaseModelError(f"{file} is no JSON object ({problem}); get the file again") from problem
    if kind not in CONFIG_MAPPING_NAMES:
        if config.get("auto_map"):
            own = _some(map(str, config["auto_map"].values()))
            raise BaseModelError(
                f"{where} needs its own Python code ({own}): its model type {kind!r} is not part of transformers "
                f"{transformers_version}, and Heptune never executes code that comes with a base; take a base whose "
                "architecture transformers knows"
            )
        close = difflib.get_close_matches(str(kind), CONFIG_MAPPING_NAMES, n=3)
        hint = f" (near: {', '.join(close)})" if close else ""
        raise BaseModelError(
            f"{where} has the model type {kind!r}, which transformers {transformers_version} does not know{hint}; a "
            "newer transformers may, or config.json is wrong"
        )
    _check_causal(kind, config.get("architectures") or [], where)


def _check_causal(kind: str, architectures: list[str], where: str) -> None:
    """`kind` alone does not tell: transformers has a causal variant of BERT, too, whose head no BERT file holds. An
    encoder is let through: it can be tuned with a linear head."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    ours = {causal} if isinstance(causal, str) else set(causal or ())
    plain = [x for x in architectures if x.endswith(("ForCausalLM", "LMHeadModel"))]
    if kind in ENCODERS or (ours and (not architectures or plain or ours & set(architectures))):
        return
    what = f"{kind} model" + (f" ({', '.join(architectures)})" if architectures else "")
    raise BaseModelError(
        f"{where} is a {what}, not a causal language model: it has no head that predicts the next token from those "
        f"before it; needed is an architecture that ends with ForCausalLM or LMHeadModel, like {DEFAULT}, or an "
        f"encoder ({', '.join(sorted(ENCODERS))})"
    )


def _is_encoder(folder: Path) -> bool:
    """Whether the model in a folder reads a text both ways: an encoder's type, and no causal head on it."""
    return both_ways_of(json.loads((folder / "config.json").read_text(encoding="utf-8")))


def reads_both_ways(name: str, *, listener: Listener = ignore) -> bool:
    """Whether the base called `name` is an encoder; no weights are read. Raises `BaseModelError` as `load_base`."""
    return both_ways_of(read_config(name, listener=listener))


def both_ways_of(config: Mapping[str, Any]) -> bool:
    """Whether this configuration is an encoder's, with no causal head on it."""
    heads = [x for x in config.get("architectures") or [] if x.endswith(("ForCausalLM", "LMHeadModel"))]
    return config.get("model_type") in ENCODERS and not config.get("is_decoder") and not heads


def _check_weights(folder: Path, where: str) -> None:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise BaseModelError(f"{index} is damaged ({_first_line(problem)}); get the file again") from problem
        if lost := sorted(x for x in shards if not (folder / x).is_file()):
            raise BaseModelError(
                f"{where} lacks {len(lost)} of its {len(shards)} weight files ({_some(lost)}); get them again"
            )
        return
    if any(folder.glob("*.safetensors")):
        return
    if pickles := sorted(x.name for pattern in _PICKLES for x in folder.glob(pattern)):
        raise _pickle_error(folder, _some(pickles))
    raise BaseModelError(
        f"{where} holds no weights: there is no *.safetensors in it "
        f"(it holds: {_some(x.name for x in folder.iterdir())}); get the complete folder"
    )


def _pickle_error(where: Path | str, files: str) -> BaseModelError:
    return BaseModelError(
        f"{where} has its weights in a pickle ({files}), which can execute code while it is read; Heptune reads "
        "safetensors only; if you trust it, convert it once yourself: "
        'python -c "from transformers import AutoModelForCausalLM as A, AutoTokenizer as T; '
        "A.from_pretrained('OLD').save_pretrained('NEW'); "
        "T.from_pretrained('OLD').save_pretrained('NEW')\""
    )


def _check_tokenizer(folder: Path, where: str) -> None:
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise BaseModelError(
            f"{where} has no tokenizer: none of {', '.join(_TOKENIZER_FILES)} is there; copy the tokenizer files of "
            "the model that it was made from into the folder"
        )


def _from_hub(name: str, listener: Listener, weights: bool = True, only_config: bool = False) -> Path:
    """The folder of the hub's own cache with the base `name`, downloaded as far as needed: the small files first."""
    if not _HUB_ID.fullmatch(name):
        if "/" in name or "\\" in name or name.startswith((".", "~")):
            raise BaseModelError(f"there is no folder or file {name}; {_KNOWN}")
        close = nearest(name, EMBEDDED)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise BaseModelError(f"there is no base {name!r}; {hint}{_KNOWN}")
    small = _snapshot(name, ["config.json"])
    _check_config(small, name)
    if only_config:
        return small
    listener(Note(f"loading {name} from the hub or its cache"))
    kinds = ["*.json", "*.jinja", "*.txt", "*.model"]
    folder = _snapshot(name, [*kinds, "*.safetensors"] if weights else kinds, small.name)
    if weights and not any(folder.glob("*.safetensors")) and not offline_switch():
        pickles = [x for x in _hub_files(name, small.name) if any(Path(x).match(p) for p in _PICKLES)]
        if pickles:
            raise _pickle_error(name, _some(pickles))
    return folder


def _snapshot(name: str, patterns: list[str], revision: str | None = None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    switch = offline_switch()
    try:
        with quiet():
            folder = snapshot_download(
                name,
                revision=revision,
                allow_patterns=patterns,
                # Sub-folders and consolidated files hold the same weights in other formats.
                ignore_patterns=["*/*", "consolidated*"],
                local_files_only=switch is not None,
            )
    except GatedRepoError as problem:
        raise BaseModelError(f"{name} is gated: accept its terms on the hub and log in (hf auth login)") from problem
    except RepositoryNotFoundError as problem:
        raise BaseModelError(
            f"there is neither a folder {name} nor such a model on the hub (or it is private: hf auth login); {_KNOWN}"
        ) from problem
    except LocalEntryNotFoundError as problem:
        cause = f"{switch} is set, which forbids asking the hub" if switch else "the hub could not be reached"
        raise BaseModelError(
            f"there is no folder {name}, {name} is not in the hub's cache on this machine, and {cause}; "
            f"{'unset it' if switch else 'go online'} to download it once, or use {DEFAULT} "
            "or a local folder"
        ) from problem
    except Exception as problem:
        raise BaseModelError(f"{name} could not be downloaded from the hub: {_first_line(problem)}") from problem
    return Path(folder)


def _hub_files(name: str, revision: str) -> list[str]:
    from huggingface_hub import HfApi

    try:
        return [str(x) for x in HfApi().list_repo_files(name, revision=revision)]
    except Exception:  # only for a better message; the folder's own check speaks otherwise
        return []


def _some(names: Any, count: int = 8) -> str:
    """The first few of `names`, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def _first_line(problem: BaseException) -> str:
    lines = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {lines[0]}" if lines else type(problem).__name__
