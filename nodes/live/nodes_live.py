"""*Salt Live*: a clip that is steered on its node while it plays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from comfy_api.latest import io
from torch import Tensor

from ...salt.live.controls import Pacing
from ...salt.live.settings import LiveSettings
from ...salt.memory import MemoryPolicy
from ...salt.schedule import Stepping
from ...salt.video_in.strength import DEFAULT_STRENGTH
from ..adapter.comfy_model import pixels_per_latent
from ..adapter.connections import answer, check_start
from ..adapter.core_versions import ADVANCED, schema, video_of
from ..adapter.input_errors import UNCONNECTED, accepted, widget_names
from ..adapter.live_inputs import last_frame, live_start
from ..adapter.live_runner import LivePlan, run_live
from ..adapter.model_size import chosen_size, size_notes
from ..adapter.output_videos import check_video_prefix, new_video_path, video_ui
from ..adapter.rollout_inputs import STEPPING, STUDENT_STEPS, first_block_notes, schedule_of
from ..adapter.student_spec import autoregressive_spec
from ..io_types import ClipMemory, Latent, Memory, Prompts
from ..memory_ui import memory_ui
from ..widgets import policy_socket, sampling_widgets, seconds_widget, size_widgets, start_sockets, video_inputs
from .nodes_rollout_to_video import MAX_SECONDS, prefix_widget

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE

    from ..adapter.source_clip import SourceVideo

PACES = ["realtime", "free"]
LIVE_VIDEO = (
    "A video (or frames, at the MODEL's rate), over and over: every block starts from its noised latents. Without one, "
    "the page's camera can be switched on."
)
LIVE_STRENGTH = (
    "How far a video, or the camera's pictures, may be changed: 0 only encodes them, 1 leaves nothing of them. The "
    "page has it as a slider."
)


class SaltLive(io.ComfyNode):
    """A live session."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SaltLive",
            display_name="Salt Live",
            category="Salt/sampling",
            description="Plays a video while it is made, and lets you steer it: the node itself shows the clip, with a "
            "box for the next prompt, blends, pause, rewind and Stop. Everything is recorded to the output folder. "
            "When it is stopped, its outputs hold the clip, its memory, and the prompts as they were applied.",
            search_aliases=[
                *("interactive", "real time", "stream", "steer", "webcam", "endless video", "live prompt"),
                *("streaming video", "rolling", "infinite", "world model"),
            ],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="An autoregressive student of Wan 2.1 or 2.2 TI2V, from any loader."),
                io.Clip.Input("clip", tooltip="The text encoder of what is typed while it plays."),
                io.Vae.Input("vae", tooltip="The MODEL's: Wan 2.1's VAE, Wan 2.2's for TI2V, or Salt Tiny's."),
                policy_socket(),
                io.String.Input("prompt", multiline=True, tooltip="The prompt that it begins with."),
                io.String.Input(
                    "negative_prompt", multiline=True, default="", tooltip="Only for guidance other than 1.", **ADVANCED
                ),
                seconds_widget(
                    "Length at the MODEL's rate (16 frames a second; Wan 2.2 TI2V: 24), after which it stops by "
                    "itself; 0: until Stop.",
                    default=0.0,
                    min=0.0,
                    max=MAX_SECONDS,
                    **ADVANCED,
                ),
                *size_widgets("Pixels; 0: the MODEL's own. A memory has its own size.", "Pixels; 0: the MODEL's own."),
                *sampling_widgets(stepping=False),
                io.Combo.Input(
                    "pace",
                    options=PACES,
                    default="realtime",
                    tooltip="realtime stays a block before what is being watched, so that steering does not lag; free "
                    "goes as fast as it can.",
                    **ADVANCED,
                ),
                prefix_widget("video/live"),
                *start_sockets("so that the new frames join it without a seam, and for prompts that recache"),
                io.Combo.Input(
                    "stepping",
                    options=[STUDENT_STEPS, *STEPPING],
                    default=STUDENT_STEPS,
                    tooltip="sde adds fresh noise between steps, ode takes Euler steps; student's: as in training.",
                    **ADVANCED,
                ),
                *video_inputs(LIVE_VIDEO, LIVE_STRENGTH),
            ],
            outputs=[
                io.Video.Output(tooltip="The recording."),
                io.Latent.Output(tooltip="Latents of the clip, as far as rewinding has kept them."),
                Memory.Output(display_name="memory", tooltip="To save, inspect, fork, or continue from."),
                Prompts.Output(
                    display_name="prompts",
                    tooltip="As they were applied: Salt Rollout makes the same latents from them.",
                ),
                io.String.Output(display_name="report", tooltip="The file, and what the other outputs do not hold."),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        filename_prefix: str | None = None,
        memory: object = UNCONNECTED,
        start_image: object = UNCONNECTED,
        latents: object = UNCONNECTED,
    ) -> bool | str:
        """Before anything runs. A linked prefix is not known yet."""
        if filename_prefix is not None and (problem := accepted(check_video_prefix, filename_prefix)) is not True:
            return problem
        return answer(check_start, memory=memory, start_image=start_image, latents=latents)

    @classmethod
    @widget_names(negative="negative_prompt")
    def execute(
        cls,
        model: ModelPatcher,
        clip: CLIP,
        vae: VAE,
        prompt: str,
        negative_prompt: str,
        seconds: float,
        width: int,
        height: int,
        seed: int,
        nfe: str,
        steps: str,
        shift: float,
        cfg: float,
        frames_per_block: int,
        pace: Pacing,
        filename_prefix: str,
        policy: MemoryPolicy | None = None,
        memory: ClipMemory | None = None,
        start_image: Tensor | None = None,
        latents: Latent | None = None,
        stepping: Stepping | Literal["student's"] = "student's",
        video: SourceVideo | None = None,
        strength: float = DEFAULT_STRENGTH,
    ) -> io.NodeOutput:
        spec = autoregressive_spec(model, frames_per_block)
        size = chosen_size(model, width, height)
        clip_start = live_start(model, vae, size, policy, spec.policy, cfg, memory, start_image, latents)
        chosen = policy or spec.policy if memory is None else memory.memory.policy
        fixed = not nfe.isdecimal()  # steps that are no control of the session
        settings = LiveSettings(
            prompt, negative_prompt, seed, None if fixed else int(nfe), cfg, str(chosen), pace,
            frames=last_frame(seconds, spec, clip_start), strength=strength,
            stepping=None if stepping == "student's" else stepping,
        )  # fmt: skip
        schedule = schedule_of(nfe if fixed else STUDENT_STEPS, steps, shift, spec)
        height, width = (pixels_per_latent(model) * side for side in clip_start.size)
        path = new_video_path(filename_prefix, width, height)
        done = run_live(model, clip, vae, LivePlan(settings, spec, schedule, chosen, clip_start, path, video))
        notes = [*size_notes(model, clip_start.size), *first_block_notes(nfe, memory is not None, video is not None)]
        report = "; ".join([done.report, *notes])
        ui = {"text": [report], **video_ui(done.recording), **memory_ui(done.memory)}
        video = video_of(done.recording)
        return io.NodeOutput(
            video, {"samples": done.latents, "salt_fps": spec.fps}, done.memory, done.prompts, report, ui=ui
        )


NODES = [SaltLive]
