"""The kinds of files and answers that are read: how to make a good one, and how the project reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from salt.checkpoints import describe, read_checkpoint, save_wan
from salt.checkpoints.lora import read_lora
from salt.cli.memory_files import load_clip_memory
from salt.cli.run_workflow import as_prompt, read_graph
from salt.comfy_client.client import ComfyServer, results
from salt.io.content import content_key
from salt.io.model_folders import check_config, check_model_folder
from salt.io.prompt_files import read_prompts
from salt.io.video import read_image
from salt.memory import KVMemory, MemoryPolicy, load_memory, save_memory
from salt.memory.serialization import save_clip
from salt.models.taehv import load_taehv
from salt.models.text_encoder import CONFIG_DEFAULTS, CachedTextEncoder
from salt.models.tokenizer import load_tokenizer
from salt.pipeline.components import check_configs, read_index
from salt.spec import StudentSpec
from tests.helpers import tiny_recipes, tiny_system
from tests.helpers.small_memory import GEOMETRY, write
from tests.salt.test_run_workflow import INFO, OUTPUTS, PROMPT, browser_graph
from train.config.loader import RECIPES, load_recipe
from train.data.clip_dataset import ClipDataset
from train.data.start_images import StartImages
from train.distill import save_recipe
from train.distributed.checkpointing import COMPLETE_FILE, CheckpointFolder

ONE_HEAD = dict(text_dim=32, num_attention_heads=1, attention_head_dim=128)


@dataclass(frozen=True)
class Kind:
    """A kind of file. file: the one that is mutated, in a folder of its own. read: with the folder's path.

    metadata: a JSON text in the header of a safetensors file, mutated as JSON. heals: the reader makes a bad file anew,
    and raises nothing.
    """

    file: str
    make: Callable[[Path], object]
    read: Callable[[Path], object]
    metadata: str = ""
    heals: bool = False


def student(path: Path) -> None:
    save_wan(tiny_system.student(text_dim=32), path, spec=StudentSpec())


def torch_file(path: Path) -> None:
    torch.save({"generator": tiny_system.student(**ONE_HEAD).state_dict(), "step": 3}, path)


def sharded(path: Path) -> None:
    weights = tiny_system.student(**ONE_HEAD).state_dict()
    save_file(dict(weights), path.parent / "a.safetensors")
    path.write_text(json.dumps({"weight_map": dict.fromkeys(weights, "a.safetensors")}))


def read_weights(path: Path) -> None:
    describe(path)
    read_checkpoint(path).state_dict  # noqa: B018 (reads every weight)


def lora(path: Path) -> None:
    name = "diffusion_model.blocks.0.self_attn.q"
    factors = {f"{name}.lora_A.weight": torch.ones(4, 32), f"{name}.lora_B.weight": torch.ones(32, 4)}
    save_file(factors, path, {"lora_adapter_metadata": json.dumps({"transformer.r": 4, "transformer.lora_alpha": 8})})


@torch.no_grad()
def _memory() -> KVMemory:
    made = KVMemory(MemoryPolicy("sink", 12, 3), GEOMETRY)
    for _ in range(3):
        write(made)
    return made


def clip(path: Path) -> None:
    parts = [{"prompt": "a", "seed": 1, "num_frames": 21}]
    save_clip(path, _memory(), _memory(), torch.zeros(1, 16, 9, 2, 4), parts)


def read_clip(path: Path) -> None:
    load_clip_memory(tiny_system.pipeline(), path, guided=True)


def picture(path: Path) -> None:
    import imageio.v3 as iio

    iio.imwrite(path, torch.randint(0, 255, (20, 30, 3), dtype=torch.uint8).numpy())


def index(path: Path) -> None:
    words = {"dim": 32, "max_length": 4, "vocabulary": ["a", "b"]}
    student = StudentSpec().to_dict()
    values = {"_class_name": "SaltPipeline", "words": words, "default_size": [32, 32], "student": student}
    path.write_text(json.dumps(values))


def read_folder(path: Path) -> None:
    check_model_folder(path.parent)
    read_index(path.parent)


def vae_config(path: Path) -> None:
    path.write_text(json.dumps({key: value for key, value in tiny_system.vae().config.items() if key[0] != "_"}))


def text_config(path: Path) -> None:
    path.write_text(json.dumps(tiny_system.umt5_models()[1].config.to_dict(), default=str))


def tokenizer(path: Path) -> None:
    tiny_system.umt5_models()[0].save_pretrained(path.parent)


def read_prompt(path: Path) -> None:
    as_prompt(read_graph(path), INFO, path)


class Answers(ComfyServer):
    """A server whose answers are in a file, by path; all of the file is the answer where it is no JSON."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"http://{path.name}")
        self.content = path.read_bytes()

    def request(self, path: str, body: dict[str, Any] | None = None) -> bytes:
        try:
            answers = json.loads(self.content)
            return json.dumps(answers[path.split("?")[0].rpartition("/")[2] or path]).encode()
        except (ValueError, KeyError, TypeError, RecursionError):
            return self.content


def answers(path: Path) -> None:
    record = {"outputs": OUTPUTS, "status": {"messages": [["execution_success", {}]]}}
    queue = {"queue_running": [[0, "id", {}, {}, []]], "queue_pending": [[1, "other"]]}
    found = {"object_info": INFO, "prompt": {"prompt_id": "id"}, "queue": queue, "id": {"id": record}}
    path.write_text(json.dumps(found))


