"""Clips as latents, made once: the frozen VAE's encodings of shapes-world clips, in shards that a trainer maps."""

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

SHARD = 96  # clips
FRAMES = 81  # pixel frames, 21 latent


@torch.no_grad()
def make_latents(vae_folder: Path, folder: Path, clips: int, seed: int = 7, device: str = "cpu") -> None:
    """Write shards of SHARD clips, normalised latents [SHARD, 16, 21, 8, 8] fp16 and scene numbers, until `clips`."""
    folder.mkdir(parents=True, exist_ok=True)
    vae = load_vae(vae_folder, device)
    for shard in range(rank(), (clips + SHARD - 1) // SHARD, world()):
        path = folder / f"{shard:04d}.pt"
        if path.exists():
            continue
        generator = seeded(seed, shard)
        scenes = random_scenes(SHARD, generator, TRAIN_SCENES)
        parts = []
        for i in range(0, SHARD, 8):
            pixels = render(scenes[i : i + 8], FRAMES, generator).pixels.to(device)
            parts.append(encode_video(vae, pixels))
        numbers = torch.tensor([SCENES.index(scene) for scene in scenes])
        with atomic_write(path) as partial:
            torch.save({"latents": torch.cat(parts).half().cpu(), "scenes": numbers}, partial)


class Latents:
    """All shards in a folder: `batch` draws clips with their embedded captions."""

    def __init__(self, folder: Path):
        paths = sorted(folder.glob("*.pt"))
        if not paths:
            raise FileNotFoundError(f"no latent shards in {folder}; expected some from the VAE stage's make_latents")
        shards = [torch.load(path, weights_only=True) for path in paths]
        self.latents_NCFHW = torch.cat([shard["latents"] for shard in shards])
        self.scenes_N = torch.cat([shard["scenes"] for shard in shards])
        self.text_SLD = WordEmbedder().encode([scene.caption for scene in SCENES])

    def __len__(self) -> int:
        return len(self.latents_NCFHW)

    def draw(self, size: int, frames: int, generator: torch.Generator, late: bool = False) -> tuple[Tensor, Tensor]:
        """`size` clips, their first `frames` latent frames [B, 16, F, 8, 8], and their scene numbers [B].

        late: not the first frames, which the VAE makes otherwise, but any that follow each other after them.
        """
        index = torch.randint(len(self), (size,), generator=generator)
        start_B = torch.zeros(size, dtype=torch.long)
        if late:
            start_B = torch.randint(1, self.latents_NCFHW.shape[2] - frames + 1, (size,), generator=generator)
        return self._cut(index, start_B, frames), self.scenes_N[index]

    def _cut(self, index: Tensor, start_B: Tensor, frames: int) -> Tensor:
        """`frames` latent frames of each clip from its start on, [B, 16, F, 8, 8]."""
        clips_BFCHW = self.latents_NCFHW.transpose(1, 2)[index[:, None], start_B[:, None] + torch.arange(frames)]
        return clips_BFCHW.transpose(1, 2).float()

    def batch(self, size: int, frames: int, generator: torch.Generator, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
        """Clips as `draw` draws them, and their text [B, L, D], some of it emptied.

        With `frames` 1 any one frame of each clip, not only the first.
        """
        index = torch.randint(len(self), (size,), generator=generator)
        keep = torch.rand(size, 1, 1, generator=generator) >= dropout
        start_B = torch.zeros(size, dtype=torch.long)
        if frames == 1:
            start_B = torch.randint(self.latents_NCFHW.shape[2], (size,), generator=generator)
        return self._cut(index, start_B, frames), self.text_SLD[self.scenes_N[index]] * keep
