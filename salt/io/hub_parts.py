"""What `salt pull` knows by name: released weights on the hub, with their licences."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """A set of files on the hub: those of `folder` ("" for the top) in `repo` whose names match one of the patterns.

    licence: of the files, as far as this project knows it; the model card's own is asked for before a download.
    restricted: whether the licence, or that of code which belongs to the files, forbids uses. whole: with the folders
    below it.
    """

    about: str
    repo: str
    folder: str
    names: tuple[str, ...] = ("*",)
    licence: str = "Apache-2.0"
    restricted: bool = False
    whole: bool = False

    @property
    def where(self) -> str:
        return f"{self.repo}/{self.folder}" if self.folder else self.repo


SALT = "domiso/Salt"
SDV2 = "jerryfeng/StreamDiffusionV2"
LONGLIVE2 = "Efficient-Large-Model/LongLive-2.0-5B"
ANYFLOW = "nvidia/AnyFlow-FAR-Wan2.1"
PIPELINE = ("*.json", "*.safetensors", "*.txt", "*.model")  # files of a diffusers folder
CARD = "see the model card"
SEE_CARD = f"{CARD}; the base, Wan 2.2 TI2V 5B, is Apache-2.0"
WAN = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
PARTS = {
    "salt-cf": Part("the released student on Causal Forcing", SALT, "checkpoints", ("salt_cf.pt",), CARD),
    "salt-ll": Part("the released student on LongLive", SALT, "checkpoints", ("salt_ll.pt",), CARD),
    "wan-text-encoder": Part("Wan 2.1's UMT5 text encoder", WAN, "text_encoder"),
    "wan-tokenizer": Part("its tokenizer", WAN, "tokenizer"),
    "wan-vae": Part("Wan 2.1's autoencoder", WAN, "vae"),
    "wan-transformer": Part("Wan 2.1's own T2V 1.3B transformer, for training and comparison", WAN, "transformer"),
    "krea-realtime": Part(
        "Krea realtime, 14B", "krea/krea-realtime-video", "", ("krea-realtime-video-14b.safetensors",),
        f"{CARD}; Krea's code is CC BY-NC-SA 4.0 (non-commercial)", restricted=True,
    ),
    "longlive2": Part("LongLive 2.0, 5B, 4 steps", LONGLIVE2, "", ("model_bf16.pt",), SEE_CARD),
    "longlive2-s4": Part("LongLive 2.0, 5B, trained for NVFP4, 4 steps", f"{LONGLIVE2}-NVFP4-S4", "",
                         ("model_te.pt",), SEE_CARD),
    "longlive2-s2": Part("LongLive 2.0, 5B, trained for NVFP4, 2 steps", f"{LONGLIVE2}-NVFP4-S2", "",
                         ("model_te.pt",), SEE_CARD),
    "wan22-vae": Part("Wan 2.2's autoencoder, for LongLive 2.0", "Wan-AI/Wan2.2-TI2V-5B-Diffusers", "vae"),
    "sdv2": Part("StreamDiffusionV2, 1.3B, video to video", SDV2, "wan_causal_dmd_v2v", ("model.pt",)),
    "sdv2-14b": Part("StreamDiffusionV2, 14B, video to video", SDV2, "wan_causal_dmd_v2v_14b", ("model.pt",)),
    "anyflow": Part(
        "AnyFlow-FAR, 1.3B, any number of steps; the whole pipeline", f"{ANYFLOW}-1.3B-Diffusers", "", PIPELINE,
        "`other`: see the model card", restricted=True, whole=True,
    ),
    "anyflow-14b": Part(
        "AnyFlow-FAR, 14B, any number of steps; the whole pipeline", f"{ANYFLOW}-14B-Diffusers", "", PIPELINE,
        "`other`: see the model card", restricted=True, whole=True,
    ),
}  # fmt: skip
