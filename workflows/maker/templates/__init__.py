"""The shared workflows by the name of their API file, with the titles that the template browser shows and searches.

ComfyUI takes a template's file name as its title and its description. Those that need nothing begin so that they are
sorted first by letters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..graph import Graph
from . import draft, memory, released, start, tiny

Draw = Callable[[Graph], None]
FREE = "Salt (needs nothing) "


@dataclass(frozen=True)
class Template:
    """A workflow. title: the name of its file for the browser."""

    title: str
    draw: Draw

    @property
    def is_free(self) -> bool:
        """Whether it runs without a download."""
        return self.title.startswith(FREE)


WORKFLOWS: dict[str, Template] = {
    draw.__name__: Template(title, draw)
    for draw, title in (
        (tiny.tiny_text_to_video, FREE + "text to video"),
        (tiny.live, FREE + "live video, real time"),
        (tiny.tiny_interactive_prompts, FREE + "prompts that change midway"),
        (tiny.rollout_to_video, FREE + "long video to file"),
        (tiny.low_vram, FREE + "low VRAM memory plan"),
        (memory.save_memory, FREE + "save memory of clip"),
        (memory.extend_from_memory, FREE + "extend a saved clip"),
        (memory.branch_memory, FREE + "one beginning, two endings"),
        (start.video_start, FREE + "start from a video"),
        (draft.compare_nfe, FREE + "compare NFE (step counts)"),
        (draft.draft_then_final, FREE + "draft, then final video"),
        (draft.batch_prompts_seeds, FREE + "batch prompts and seeds"),
        (draft.first_frames, FREE + "first frames as pictures"),
        (start.upscale, FREE + "upscale with core nodes"),
        (released.salt_causal_forcing_4nfe, "Salt Causal Forcing text to video, 4 NFE"),
        (released.salt_causal_forcing_2nfe, "Salt Causal Forcing text to video, 2 NFE"),
        (released.salt_longlive_30s, "Salt LongLive text to video, 30 seconds long"),
        (released.interactive_prompts, "Salt LongLive prompts that change midway, 24 seconds"),
        (released.lora, "Salt LoRA text to video on Wan 2.1"),
        (start.image_to_video_start, "Salt Causal Forcing image to video, start picture"),
        (start.upscale_interpolate, "Salt upscale and frame interpolation with core models"),
        (released.bidirectional_t2v, "Salt bidirectional text to video, core sampling nodes"),
        (released.bidirectional_i2v, "Salt bidirectional image to video, core sampling nodes"),
    )
}

# Cards instead of pictures, for workflows whose weights are not in the repository: a title and two lines of text.
CARDS: dict[str, tuple[str, ...]] = {
    "salt_causal_forcing_4nfe": ("Salt + Causal Forcing", "text to video, 5 s", "4 evaluations a block"),
    "salt_causal_forcing_2nfe": ("Salt + Causal Forcing", "text to video, 5 s", "2 evaluations a block"),
    "salt_longlive_30s": ("Salt + LongLive", "text to video, 30 s", "window 12, sink 3: memory stays flat"),
    "interactive_prompts": ("Prompts that change", "Salt + LongLive, 24 s", "new words at 8 s and 16 s, with recache"),
    "lora": ("Salt + LoRA", "Wan 2.1 T2V 1.3B, 5 s", "any LoRA of the teacher"),
    "image_to_video_start": ("Image to video", "Salt + Causal Forcing, 5 s", "a picture is the first frame"),
    "upscale_interpolate": ("More frames, more pixels", "FILM x2, Real-ESRGAN x4", "32 frames a second, 1664 x 960"),
    "bidirectional_t2v": ("SC-DMD text to video", "Wan 2.1 T2V 1.3B, whole clip", "4 evaluations, core's samplers"),
    "bidirectional_i2v": ("SC-DMD image to video", "Wan 2.1 I2V 14B, whole clip", "4 evaluations, core's samplers"),
}
