"""Latents of Shapes-world clips, encoded once with the frozen VAE and stored in shards."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from salt.io.atomic import atomic_write
from salt.models.streaming_vae import encode_video
from salt.models.word_embedder import WordEmbedder
from train.evaluation.sampling import load_vae
from train.experiments.tiny.cpu_workers import rank, world
from train.experiments.tiny.run_state import seeded
from train.shapes.world import SCENES, TRAIN_SCENES, random_scenes, render

CLIPS_PER_SHARD = 96
PIXEL_FRAMES = 81  # 21 latent frames


@torch.no_grad()
def encode_clips(vae_folder: Path, folder: Path, clips: int, seed: int = 7, device: str = "cpu") -> None:
    """Write missing shards of CLIPS_PER_SHARD clips until there are `clips`.

    A shard: normalised latents [CLIPS_PER_SHARD, 16, 21, 8, 8], fp16, and their scene numbers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vae = load_vae(vae_folder, device)
    for shard in range(rank(), (clips + CLIPS_PER_SHARD - 1) // CLIPS_PER_SHARD, world()):
        path = folder / f"{shard:04d}.pt"
        if path.exists():
            continue
        generator = seeded(seed, shard)
        scenes = random_scenes(CLIPS_PER_SHARD, generator, TRAIN_SCENES)
        parts = []
        for i in range(0, CLIPS_PER_SHARD, 8):
            pixels = render(scenes[i : i + 8], PIXEL_FRAMES, generator).pixels.to(device)
            parts.append(encode_video(vae, pixels))
        numbers = torch.tensor([SCENES.index(scene) for scene in scenes])
        with atomic_write(path) as partial:
            torch.save({"latents": torch.cat(parts).half().cpu(), "scenes": numbers}, partial)


class Latents:
    """All clips in a folder of shards, with their captions' embeddings.

    text_SLD: embedding of every scene's caption, by scene number.
    """

    def __init__(self, folder: Path) -> None:
        paths = sorted(folder.glob("*.pt"))
        if not paths:
            raise FileNotFoundError(f"{folder}: found no latent shards; run the teacher stage, which encodes them")
        shards = [torch.load(path, weights_only=True) for path in paths]
        self.latents_NCFHW = torch.cat([shard["latents"] for shard in shards])
        self.scenes_N = torch.cat([shard["scenes"] for shard in shards])
        self.text_SLD = WordEmbedder().encode([scene.caption for scene in SCENES])

    def __len__(self) -> int:
        return len(self.latents_NCFHW)

    def draw(self, size: int, frames: int, generator: torch.Generator, late: bool = False) -> tuple[Tensor, Tensor]:
        """`size` clips, their first `frames` latent frames [B, 16, F, 8, 8], and their scene numbers [B].

        late: consecutive frames after the first one, which the VAE encodes differently, from a random start.
        """
        index = torch.randint(len(self), (size,), generator=generator)
        start_B = torch.zeros(size, dtype=torch.long)
        if late:
            start_B = torch.randint(1, self.latents_NCFHW.shape[2] - frames + 1, (size,), generator=generator)
        return self._cut(index, start_B, frames), self.scenes_N[index]

    def _cut(self, index: Tensor, start_B: Tensor, frames: int) -> Tensor:
        """`frames` latent frames of each clip from its start frame, [B, 16, F, 8, 8]."""
        clips_BFCHW = self.latents_NCFHW.transpose(1, 2)[index[:, None], start_B[:, None] + torch.arange(frames)]
        return clips_BFCHW.transpose(1, 2).float()

    def batch(self, size: int, frames: int, generator: torch.Generator, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
        """Clips [B, 16, F, 8, 8] and their text embeddings [B, L, D], zeroed for a share `dropout` of them.

        `frames` 1 takes a random frame of each clip; otherwise clips start at their first frame.
        """
        index = torch.randint(len(self), (size,), generator=generator)
        keep = torch.rand(size, 1, 1, generator=generator) >= dropout
        start_B = torch.zeros(size, dtype=torch.long)
        if frames == 1:
            start_B = torch.randint(self.latents_NCFHW.shape[2], (size,), generator=generator)
        return self._cut(index, start_B, frames), self.text_SLD[self.scenes_N[index]] * keep
