"""The VAE stage: a small AutoencoderKLWan whose latents have Wan 2.1's published mean and standard deviation.

Four measures make it train in minutes on a CPU. Past taps of every temporal kernel start at zero and the temporal
resamplers start as copies, so what was learned on single frames still holds when clips begin. The object's pixels
weigh more than the background's, without which reconstructions collapse to the background. Training starts on crops
around the object, which a convolutional net generalises to the whole frame at a quarter of the cost. Latents get noise
in proportion to their spread, so that the latent space is smooth for a diffusion model.

After the joint phases the encoder is frozen and an affine map is folded into the 1x1x1 quantisation convolutions
(`fold_wan_statistics`); then only the decoder trains, while the teacher can already use the frozen latents.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from salt.models.streaming_vae import latent_statistics
from train.evaluation.sampling import channels_last
from train.experiments.tiny.muon import Muon
from train.experiments.tiny.run_state import Run, placed, seeded, warmup_cosine
from train.shapes.world import HELD_OUT_SCENES, SIZE, Clips, random_scenes, render


@dataclass(frozen=True)
class Phase:
    """Steps on clips of one length (pixel frames) and crop. `decoder_only` phases come last: the encoder is frozen."""

    frames: int
    crop: int
    batch: int
    steps: int
    lr: float
    decoder_only: bool = False


FULL_PHASES = (
    Phase(frames=1, crop=32, batch=16, steps=1000, lr=3e-3),
    Phase(frames=5, crop=32, batch=6, steps=800, lr=2.5e-3),
    Phase(frames=9, crop=32, batch=6, steps=900, lr=2e-3),
    Phase(frames=9, crop=64, batch=3, steps=300, lr=1.2e-3),
    Phase(frames=17, crop=64, batch=2, steps=600, lr=1e-3, decoder_only=True),
)
QUICK_PHASES = tuple(replace(phase, steps=phase.steps // 15) for phase in FULL_PHASES)

OBJECT_WEIGHT = 4.0  # added to 1 where the object is
LATENT_NOISE = 0.1  # standard deviations of the channel
LATENT_PULL = 1e-4  # weight of mean(z^2), which keeps the scale from drifting


def new_vae() -> AutoencoderKLWan:
    """A new VAE (0.9 M parameters) whose temporal kernels start with only the newest frame's tap."""
    vae = AutoencoderKLWan(base_dim=8, dim_mult=[1, 2, 4, 4], num_res_blocks=2, z_dim=16)
    with torch.no_grad():
        for name, module in vae.named_modules():
            if isinstance(module, nn.Conv3d) and module.kernel_size[0] == 3:
                module.weight[:, :, :-1] = 0
                if name.endswith("time_conv"):
                    copies = module.out_channels // module.in_channels
                    module.weight[:, :, -1, 0, 0] = torch.eye(module.in_channels).repeat(copies, 1)
                    assert module.bias is not None
                    nn.init.zeros_(module.bias)
    return vae


def _split_first_frame(x_BCTHW: Tensor) -> list[Tensor]:
    """The first frame, then all others at once: the causal Wan VAE treats the first frame differently."""
    return [x_BCTHW[:, :, :1]] + ([x_BCTHW[:, :, 1:]] if x_BCTHW.shape[2] > 1 else [])


def encode(vae: AutoencoderKLWan, pixels_B3THW: Tensor) -> Tensor:
    """Latent mode [B, 16, F, H/8, W/8], not normalised, with gradient. Equals `vae.encode`, in two encoder calls."""
    vae.clear_cache()
    parts = []
    for chunk in _split_first_frame(pixels_B3THW.contiguous(memory_format=torch.channels_last_3d)):
        vae._enc_conv_idx = [0]
        parts.append(vae.encoder(chunk, feat_cache=vae._enc_feat_map, feat_idx=vae._enc_conv_idx))
    vae_out = vae.quant_conv(torch.cat(parts, dim=2))
    vae.clear_cache()
    return vae_out[:, : vae.config["z_dim"]]


