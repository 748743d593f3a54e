"""Stage `ode`: regression on a teacher's ODE trajectories, which makes the initial student of distillation.

From any state on a trajectory the student predicts its end under the block-causal mask. Sources: CausVid (arXiv
2412.07772, eq. 5) and Self Forcing, with a bidirectional teacher; Causal Forcing, with a causal one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from salt.acceleration.transfers import to_device
from salt.conditioning import Conditioning
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.schedule import flow_to_x0
from train.config.recipe import Recipe
from train.data.batch import Batch
from train.methods.clip_trainer import ClipTrainer, draw_steps, drop_prompts
from train.rollout.block_causal import ClipModel, causal_flow, clip_blocks


class ODERegressionTrainer(ClipTrainer):
    """Trains the student on the trajectories of `data.clips`."""

    def micro_batch_loss(self, batch: Batch, update: int) -> Tensor:
        return self.student.model(self.loss, batch, update)

    def loss(self, student: SaltTransformer3DModel, batch: Batch, update: int) -> Tensor:
        clip = self.read_clips(batch, update)
        assert clip.trajectory is not None  # the dataset of this stage reads them
        conditioning, history = drop_prompts(batch, self.recipe, update), clip.history
        history = clip.latents if history is None else history
        return trajectory_loss(
            student, clip.latents, clip.trajectory, history, conditioning, batch.samples, self.recipe, update
        )


def trajectory_loss(
    student: ClipModel,
    latents: Tensor,
    trajectory: Tensor,
    history: Tensor,
    conditioning: Conditioning,
    samples: range,
    recipe: Recipe,
    update: int,
) -> Tensor:
    """mean((x0(x_t) - x0)^2), x_t a state of the trajectory at a step drawn for every block, or for the clip.

    latents [B, C, F, H, W]: the end of the trajectory [B, S, C, F, H, W]. A causal teacher's blocks saw clean blocks of
    `history` before them, so the student's do; a bidirectional teacher's saw the noisy states around them.
    """
    blocks = clip_blocks(recipe.rollout, latents.shape[2])
    schedule = recipe.schedule(trajectory.shape[1])
    index_BF = to_device(draw_steps(recipe, update, samples, blocks, schedule.nfe), latents.device)
    sigma_BF = to_device(torch.tensor(schedule.sigmas), latents.device)[index_BF]
    at = index_BF[:, None, None, :, None, None].expand(-1, 1, *latents.shape[1:])
    x_t = trajectory.gather(1, at)[:, 0]
    clean = history if recipe.start.teacher == "causal" else None
    flow = causal_flow(student, x_t, sigma_BF, conditioning, blocks, recipe.policy, clean)
    return (flow_to_x0(x_t, flow.float(), sigma_BF) - latents).square().mean()
