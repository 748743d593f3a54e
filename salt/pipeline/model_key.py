"""The key of a pipeline: what decides its clips beside the arguments of a call, by content."""

from __future__ import annotations

from pathlib import Path

from ..checkpoints.lora_merge import lora_files
from ..checkpoints.lora_scale import ADAPTER_CONFIG
from ..checkpoints.tensor_files import find_files
from ..io.content import content_key, path_digest
from ..spec import TINY_FOLDER
from .components import INDEX, TINY_NAME
from .from_options import PipelineOptions, parts_folder

PARTS = (INDEX, "vae", "text_encoder", "tokenizer", "image_encoder", "image_processor")


def model_key(options: PipelineOptions) -> str:
    """A hash of the files that `load_pipeline` reads, and of the options that change a clip: not the device.

    Raises the errors of `load_pipeline` about files and folders that are missing.
    """
    parts, path = parts_folder(options), Path(options.model)
    if options.model == TINY_NAME and not path.exists():
        parts = path = TINY_FOLDER
    files, config = find_files(path)
    loras = [
        (path_digest(file.path), path_digest(Path(file.path).parent / ADAPTER_CONFIG), file.strength)
        for file in lora_files(options.lora)
    ]
    return content_key(
        [path_digest(file) for file in files], config, [path_digest(parts / part) for part in PARTS], loras,
        options.decoder if options.decoder == "wan" else path_digest(options.decoder),
        (options.weights, options.tiles, options.dtype, options.text_precision, options.prefer),
        *([] if options.encoder == "wan" else [path_digest(options.encoder)]),
        *([] if options.student is None else [options.student]),
    )  # fmt: skip
