"""The commands that create the files that recipes name: downloads from the hub, or an earlier stage."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

# Wan's repositories on the hub have two layouts. Those whose names end in -Diffusers have transformer/, text_encoder/,
# tokenizer/ and vae/; the others are one folder with the text encoder and the VAE as .pth files, which are not read.
WAN_FOLDER = re.compile(r"(Wan2\.1-(?:T2V-1\.3B|T2V-14B|I2V-14B-480P|I2V-14B-720P)|Wan2\.2-TI2V-5B)(-Diffusers)?$")
WAN_PTH_FILES = ("models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth", "Wan2.2_VAE.pth")
RUN_EXPORT = re.compile(r"runs/([^/]+)/export/\1\.safetensors$")
FILES = {  # path in the repository: repository
    "checkpoints/ode_init.pt": "gdhe17/Self-Forcing",
    "vidprom_filtered_extended.txt": "gdhe17/Self-Forcing",
    "chunkwise/causal_ode.pt": "zhuhz22/Causal-Forcing",
    "framewise/causal_ode.pt": "zhuhz22/Causal-Forcing",
    "checkpoints/salt_cf.pt": "domiso/Salt",
    "checkpoints/salt_ll.pt": "domiso/Salt",
}


def download_command(path: str) -> str:
    """The command after which `path` exists, or for a Wan folder the same name with -Diffusers; empty where unknown."""
    wanted = PurePosixPath(path.replace("\\", "/"))
    if run := RUN_EXPORT.search(str(wanted)):
        return f"python -m train distill {run[1]}"
    for folder in (wanted, *wanted.parents):
        if match := WAN_FOLDER.match(folder.name):
            name = f"{match[1]}-Diffusers"
            return f"hf download Wan-AI/{name} --local-dir {folder.with_name(name)}"
    for remote, repository in FILES.items():
        parts = PurePosixPath(remote).parts
        if wanted.parts[-len(parts) :] == parts:
            return f"hf download {repository} {remote} --local-dir {PurePosixPath(*wanted.parts[: -len(parts)])}"
    return ""


def with_download(problem: str, path: str) -> str:
    """A sentence about a missing path, followed by the command that downloads it, where there is one."""
    command = download_command(path)
    return f"{problem}: {command}" if command else problem
