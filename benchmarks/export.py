"""How far each export is from its run, on a real base: every technique that has a format, and every type of weights.

    python benchmarks/export.py --threads 2

It tunes smollm2-135m on the demo's messages for a few steps, runs the exports that it prints, and keeps what their own
gate measured in docs/results/export.json; the tables are made by docs/generate.py. llama.cpp takes part where
llama-cpp-python is installed.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from commands import run

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
DATA = Path("src/heptune/demo/repair_desk.jsonl")
TUNE = "heptune tune smollm2-135m {data} --technique {technique} --max-steps 12 --batch-size 16 --out {out}"
# Technique -> its exports.
EXPORTS = {
    "lora": (
        "--to peft",
        "--to hf",
        "--to hf --type bf16",
        "--to gguf --type f32",
        "--to gguf --type f16",
        "--to gguf --type q8_0",
        "--to gguf --lora-only",
    ),
    "qlora": ("--to hf",),
    "prefix": ("--to peft",),
    "p_tuning": ("--to peft",),
    "adapter": ("--to adapterhub",),
}


def main() -> None:
    """Tunes a run of each technique and exports it in every way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", default="2")
    parser.add_argument("--out", type=Path, default=Path("runs/export"), help="the folder of the new run directories")
    chosen = parser.parse_args()
    found: dict[str, Any] = {"threads": chosen.threads, "tuned": {}, "exports": []}
    for technique, exports in EXPORTS.items():
        folder = chosen.out / technique
        command = TUNE.format(data=DATA, technique=technique, out=folder)
        if not folder.exists():
            run(command, chosen.threads)
        found["tuned"][technique] = command
        found["versions"] = json.loads((folder / "manifest.json").read_text("utf-8"))["versions"]
        for number, options in enumerate(exports, 1):
            out = chosen.out / f"{technique}-{number}"
            shutil.rmtree(out, ignore_errors=True)
            line = f"heptune export {folder} {options} --out {out}"
            run(line, chosen.threads)
            kept = json.loads((out / "parity.json").read_text("utf-8"))
            size = sum(path.stat().st_size for path in out.iterdir())
            found["exports"].append(
                {"command": line, "technique": technique, "options": options, "bytes": size, "parity": kept["parity"]}
            )
            shutil.rmtree(out)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "export.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    print(f"written to {RESULTS / 'export.json'}; now run docs/generate.py")


if __name__ == "__main__":
    main()
