"""How an export is used: as steps for the command line, and as the README that lies in its folder."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heptune.shipping import vllm
from heptune.shipping.job import Job
from heptune.shipping.merged import HEAD
from heptune.shipping.parity import Parity
from heptune.shipping.peft_folder import KEYS_AND_VALUES
from heptune.tasks.tag import Tag
from heptune.techniques import _adapterhub, _peft

_LIBRARIES = {"peft": "peft", "adapterhub": "adapter-transformers", "gguf": "gguf"}


@dataclass(frozen=True)
class Step:
    """What can be done with an export, and the words for it: a command or a program (`language` 'sh' or 'py'), or ''
    where it cannot be done and `what` says why."""

    what: str
    words: str
    language: str = "sh"


def next_steps(job: Job, to: str, made: Path, target: Path) -> list[Step]:
    """The steps for an export that lies in `made` and will lie in `target`."""
    return {"peft": _peft_steps, "hf": _hf_steps, "gguf": _gguf_steps, "adapterhub": _adapterhub_steps}[to](
        job, made, target
    )


def _peft_steps(job: Job, made: Path, target: Path) -> list[Step]:
    config = json.loads((made / _peft.CONFIG_FILE).read_text("utf-8"))
    loader = "AutoModel" if config["task_type"] == "FEATURE_EXTRACTION" else "AutoModelForCausalLM"
    program = (
        f"import peft, transformers\n\nbase = transformers.{loader}.from_pretrained({job.base_name!r})\n"
        f"model = peft.PeftModel.from_pretrained(base, {str(target)!r})"
    )
    steps = [Step("with PEFT", program, "py")]
    if job.quantized:
        steps.append(
            Step(
                "it was trained on the base in 4 bits (NF4, double quantization) and is closest to the run on that", ""
            )
        )
    refused = vllm.refusals(config)
    if job.has_head:
        refused.append("its answers come from a linear head")
    if refused:
        steps.append(Step(f"vLLM does not take it: {'; '.join(refused)}", ""))
    else:
        lora = f"{job.run.folder.resolve().name}={target}"
        words = ["vllm", "serve", job.base_name, "--enable-lora", "--max-lora-rank", str(vllm.max_rank(config))]
        steps.append(Step("with vLLM, on many GPUs", shlex.join([*words, "--lora-modules", lora])))
    if (made / KEYS_AND_VALUES).exists():
        steps.append(Step(f"{KEYS_AND_VALUES} has its keys and values for programs that take a cache", ""))
    return steps


def _hf_steps(job: Job, made: Path, target: Path) -> list[Step]:
    if job.has_head:
        head = (made / HEAD).exists()
        loader = "AutoModel" if head else "AutoModelForTokenClassification"
        program = (
            f"import transformers\n\ntokenizer = transformers.AutoTokenizer.from_pretrained({str(target)!r})\n"
            f"model = transformers.{loader}.from_pretrained({str(target)!r})"
        )
        if head:
            program += (
                f"\nhead = safetensors.torch.load_file({str(target / HEAD)!r})\n"
                'states = model(**tokenizer("a text", return_tensors="pt")).last_hidden_state[0]\n'
                f'logits = {_looked(made)} @ head["weight"].T + head["bias"]'
            )
            program = program.replace("import transformers", "import safetensors.torch\nimport transformers")
        return [Step("with transformers", program, "py")]
    return [
        Step("with vLLM", shlex.join(["vllm", "serve", str(target)])),
        Step("as the base of another tuning", shlex.join(["heptune", "tune", str(target), "DATA"])),
    ]


def _looked(made: Path) -> str:
    looks = json.loads((made / "head.json").read_text("utf-8"))["looks_at"]
    return {"last": "states[-1]", "first": "states[0]", "mean": "states.mean(0)"}.get(looks, "states")


def _gguf_steps(job: Job, made: Path, target: Path) -> list[Step]:
    (file,) = (path.name for path in made.glob("*.gguf"))
    name = job.run.folder.resolve().name
    ollama = Step("with Ollama", f"cd {shlex.quote(str(target))} && ollama create {shlex.quote(name)} -f Modelfile")
    if job.lora_only:
        words = ["llama-server", "-m", "BASE.gguf", "--lora", str(target / file)]
        needs = f"BASE.gguf is {job.base_name} as GGUF; the Modelfile looks for it as base.gguf in the same folder"
        return [Step("with llama.cpp", shlex.join(words)), Step(needs, ""), ollama]
    return [Step("with llama.cpp", shlex.join(["llama-server", "-m", str(target / file)])), ollama]


def _adapterhub_steps(job: Job, made: Path, target: Path) -> list[Step]:
    base = job.run.manifest["base"]["name"]
    steps = [Step("with Heptune", f"import heptune\n\nmodel = heptune.load({base!r}, {str(target)!r})", "py")]
    if not _adapterhub.read_by_library(made):
        return steps
    program = (
        "import adapters, transformers\n\n"
        f"model = transformers.AutoModelForCausalLM.from_pretrained({job.base_name!r})\n"
        f"adapters.init(model)\nmodel.set_active_adapters(model.load_adapter({str(target)!r}))"
    )
    return [*steps, Step("with the library adapters, in an environment of its own", program, "py")]


def card(job: Job, to: str, parities: Sequence[Parity], steps: Sequence[Step]) -> str:
    """The README: what it is, how far it is from the run, and how it is used."""
    manifest = job.run.manifest
    front: dict[str, Any] = {"base_model": job.base_name}
    front["library_name"] = {"peft": "peft", "adapterhub": "adapter-transformers", "gguf": "gguf"}.get(
        to, "transformers"
    )
    front["pipeline_tag"] = "text-generation"
    if job.has_head:
        front["pipeline_tag"] = "token-classification" if isinstance(job.task, Tag) else "text-classification"
    lines = ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items()), "---", ""]
    lines += [f"# {job.run.folder.resolve().name}", ""]
    lines += [
        f"{job.base_name}, tuned by Heptune: technique {manifest['technique']['name']}, task {job.task.name}.",
        "",
    ]
    for parity in parities:
        agreed = f"; {parity.agreed} of {parity.greedy} greedy tokens are the same" if parity.greedy else ""
        lines += [
            f"Loaded by {parity.consumer} its logits differ from the run's by {parity.relative:.1e} of their size "
            f"(largest difference {parity.logits:.1e}){agreed}. See parity.json.",
            "",
        ]
    for step in steps:
        lines += [f"{step.what[:1].upper()}{step.what[1:]}{':' if step.words else '.'}", ""]
        if step.words:
            lines += [f"```{step.language}", step.words, "```", ""]
    return "\n".join(lines)
