"""*Salt Rollout to Video*: a rollout of any length into a video file, which plays while it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ...salt.errors import InputError
from ...salt.io.fragmented_file import FragmentedFile
from ..adapter.block_outputs import VideoOutput
from ..adapter.clip_size import FRAMES_PER_LATENT
from ..adapter.comfy_model import latent_channels, pixels_per_latent
from ..adapter.connections import NO_DECODER, answer, check_video_rollout
from ..adapter.core_versions import ADVANCED, schema, video_of
from ..adapter.input_errors import UNCONNECTED, accepted
from ..adapter.output_videos import check_video_prefix, new_video_path, video_ui
from ..adapter.rollout_inputs import plan_clip
from ..adapter.rollout_runner import run_rollout
from ..adapter.streaming_vae import check_vae
from ..io_types import Memory
from ..memory_ui import memory_ui
from ..widgets import (
    CLIP_LENGTH,
    model_sockets,
    policy_socket,
    sampling_widgets,
    seconds_widget,
    size_widgets,
    start_sockets,
    video_inputs,
)

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import VAE

MAX_SECONDS = 24 * 3600.0


def prefix_widget(default: str) -> io.Input:
    """filename_prefix of a video."""
    return io.String.Input(
        "filename_prefix",
        default=default,
        tooltip="Below the output folder; a number is added, and an older file is never replaced. It may have "
        "%date:yyyy-MM-dd%, %width%, %height% or %Node.widget%, as in core's save nodes.",
        **ADVANCED,
    )


class SaltRolloutToVideo(io.ComfyNode):
    """Prompt to a video file, block by block."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SaltRolloutToVideo",
            display_name="Salt Rollout to Video",
            category="Salt/sampling",
            description="Generates a video block by block and writes it to the output folder while it is made: the "
            "memory that it needs does not grow with the length. The file plays from its first block on, and Cancel "
            "or a crash leaves what was made. Its frames are those of Salt Rollout and Salt Decode.",
            search_aliases=[
                *("long video", "stream to file", "save video", "endless", "autoregressive", "mp4"),
                *("rolling", "streaming video", "infinite", "world model"),
            ],
            is_output_node=True,
            inputs=[
                *model_sockets("Decodes the video, and has to be connected: Wan 2.1's VAE, or Wan 2.2's for TI2V."),
                policy_socket(),
                *start_sockets("so that the new frames join it without a seam, and for prompts that recache"),
                seconds_widget(CLIP_LENGTH, default=30.0, max=MAX_SECONDS),
                *size_widgets("Pixels; 0: the MODEL's own. A memory has its own size.", "Pixels; 0: the MODEL's own."),
                *sampling_widgets(),
                prefix_widget("video/salt"),
                *video_inputs(),
            ],
            outputs=[
                io.Video.Output(tooltip="The file that was written."),
                Memory.Output(display_name="memory", tooltip="To save, inspect, fork, or continue from."),
                io.String.Output(
                    display_name="report", tooltip="The file, frames, time to the first block, frames per second."
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        filename_prefix: str | None = None,
        cfg: float | None = None,
        positive: object = UNCONNECTED,
        prompts: object = UNCONNECTED,
        negative: object = UNCONNECTED,
        vae: object = UNCONNECTED,
        memory: object = UNCONNECTED,
        start_image: object = UNCONNECTED,
        latents: object = UNCONNECTED,
        video: object = UNCONNECTED,
    ) -> bool | str:
        """Before anything runs. A linked prefix or `cfg` is not known yet; core leaves the range of `cfg` to this."""
        if filename_prefix is not None and (problem := accepted(check_video_prefix, filename_prefix)) is not True:
            return problem
        return answer(
            check_video_rollout, cfg, positive=positive, prompts=prompts, negative=negative, vae=vae, memory=memory,
            start_image=start_image, latents=latents, video=video,
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        seconds: float,
        width: int,
        height: int,
        filename_prefix: str,
        vae: VAE | None = None,
        **inputs: Any,
    ) -> io.NodeOutput:
        if vae is None:
            raise InputError("vae", NO_DECODER)
        check_vae(vae, latent_channels(model))
        plan = plan_clip(model, seconds, (width, height), 1, vae=vae, **inputs)
        if plan.batch != 1:
            socket = "latents" if plan.memory is None else "memory"
            raise InputError(socket, f"found a batch of {plan.batch}, expected 1")
        width, height = (pixels_per_latent(model) * side for side in reversed(plan.size))
        path = new_video_path(filename_prefix, width, height)
        with FragmentedFile(path, FRAMES_PER_LATENT * plan.settings.frames_per_block, plan.fps) as file:
            result = run_rollout(model, plan, VideoOutput(file, vae))
        report = f"{path}: {result.report}"
        ui = {"text": [report], **video_ui(path), **memory_ui(result.memory)}
        return io.NodeOutput(video_of(path), result.memory, report, ui=ui)


NODES = [SaltRolloutToVideo]
