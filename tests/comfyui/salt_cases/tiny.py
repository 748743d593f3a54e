"""Load Salt Tiny and Salt Decode, beside core's nodes and our decoder."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .session import error, run_case
from .tiny_model import LOADING, PROMPT, STUDENT_SPEC, part, pipeline, refusal, rollout

TINY, DECODE = part("nodes.nodes_tiny"), part("nodes.nodes_decode")
TINY_MODEL, STREAMING = part("nodes.adapter.tiny_model"), part("nodes.adapter.streaming_vae")


def wan_vae():
    """salt-tiny's VAE; where core builds Wan's at one width only, a random one of that width."""
    return full_width() if width().startswith("ValueError") else TINY_MODEL.load_vae()


def full_width():
    """Wan 2.1's VAE at the size that users have, with random weights."""
    import comfy.sd
    from comfy.ldm.wan.vae import WanVAE

    torch.manual_seed(0)
    model = WanVAE(
        dim=96, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
        temperal_downsample=[False, True, True],
    )  # fmt: skip
    return comfy.sd.VAE(sd=model.state_dict())


class Held(TorchDispatchMode):
    """While open: bytes of new tensors that are still alive, and their peak. Those of `known` are not counted."""

    def __init__(self, known: torch.nn.Module) -> None:
        super().__init__()
        self.held = self.peak = 0
        self.storages = {p.untyped_storage()._cdata: 0 for p in known.parameters()}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage())._cdata not in self.storages:
                self.storages[storage._cdata] = storage.nbytes()
                self.held += storage.nbytes()
                self.peak = max(self.peak, self.held)
                weakref.finalize(storage, self.free, storage._cdata)
        return out

    def free(self, storage: int) -> None:
        self.held -= self.storages.pop(storage)


@torch.inference_mode()
def loaded():
    """Core's CLIP Text Encode, Salt Rollout, core's VAE Decode and VAE Encode on the three outputs."""
    import nodes as core

    model, clip, vae = TINY.SaltLoadTiny.execute().args
    positive = core.CLIPTextEncode().encode(clip, PROMPT)[0]
    widgets = dict(seed=0, nfe="8", steps="", shift=0.0, stepping="sde", cfg=1.0, frames_per_block=0)
    latent, *_ = part("nodes.nodes_rollout").SaltRollout.execute(
        model=model, positive=positive, seconds=2.0, width=64, height=64, batch_size=1, **widgets
    ).args  # fmt: skip
    ours = pipeline(num_inference_steps=8)
    images = core.VAEDecode().decode(vae, latent)[0]
    engine, decode = part("salt.pipeline").SaltPipeline.from_pretrained("salt-tiny"), part("salt.models.streaming_vae")
    pixels = decode.WanStreamDecoder(engine.vae).decode(ours)[0].permute(1, 2, 3, 0)
    again = core.VAEEncode().encode(vae, images)[0]["samples"]
    encoded = decode.encode_video(engine.vae, images.reshape(pixels.shape).permute(3, 0, 1, 2)[None] * 2 - 1)
    return {
        "spec": STUDENT_SPEC.spec_of(model).frames_per_block,
        "latents": error(model.model.process_latent_in(latent["samples"]), ours),
        "images": list(images.shape[-4:]),
        "pixels": (images.reshape(pixels.shape) - ((pixels + 1) / 2).clamp(0, 1)).abs().max().item(),
        "encoded": error(model.model.process_latent_in(again), encoded),
        "round trip": error(again, latent["samples"]),
    }


def clip():
    """Core's nodes that take a CLIP, on the words: what they make is the table's embedding, hooks included."""
    import comfy.hooks
    import comfy.sd
    from comfy_extras.nodes_hooks import SetClipHooks

    import nodes as core

    words = part("salt.models.word_embedder").WordEmbedder().encode([PROMPT])
    clip = TINY_MODEL.load_clip()
    hooks = comfy.hooks.HookGroup()
    hooks.add(comfy.hooks.WeightHook())
    hooked = SetClipHooks().apply_hooks(clip, schedule_clip=True, apply_to_conds=True, hooks=hooks)[0]
    layered = core.CLIPSetLastLayer().set_last_layer(clip, -2)[0]
    loaded = comfy.sd.load_lora_for_models(None, clip, {}, 1.0, 1.0)[1]
    encode = core.CLIPTextEncode().encode
    clips = {"plain": clip, "clone": clip.clone(), "hooked": hooked, "layer": layered, "lora": loaded}
    conditionings = {name: encode(value, PROMPT)[0] for name, value in clips.items()}
    return {
        "equal": [name for name, [(text, _)] in conditionings.items() if torch.equal(text, words)],
        "hooks": ["hooks" in extra for [(_, extra)] in conditionings.values()],
        "empty": encode(clip, "")[0][0][0].abs().max().item(),
        "word": refusal(encode, clip, "a red dragon"),
    }