def read_answers(path: Path) -> None:
    server = Answers(path)
    prompt = as_prompt(browser_graph(), server.node_info(), path)
    number = server.queue(prompt)
    server.queue_position(number)
    record = server.history(number)
    if record is not None:
        list(results(record))


def recipe(path: Path) -> None:
    path.write_text((RECIPES / "parts" / "tiny.yaml").read_text())


def run_folder(path: Path) -> None:
    save_recipe(_recipe_of(path))


def _recipe_of(path: Path):
    recipe = tiny_recipes.recipe(path.parent / "models")
    return replace(recipe, run=replace(recipe.run, out=str(path.parent)))


def checkpoint(path: Path) -> None:
    CheckpointFolder(path.parents[1], keep=2).save(1, {"trainer": {"update": 1, "x": torch.zeros(3)}})


def embeddings(path: Path) -> CachedTextEncoder:
    return CachedTextEncoder(Encoder, path.parent, "fuzz", "key", 8)


class Encoder:
    dim, max_length = 8, 6

    def encode(self, prompts: list[str]) -> torch.Tensor:
        return torch.ones(len(prompts), self.max_length, self.dim)


def read_embedding(path: Path) -> None:
    found = embeddings(path).encode(["a b"])
    if found.shape != (1, 6, 8):
        raise ValueError(f"{path}: embeddings of shape {list(found.shape)}")


def start_image(path: Path) -> None:
    tensors = {"image": torch.zeros(2, 4), "channels": torch.zeros(20, 6, 4, 4)}
    save_file(tensors, path, {"prompt": "a", "key": "x"})


def read_start_image(path: Path) -> None:
    recipe = _recipe_of(path)
    data = replace(recipe.data, images=str(path.parent), prompts="p.txt")
    StartImages(replace(recipe, data=data), torch.device("cpu"), ["a"])([0])


def dataset_clip(path: Path) -> None:
    metadata = {"prompt": "a", "key": content_key("x")}
    save_file({"latents": torch.zeros(16, 6, 4, 4), "trajectory": torch.zeros(8, 16, 6, 4, 4)}, path, metadata)


def read_dataset_clip(path: Path) -> None:
    recipe = _recipe_of(path)
    recipe = replace(recipe, stage="ode", data=replace(recipe.data, clips=str(path.parent)))
    ClipDataset(recipe)(0, 16)


def taehv(path: Path) -> None:
    torch.save({"decoder.0.weight": torch.zeros(4, 4, 3, 3)}, path)


EMBEDDING = CachedTextEncoder(Encoder, Path("."), "fuzz").path("a b").name
KINDS = {
    "safetensors": Kind("student.safetensors", student, read_weights),
    "config": Kind("student.safetensors", student, read_weights, "config"),
    "spec": Kind("student.safetensors", student, read_weights, "salt"),
    "torch": Kind("student.pt", torch_file, read_weights),
    "shards": Kind("model.safetensors.index.json", sharded, read_weights),
    "lora": Kind("lora.safetensors", lora, read_lora),
    "lora_metadata": Kind("lora.safetensors", lora, read_lora, "lora_adapter_metadata"),
    "taehv": Kind("taew2_1.pth", taehv, load_taehv),
    "memory": Kind("memory.safetensors", lambda path: save_memory(_memory(), path), load_memory),
    "memory_info": Kind("memory.safetensors", lambda path: save_memory(_memory(), path), load_memory, "salt_memory"),
    "clip": Kind("clip.safetensors", clip, read_clip),
    "clip_info": Kind("clip.safetensors", clip, read_clip, "salt_clip"),
    "index": Kind("model_index.json", index, read_folder),
    "vae_config": Kind("vae/config.json", vae_config, lambda path: check_configs(path.parents[1])),
    "text_config": Kind("config.json", text_config, lambda path: check_config(path, CONFIG_DEFAULTS)),
    "tokenizer": Kind("tokenizer.json", tokenizer, lambda path: load_tokenizer(path.parent)),
    "tokenizer_config": Kind("tokenizer_config.json", tokenizer, lambda path: load_tokenizer(path.parent)),
    "prompt": Kind("prompt.json", lambda path: path.write_text(json.dumps(PROMPT)), read_prompt),
    "workflow": Kind("workflow.json", lambda path: path.write_text(json.dumps(browser_graph())), read_prompt),
    "server": Kind("answers.json", answers, read_answers),
    "recipe": Kind("recipe.yaml", recipe, load_recipe),
    "run_folder": Kind("recipe.yaml", run_folder, lambda path: save_recipe(_recipe_of(path))),
    "checkpoint": Kind(
        f"step-00000001/{COMPLETE_FILE}",
        checkpoint,
        lambda path: CheckpointFolder(path.parents[1], keep=2).latest(),
        heals=True,
    ),
    "prompts": Kind("prompts.txt", lambda path: path.write_text("a red circle\na square\n"), read_prompts),
    "picture": Kind("picture.png", picture, read_image),
    "embedding": Kind(EMBEDDING, lambda path: embeddings(path).encode(["a b"]), read_embedding, heals=True),
    "start_image": Kind("000000.safetensors", start_image, read_start_image),
    "dataset_clip": Kind("000000.safetensors", dataset_clip, read_dataset_clip),
}
