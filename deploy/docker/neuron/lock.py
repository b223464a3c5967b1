"""Write requirements.txt: every package that requirements.in leads to, at one version, with its file's hash.

Run by hand, under the Python of the image (3.11, Linux, x86_64), when requirements.in changes:
`python3.11 lock.py`. What the image brings is resolved against and left out.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
# The versions in public.ecr.aws/neuron/pytorch-inference-neuronx:2.8.0-neuronx-py311-sdk2.26.1-ubuntu22.04.
IN_THE_IMAGE = {"torch": "2.8.0"}
HEADER = """\
# Written by lock.py from requirements.in; change that instead. For Python 3.11 on Linux, x86_64.
# Installed with --no-deps --require-hashes: what is not listed here, the image brings.
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        report, pins = Path(folder) / "report.json", Path(folder) / "pins.txt"
        pins.write_text("".join(f"{name}=={version}\n" for name, version in IN_THE_IMAGE.items()))
        options = [
            "--dry-run",
            "--ignore-installed",
            "--only-binary=:all:",
            "--quiet",
            "--report",
            str(report),
        ]
        command = [sys.executable, "-m", "pip", "install", *options]
        subprocess.run([*command, "-c", str(pins), "-r", str(HERE / "requirements.in")], check=True)
        found = json.loads(report.read_text())["install"]
    lines = []
    for each in found:
        name = re.sub(r"[-_.]+", "-", each["metadata"]["name"]).lower()
        if name in IN_THE_IMAGE or _belongs_to_torch(name):
            continue
        sha256 = each["download_info"]["archive_info"]["hashes"]["sha256"]
        lines.append(f"{name}=={each['metadata']['version']} --hash=sha256:{sha256}\n")
    (HERE / "requirements.txt").write_text(HEADER + "".join(sorted(lines)))


def _belongs_to_torch(name: str) -> bool:
    """What torch brings along for a GPU, which the image's torch does without."""
    return name.startswith("nvidia-") or name == "triton"


if __name__ == "__main__":
    main()