@torch.inference_mode()
def streaming():
    """Largest difference to core's whole-clip decode, by number of latent frames."""
    vae = wan_vae()
    side = 4 if vae.first_stage_model.decoder.conv1.out_channels > 100 else 8  # a full-width one takes its time
    found = {}
    for frames in (1, 2, 3, 7, 21):
        z = torch.randn(2, 16, frames, side, side, generator=torch.Generator().manual_seed(frames))
        images, video = DECODE.SaltDecode.execute({"samples": z}, vae, 16.0).args
        found[str(frames)] = (images - vae.decode(z).reshape(images.shape)).abs().max().item()
        parts = video.get_components()
        assert parts.images.shape[0] == 4 * frames - 3 and parts.frame_rate == 16
        assert parts.images.untyped_storage().data_ptr() == images.untyped_storage().data_ptr(), "held once"
    return found


@torch.inference_mode()
def stream():
    """The object by itself: blocks of any length, a second clip after reset, beside the engine's decoder."""
    vae = TINY_MODEL.load_vae()
    stream = STREAMING.ComfyStreamDecoder(vae)
    engine = part("salt.pipeline").SaltPipeline.from_pretrained("salt-tiny")
    found = []
    for lengths in ((3, 3), (1, 2, 4)):
        latents = torch.randn(2, 16, sum(lengths), 8, 8)
        stream.reset()
        blocks = torch.cat([stream.decode(x) for x in latents.split(lengths, dim=2)], dim=2)
        by_engine = part("salt.models.streaming_vae").WanStreamDecoder(engine.vae).decode(latents)
        found.append((blocks - by_engine).abs().max().item())
    return found


@torch.inference_mode()
def encoding():
    """Largest differences of streamed chunks to core's whole-clip encode, and the bytes kept after each frame."""
    from comfy.latent_formats import Wan21

    vae = wan_vae()
    pixels = torch.rand(1, 3, 17, 32, 32) * 2 - 1
    whole = Wan21().process_in(vae.encode((pixels[0].permute(1, 2, 3, 0) + 1) / 2))
    found = {}
    for sizes in ((17,), (1, 4, 4, 4, 4), (2, 7, 3, 5)):
        stream = STREAMING.ComfyStreamEncoder(vae)
        chunks = [stream.encode(x) for x in pixels.split(sizes, dim=2)]
        found[str(sizes)] = error(torch.cat(chunks, dim=2), whole)
    stream.reset()
    kept = []
    for chunk in pixels.split([1, 4, 4, 4, 4], dim=2):
        stream.encode(chunk)
        kept.append(stream.nbytes)
    twin = stream.fork()
    return {"equal": found, "kept": kept, "fork": torch.equal(stream.encode(pixels), twin.encode(pixels))}


@torch.inference_mode()
def flat():
    """Bytes beside the finished frames at their peak, by (batch, latent frames): ours, and core's whole-clip decode."""
    vae = wan_vae()
    side = 4 if vae.first_stage_model.decoder.conv1.out_channels > 100 else 8
    STREAMING.decode_clips(vae, torch.zeros(1, 16, 1, side, side))  # allocates what stays
    found = {"ours": [], "core's": []}
    for batch, frames in ((1, 4), (1, 16), (3, 4)):
        z = torch.randn(batch, 16, frames, side, side)
        for name, decode in (("ours", STREAMING.decode_clips), ("core's", lambda v, x: v.decode(x))):
            with Held(vae.first_stage_model) as count:
                images = decode(vae, z)
            found[name].append(count.peak - images.nbytes)
            del images
    return found


