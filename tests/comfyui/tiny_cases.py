"""Runs inside ComfyUI's own Python: Load Salt Tiny and Salt Decode, beside core's nodes and our decoder."""

from __future__ import annotations

import torch
from node_cases import PROMPT, part, pipeline, refusal
from play import PACK, answer, error

TINY, DECODE = part("nodes.tiny"), part("nodes.decode")


@torch.inference_mode()
def loaded():
    """Core's CLIP Text Encode, Salt Rollout, core's VAE Decode and VAE Encode on the three outputs."""
    import nodes as core

    model, clip, vae = TINY.SaltLoadTiny.execute().args
    positive = core.CLIPTextEncode().encode(clip, PROMPT)[0]
    asked = dict(seed=0, nfe="8", steps="", shift=5.0, stepping="sde", cfg=1.0, frames_per_block=0)
    latent, *_ = part("nodes.rollouts").SaltRollout.execute(
        model=model, positive=positive, seconds=2.0, width=64, height=64, batch_size=1, **asked
    ).args  # fmt: skip
    ours = pipeline(num_inference_steps=8)
    images = core.VAEDecode().decode(vae, latent)[0]
    engine = part("salt.pipeline").SaltPipeline.from_pretrained("salt-tiny")
    pixels = part("salt.decode").WanStreamDecoder(engine.vae).decode(ours)[0].permute(1, 2, 3, 0)
    again = core.VAEEncode().encode(vae, images)[0]["samples"]
    return {
        "latents": error(model.model.process_latent_in(latent["samples"]), ours),
        "images": list(images.shape[-4:]),
        "pixels": (images.reshape(pixels.shape) - ((pixels + 1) / 2).clamp(0, 1)).abs().max().item(),
        "round trip": error(again, latent["samples"]),
        "word": refusal(core.CLIPTextEncode().encode, clip, "a red dragon"),
    }


@torch.inference_mode()
def streaming():
    """Largest difference to core's whole-clip decode, by number of latent frames; how the cache grows; batches."""
    vae = TINY.load_vae()
    found = {}
    for frames in (1, 2, 3, 7, 21):
        z = torch.randn(2, 16, frames, 8, 8, generator=torch.Generator().manual_seed(frames))
        images, video = DECODE.SaltDecode.execute({"samples": z}, vae, 16.0).args
        whole = vae.decode(z).reshape(images.shape)
        found[str(frames)] = (images - whole).abs().max().item()
        assert video.get_components().images.shape[0] == 4 * frames - 3
    stream, sizes = DECODE.ComfyStreamDecoder(vae), []
    for _ in range(6):
        stream.decode(torch.randn(1, 16, 3, 8, 8))
        sizes.append(sum(t.nbytes for t in stream.cache if isinstance(t, torch.Tensor)))
    found["cache"] = sizes
    latents = torch.randn(1, 16, 6, 8, 8)
    stream.reset()
    blocks = torch.cat([stream.decode(x) for x in latents.split(3, dim=2)], dim=2)
    engine = part("salt.pipeline").SaltPipeline.from_pretrained("salt-tiny")
    by_engine = part("salt.decode").WanStreamDecoder(engine.vae).decode(latents)
    found["engine's decoder"] = (blocks - by_engine.clamp(-1, 1)).abs().max().item()
    return found


def refusals():
    class Other:
        first_stage_model = torch.nn.Linear(1, 1)

    image = {"samples": torch.zeros(1, 4, 8, 8)}
    return {
        "vae": refusal(DECODE.ComfyStreamDecoder, Other()),
        "image": refusal(DECODE.SaltDecode.execute, image, TINY.load_vae(), 16.0),
    }


def width() -> str:
    """What Load Salt Tiny says in this version, if anything."""
    return refusal(TINY.load_vae)


assert PACK
answer(loaded, streaming, refusals, width)