def decode(vae: AutoencoderKLWan, z_BCFHW: Tensor) -> Tensor:
    """Pixels [B, 3, 4F-3, 8H, 8W], not clamped, with gradient. Equals `vae.decode`, in two decoder calls."""
    vae.clear_cache()
    parts = []
    for i, chunk in enumerate(_split_first_frame(vae.post_quant_conv(z_BCFHW))):
        vae._conv_idx = [0]
        parts.append(vae.decoder(chunk, feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=i == 0))
    vae.clear_cache()
    return torch.cat(parts, dim=2)


@torch.no_grad()
def fold_wan_statistics(vae: AutoencoderKLWan, mean_C: Tensor, std_C: Tensor) -> None:
    """Fold z' = a z + b into the 1x1x1 convolutions, so that mean and std become Wan's; decoded pixels stay."""
    want_mean, want_std = (s.flatten() for s in latent_statistics(vae, torch.device("cpu")))
    a = want_std / std_C
    b = want_mean - a * mean_C
    channels = vae.config["z_dim"]
    quant, post = vae.quant_conv, vae.post_quant_conv
    assert quant.bias is not None and post.bias is not None
    quant.weight[:channels].mul_(a.view(-1, 1, 1, 1, 1))
    quant.bias[:channels].mul_(a).add_(b)
    quant.weight[channels:] = 0  # the variance was not trained: let samples equal the mode
    quant.bias[channels:] = -16.0
    post.bias.sub_(post.weight[:, :, 0, 0, 0] @ (b / a))
    post.weight.div_(a.view(1, -1, 1, 1, 1))