@torch.inference_mode()
def reservation():
    """Bytes that core reserves before each frame of the VAE that users have, and the most that a frame takes."""
    import comfy.model_management as management

    vae, load, wanted = full_width(), management.load_models_gpu, []
    stream = STREAMING.ComfyStreamDecoder(vae)

    def loading(models, memory_required=0, **options):
        wanted.append(memory_required)
        return load(models, memory_required=memory_required, **options)

    management.load_models_gpu = loading
    try:
        stream.decode_frame(torch.randn(1, 16, 1, 4, 4))
        with Held(vae.first_stage_model) as count:
            carried = sum(t.nbytes for t in stream.cache if isinstance(t, torch.Tensor))
            for _ in range(3):
                stream.decode_frame(torch.randn(1, 16, 1, 4, 4))
    finally:
        management.load_models_gpu = load
    return {"reserved": wanted, "taken": carried + count.peak, "weights": vae.patcher.model_size()}


@torch.inference_mode()
def cancelled():
    """Cancel after the second of seven frames; then the same again, whole."""
    import comfy.model_management as management

    vae, frames = wan_vae(), []
    frame = STREAMING.ComfyStreamDecoder.decode_frame

    def watched(self, latents):
        frames.append(frame(self, latents))
        if len(frames) == 2:
            management.interrupt_current_processing()
        return frames[-1]

    z = torch.randn(1, 16, 7, 4, 4)
    STREAMING.ComfyStreamDecoder.decode_frame = watched
    message = refusal(STREAMING.decode_clips, vae, z)
    decoded = len(frames)
    again = STREAMING.decode_clips(vae, z)
    return {
        "message": message,
        "decoded": decoded,
        "equal": (again - vae.decode(z).reshape(again.shape)).abs().max().item(),
    }


@torch.inference_mode()
def taehv():
    """A tiny decoder loaded as a VAE, in cores that can: core's decode of it."""
    import comfy.sd

    try:
        from comfy.taesd.taehv import TAEHV
    except ImportError:
        return None
    torch.manual_seed(0)
    # Core's layers come without values: whatever lay in memory, at times not a number.
    state = TAEHV(latent_channels=16, latent_format=None).state_dict()
    vae = comfy.sd.VAE(sd={name: 0.05 * torch.randn(tensor.shape) for name, tensor in state.items()})
    z = torch.randn(2, 16, 3, 4, 4)
    images, video = DECODE.SaltDecode.execute({"samples": z}, vae, 16.0).args
    difference = (images - vae.decode(z).reshape(images.shape)).abs().max().item()
    return {"images": list(images.shape), "equal": difference <= 1e-5, "video": video.get_components().images.shape[0]}


def refusals():
    class Other:
        first_stage_model = torch.nn.Linear(1, 1)

    video, vae, execute = torch.zeros(1, 16, 1, 4, 4), wan_vae(), DECODE.SaltDecode.execute
    return {
        "stream": refusal(STREAMING.ComfyStreamDecoder, Other()),
        "vae": refusal(execute, {"samples": video}, Other(), 16.0),
        "image": refusal(execute, {"samples": torch.zeros(1, 4, 8, 8)}, vae, 16.0),
        "channels": refusal(execute, {"samples": torch.zeros(1, 48, 1, 4, 4)}, vae, 16.0),
    }


def width() -> str:
    """What Load Salt Tiny says in this version, if anything."""
    return refusal(TINY_MODEL.load_vae)


def trained():
    """A file that training has exported, through the loader and Salt Rollout."""
    latent, *_ = rollout(LOADING.load_model(Path(os.environ["SALT_TRAINED"])), seconds=1.0)
    return {"latents": list(latent["samples"].shape), "finite": bool(latent["samples"].isfinite().all())}


def from_pictures():
    """Exported students whose clips began with a picture, through the loader and Salt Rollout, from a latent. Their
    heads are narrow: what the loader says of them where core does not read that."""
    found = {}
    for name, channels, side in (("i2v", 16, 32), ("wan22", 48, 64)):
        path = Path(os.environ["SALT_TRAINED"]) / f"{name}.safetensors"
        try:
            model = LOADING.load_model(path)
        except ValueError as error_of_file:
            found[name] = str(error_of_file)
            continue
        frame = torch.randn(1, channels, 1, 4, 4, generator=torch.Generator().manual_seed(2))
        latent, *_ = rollout(model, latents={"samples": frame}, seconds=1.0, width=side, height=side)
        made = latent["samples"]
        found[name] = [list(made.shape), error(made[:, :, :1], frame), bool(made.isfinite().all())]
    return found


if __name__ == "__main__":
    run_case(
        *(loaded, clip, streaming, stream, encoding, flat, reservation, cancelled, taehv, refusals, width, trained),
        from_pictures,
    )
