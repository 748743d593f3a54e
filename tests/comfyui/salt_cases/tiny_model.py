"""The sampling nodes on salt-tiny, and the engine's own pipeline on it: what the cases share."""

from __future__ import annotations

from importlib import import_module

import torch

from .session import PACK
from .startup import ROOT

NAME = PACK.comfy_model.__name__.removesuffix(".nodes.adapter.comfy_model")
PROMPT, OTHER = "a fast purple square moving up", "a slow red circle moving right"
WIDGETS = dict(seed=0, nfe="2", steps="", shift=0.0, stepping="sde", cfg=1.0, frames_per_block=0)


def part(path: str):
    return import_module(f"{NAME}.{path}")


ROLLOUTS, NODES, LOADING = part("nodes.nodes_rollout"), part("nodes.nodes_sampling"), part("nodes.adapter.loading")
IO_TYPES = part("nodes.io_types")
STUDENT_SPEC = part("nodes.adapter.student_spec")
TINY = ROOT / "salt" / "assets" / "tiny" / "transformer"


def text(prompt: str):
    return [[part("salt.models.word_embedder").WordEmbedder().encode([prompt]), {}]]


def tiny():
    return LOADING.load_model(TINY)


@torch.inference_mode()
def rollout(model, **changes):
    """LATENT, memory and report of Salt Rollout."""
    inputs = dict(positive=text(PROMPT), seconds=2.0, width=64, height=64, batch_size=1) | WIDGETS | changes
    return ROLLOUTS.SaltRollout.execute(model=model, **inputs).args


@torch.inference_mode()
def extend(model, memory, latents, **changes):
    inputs = dict(positive=text(PROMPT), seconds=2.0) | WIDGETS | changes
    return ROLLOUTS.SaltExtendVideo.execute(model=model, memory=memory, latents=latents, **inputs).args


def pipeline(prompt=PROMPT, **options):
    pipe = part("salt.pipeline").SaltPipeline.from_pretrained("salt-tiny")
    pipe.set_progress_bar_config(disable=True)
    return pipe(prompt, **dict(num_frames=33, num_inference_steps=2, seed=0, output_type="latent") | options).latents


def refusal(call, *arguments, **options) -> str:
    try:
        call(*arguments, **options)
    except BaseException as found:  # noqa: BLE001 - core's interruption is no Exception
        return f"{type(found).__name__}: {found}"
    return "nothing was refused"


def outputs_of(node, **inputs):
    """The outputs of one of ComfyUI's own nodes, in either of its two styles."""
    outputs = node.execute(**inputs) if hasattr(node, "execute") else getattr(node(), node.FUNCTION)(**inputs)
    return outputs.args if hasattr(outputs, "args") else outputs


def output_of(node, **inputs):
    """The first of them."""
    return outputs_of(node, **inputs)[0]