@torch.no_grad()
def measured_statistics(vae: AutoencoderKLWan, clips: int, seed: int) -> tuple[Tensor, Tensor]:
    """Per-channel mean and std of the latents, not normalised, over `clips` clips of 33 frames."""
    parts = []
    for i in range(0, clips, 4):
        generator = seeded(seed, i)
        parts.append(encode(vae, render(random_scenes(4, generator), 33, generator).pixels))
    z_BCFHW = torch.cat(parts)
    return z_BCFHW.mean(dim=(0, 2, 3, 4)), z_BCFHW.std(dim=(0, 2, 3, 4))


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of clips in [-1, 1]."""
    return float(10 * torch.log10(4.0 / (a - b).square().mean()))


@torch.no_grad()
def held_out_psnr(vae: AutoencoderKLWan, frames: int, clips: int = 8) -> float:
    """PSNR in dB on a fixed set of clips with held-out captions."""
    generator = torch.Generator().manual_seed(4321)
    pixels = render(random_scenes(clips, generator, HELD_OUT_SCENES), frames, generator).pixels
    return psnr(decode(vae, encode(vae, pixels)).clamp(-1, 1), pixels)


def crop_near_object(clips: Clips, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Crop `size` x `size` windows at most 20 pixels from the object: (pixels, mask) of each clip."""
    if size == SIZE:
        return clips.pixels, clips.mask
    count = clips.pixels.shape[0]
    middle_B2 = clips.centers[:, clips.centers.shape[1] // 2] % SIZE
    corner_B2 = middle_B2 - size / 2 + 40 * (torch.rand(count, 2, generator=generator) - 0.5)
    windows = [
        (..., slice(y, y + size), slice(x, x + size)) for x, y in corner_B2.clamp(0, SIZE - size).long().tolist()
    ]
    pixels = torch.stack([clip[window] for clip, window in zip(clips.pixels, windows, strict=True)])
    return pixels, torch.stack([mask[window] for mask, window in zip(clips.mask, windows, strict=True)])


def reconstruction_loss(out: Tensor, pixels: Tensor, mask_B1THW: Tensor) -> Tensor:
    """Weighted mean of |d| + d^2, the object's pixels counting 1 + OBJECT_WEIGHT times."""
    delta = (out - pixels).abs()
    weight = 1 + OBJECT_WEIGHT * (mask_B1THW > 0)
    return (weight * (delta + delta.square())).mean() / weight.float().mean()


def train_vae(
    folder: Path, phases: tuple[Phase, ...] = FULL_PHASES, seed: int = 1, device: str = "cpu"
) -> AutoencoderKLWan:
    """Train or resume; writes `frozen/` (after the joint phases) and `final/` in `folder`."""
    run = Run(folder)
    torch.manual_seed(seed)
    vae = placed(channels_last(new_vae()), device)
    starts = [sum(p.steps for p in phases[:i]) for i in range(len(phases))]
    total = sum(p.steps for p in phases)
    optimizer = _optimizer(vae)
    state = run.load()
    step, frozen = 0, False
    if state is not None:
        vae.load_state_dict(state["vae"])
        step, frozen = state["step"], state["frozen"]
        if not frozen:
            optimizer.load_state_dict(state["optimizer"])
    losses: list[float] = []
    while step < total:
        index = max(i for i, start in enumerate(starts) if start <= step)
        phase, phase_step = phases[index], step - starts[index]
        if phase.decoder_only and (not frozen or state is not None):
            if not frozen:
                fold_wan_statistics(vae, *(s.cpu() for s in measured_statistics(vae, clips=128, seed=seed + 1)))
                vae.save_pretrained(folder / "frozen")
                run.log(step, psnr_frozen=held_out_psnr(vae, 17))
            vae.encoder.requires_grad_(False)
            vae.quant_conv.requires_grad_(False)
            optimizer = _optimizer(vae)
            if frozen and state is not None:
                optimizer.load_state_dict(state["optimizer"])
            frozen, state = True, None
        lr = phase.lr * warmup_cosine(phase_step, phase.steps, floor=0.02 if phase.decoder_only else 0.3)
        loss = _vae_step(vae, optimizer, phase, lr, seeded(seed, step), device)
        losses.append(loss)
        step += 1
        if step % 100 == 0 or step == total:
            frames = min(phase.frames, 17)
            run.log(step, loss=sum(losses) / len(losses), psnr=held_out_psnr(vae, frames), frames=frames)
            losses = []
        if run.due() or step == total or step in starts:
            run.save(vae=vae.state_dict(), optimizer=optimizer.state_dict(), step=step, frozen=frozen)
    vae.save_pretrained(folder / "final")
    return vae


def _optimizer(vae: AutoencoderKLWan) -> Muon:
    """Muon for convolution kernels, Adam for biases and norms; frozen parameters are left out."""
    params = [p for p in vae.parameters() if p.requires_grad]
    kernels = [p for p in params if p.ndim >= 3 and p.numel() > max(p.shape)]
    chosen = {id(p) for p in kernels}
    return Muon([p for p in params if id(p) not in chosen], kernels)


def _vae_step(
    vae: AutoencoderKLWan, optimizer: Muon, phase: Phase, lr: float, generator: torch.Generator, device: str
) -> float:
    clips = render(random_scenes(phase.batch, generator), phase.frames, generator)
    pixels, mask = (x.to(device) for x in crop_near_object(clips, phase.crop, generator))
    for group in optimizer.param_groups:
        group["lr"] = lr
    with torch.autocast(device, torch.bfloat16):
        with torch.set_grad_enabled(not phase.decoder_only):
            z = encode(vae, pixels).float()
        spread_1C111 = z.detach().std(dim=(0, 2, 3, 4), keepdim=True)
        noise = torch.randn(z.shape, generator=generator).to(device)
        out = decode(vae, z + LATENT_NOISE * spread_1C111 * noise).float()
    loss = reconstruction_loss(out, pixels, mask) + LATENT_PULL * z.square().mean()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
    optimizer.step()
    return loss.item()
