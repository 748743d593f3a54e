"""Numbers of the releases, by recipe and key, each with the file and name that it has there.

Salt: github XingtongGe/Salt; Self Forcing: guandeh17/Self-Forcing; Causal Forcing: thu-ml/Causal-Forcing; LongLive:
NVlabs/LongLive, version 1. "Paper" is Salt's (arXiv 2604.03118), whose bidirectional runs have no released recipe.
Counts of updates are of the student, every fifth of the releases' trainer steps.
"""

from __future__ import annotations

MIXED = {8: 0.4, 4: 0.4, 2: 0.2}

# What all recipes of the stage `distill` share: Salt, configs/{baseline,mixed_sc_dmd,mixed_sc_dmd_trd}/*.yaml.
COMMON: dict[str, object] = {
    "optimisation.batch": 64,  # total_batch_size (Self Forcing, README.md: 64 GPUs with a clip each)
    "optimisation.lr": 2e-6,  # lr
    "optimisation.critic_lr": 4e-7,  # lr_critic
    "optimisation.betas": (0.0, 0.999),  # beta1, beta2; beta1_critic, beta2_critic
    "optimisation.weight_decay": 0.01,  # Self Forcing, configs/default_config.yaml: weight_decay
    "optimisation.clip": 10.0,  # Salt, trainer/distillation.py: max_grad_norm_generator, max_grad_norm_critic
    "optimisation.critic_per_generator": 5,  # dfake_gen_update_ratio
    "optimisation.ema": 0.99,  # ema_weight
    "optimisation.ema_start": 40,  # ema_start_step 200, of a counter that counts every trainer step
    "optimisation.schedule": "constant",  # no release has a schedule
    "optimisation.warmup": 0,
    "optimisation.precision": "bf16",  # mixed_precision: true
    "optimisation.shard": 0,  # sharding_strategy: hybrid_full would be a node's GPUs, with the same result
    "rollout.frames": 21,  # image_or_video_shape[1]
    "rollout.height": 60,  # image_or_video_shape[3]
    "rollout.width": 104,  # image_or_video_shape[4]
    "rollout.frames_per_block": 3,  # num_frame_per_block
    "rollout.independent_first_frame": False,  # Self Forcing, configs/default_config.yaml
    "rollout.window": 0,
    "rollout.overlap": 3,  # LongLive, configs/longlive_train_long.yaml: streaming_chunk_size - streaming_min_new_frame
    "rollout.long_tuning": "chunks",  # LongLive, model/streaming_training.py
    "rollout.memory": "full",  # local_attn_size -1 (wan/modules/causal_model.py), with clips of 21 frames
    "rollout.shift": 5.0,  # timestep_shift
    "rollout.stepping": "sde",  # Self Forcing, pipeline/self_forcing_training.py: add_noise between steps
    "rollout.gives_first_frame": False,  # the same: an initial latent is written to the cache in front of the blocks
    "rollout.share": {4: 1.0},  # denoising_step_list of configs/baseline/*.yaml
    "rollout.first_steps": 0,  # denoising_step_list_first_chunk, in Causal Forcing++'s alone
    "loss.guidance": 3.0,  # guidance_scale, as cond + g (cond - uncond) (model/dmd.py)
    "loss.guidance_max": 0.0,
    "loss.score": "bidirectional",  # utils/wan_wrapper.py: is_causal=False for real_score and fake_score
    "loss.score_step_for": "clip",  # Self Forcing, model/dmd.py: uniform_timestep=True
    "loss.scale_for": "clip",  # Self Forcing, model/dmd.py: the normalizer's mean over all axes
    "loss.semigroup": 0.0,
    "loss.semigroup_time_weight": True,  # Salt, pipeline/sc_training.py
    "loss.semigroup_stop_gradient": True,  # Salt, pipeline/sc_training.py
    "loss.semigroup_operator": "euler",  # Salt, pipeline/sc_training.py
    "loss.align": "none",
    "loss.align_weight": 0.1,  # mmd_weight
    "loss.align_block": 20,  # mmd_feature_block
    "loss.align_distance": "trd",  # ref_align_loss
    "loss.align_margin": 0.1,  # trd_margin
    "models.lora_rank": 0,
}
SC: dict[str, object] = {
    "rollout.share": MIXED,  # scfm_step_lists_*, scfm_step_probs of configs/mixed_sc_dmd/*.yaml
    "loss.semigroup": 0.2,  # lambda_scfm
}
ALIGNED = SC | {"loss.align": "release"}  # configs/mixed_sc_dmd_trd/*.yaml: mmd_use_ref
EVICTING = {"rollout.memory": "sink:3,window:12"}  # model_kwargs: sink_size 3, local_attn_size 12
FRAME = {"rollout.frames_per_block": 1}  # Causal Forcing, configs/causal_forcing_dmd_framewise.yaml
GRID: dict[str, object] = {
    "rollout.kind": "bidirectional",  # paper, section 4: no blocks
    "rollout.share": {8: 1.0},  # paper, section 4: the 8-point grid, no mixed steps
    "loss.semigroup": 0.2,  # paper, section 4
}
START: dict[str, object] = {
    "start.teacher_steps": 48,  # Self Forcing, scripts/generate_ode_pairs.py: num_inference_steps
    "start.guidance": 5.0,  # the same: guidance_scale 6.0, of uncond + g (cond - uncond)
    "start.history_noise": 0.0,  # Causal Forcing, model/diffusion.py: noise_augmentation_max_timestep
    "start.prompt_dropout": 0.0,  # Causal Forcing, trainer/diffusion.py drops none
    "start.timestep_weight": "bell",  # Self Forcing, utils/scheduler.py: training_weight
    "optimisation.ema": 0.0,  # Causal Forcing, trainer/ode.py has none; ar_diffusion_tf_*.yaml: ema_start_step 2e9
}

# LongLive 2.0 (NVlabs/LongLive): what its configs/*.yaml share.
LONGLIVE2: dict[str, object] = {
    "rollout.height": 44,  # image_or_video_shape[3]
    "rollout.width": 80,  # image_or_video_shape[4]
    "rollout.frames_per_block": 8,  # num_frame_per_block
    "rollout.shift": 5.0,  # timestep_shift
    "rollout.stepping": "unipc",  # pipeline/self_forcing_training.py: FlowUniPCMultistepScheduler
    "rollout.gives_first_frame": True,  # utils/i2v_conditioning.py, where a picture is given
    "optimisation.lr": 1e-5,  # lr
    "optimisation.betas": (0.0, 0.999),  # beta1, beta2; beta1_critic, beta2_critic
    "optimisation.weight_decay": 0.0,  # weight_decay
    "optimisation.clip": 10.0,  # trainer/*.py: max_grad_norm, max_grad_norm_generator, max_grad_norm_critic
}
LONGLIVE2_DMD = LONGLIVE2 | {  # configs/train_dmd.yaml
    "rollout.frames": 32,  # num_training_frames, min_num_training_frames
    "rollout.share": {4: 1.0},  # sampling_steps
    "rollout.memory": "shots:8,window:32,offset:8",  # configs/inference.yaml: local_attn_size, sink_size, *_rope_offset
    "loss.score": "causal_noisy",  # all_causal; teacher_forcing is false: model/dmd.py gives scores no clean clip
    "loss.score_step_for": "clip",  # model/dmd.py: uniform_timestep, unless i2v
    "loss.scale_for": "block",  # model/dmd.py: "per-block normalization"
    "loss.guidance": 3.0,  # real_guidance_scale
    "loss.align": "none",
    "loss.semigroup": 0.0,
    "optimisation.critic_lr": 2e-6,  # lr_critic
    "optimisation.critic_per_generator": 5,  # dfake_gen_update_ratio
    "optimisation.updates": 1000,  # max_iters 5000
    "optimisation.batch": 8,  # docs/getting_started.md: 8 processes; batch_size and gradient_accumulation_steps 1
    "optimisation.ema": 0.0,  # trainer/distillation.py: no average of LoRAs
    "models.lora_rank": 128,  # adapter.rank
    "models.lora_alpha": 0,  # adapter.alpha 128, the rank
    "models.lora_critic": True,  # adapter.apply_to_critic
}
LONGLIVE2_AR = LONGLIVE2 | {  # configs/train_ar.yaml
    "rollout.frames": 96,  # image_or_video_shape[1]
    "rollout.memory": "full",  # local_attn_size -1
    "start.timestep_weight": "bell",  # model/diffusion.py: training_weight of utils/scheduler.py
    "start.history_noise": 0.0,  # model/diffusion.py: noise_augmentation_max_timestep
    "start.first_frame": "learned",
    "optimisation.updates": 600,  # max_iters
    "optimisation.ema": 0.99,  # ema_weight
    "optimisation.ema_start": 100,  # ema_start_step, of updates
    "optimisation.batch": 2,  # docs/getting_started.md: 8 processes, which share clips by sequence_parallel_size 4
}

RELEASED: dict[str, dict[str, object]] = {
    # Salt, configs/baseline/self_forcing.yaml; README.md of Self Forcing: "600 iterations"
    "self_forcing": COMMON | {"optimisation.updates": 120},
    "self_forcing_sc": COMMON | SC,  # Salt, configs/mixed_sc_dmd/self_forcing.yaml
    "self_forcing_salt": COMMON
    | ALIGNED
    | {
        "loss.align_start": 200,  # Salt, configs/mixed_sc_dmd_trd/self_forcing.yaml: mmd_start_step 1000
        "loss.noise_aligned": False,  # the same: drift_mode independent
    },
    "causal_forcing": COMMON,  # Salt, configs/baseline/causal_forcing.yaml
    "causal_forcing_sc": COMMON | SC,  # Salt, configs/mixed_sc_dmd/causal_forcing.yaml
    "causal_forcing_salt": COMMON
    | ALIGNED
    | {
        "loss.align_start": 140,  # Salt, configs/mixed_sc_dmd_trd/causal_forcing.yaml: mmd_start_step 700
        "loss.noise_aligned": True,  # the same: drift_mode noise_aligned_b
    },
    "causal_forcing_frame": COMMON | FRAME,
    # Causal Forcing, configs/causal_forcing_dmd_framewise_{2,1}step.yaml: denoising_step_list(_first_chunk)
    "causal_forcing_frame_2step": COMMON | FRAME | {"rollout.share": {2: 1.0}, "rollout.first_steps": 4},
    "causal_forcing_frame_1step": COMMON | FRAME | {"rollout.share": {1: 1.0}, "rollout.first_steps": 4},
    # README.md: the frame-wise model; the first latent is given (inference.py --i2v). Self Forcing, model/base.py: i2v
    "causal_forcing_i2v": COMMON | FRAME,
    "longlive": COMMON | EVICTING,  # Salt, configs/baseline/longlive.yaml
    "longlive_sc": COMMON | EVICTING | SC,  # Salt, configs/mixed_sc_dmd/longlive.yaml
    "longlive_salt": COMMON
    | EVICTING
    | ALIGNED
    | {
        "loss.align_start": 240,  # Salt, configs/mixed_sc_dmd_trd/longlive.yaml: mmd_start_step 1200
        "loss.noise_aligned": True,  # the same: drift_mode noise_aligned_b
    },
    "longlive_streaming": COMMON
    | EVICTING
    | SC
    | {
        "rollout.frames": 240,  # LongLive, configs/longlive_train_long.yaml: streaming_max_length
        "rollout.window": 21,  # the same: streaming_chunk_size
        "optimisation.lr": 1e-5,  # the same: lr
        "optimisation.critic_lr": 2e-6,  # the same: lr_critic
        "optimisation.updates": 600,  # the same: max_iters 3000
        "models.lora_rank": 256,  # the same: adapter.rank
        "models.lora_alpha": 0,  # the same: adapter.alpha 256, the rank
        "models.lora_critic": True,  # the same: adapter.apply_to_critic
    },
    "longlive2": LONGLIVE2_DMD,
    "longlive2_i2v": LONGLIVE2_DMD | {"loss.score_step_for": "block"},  # configs/train_i2v_dmd.yaml, model/dmd.py
    "longlive2_tf": LONGLIVE2_AR,
    "longlive2_i2v_tf": LONGLIVE2_AR | {"start.first_frame": "given"},  # configs/train_i2v_ar.yaml
    "t2v": COMMON | {"rollout.kind": "bidirectional"},
    "t2v_sc": COMMON | GRID,
    "i2v": COMMON | {"rollout.kind": "bidirectional"},
    "i2v_sc": COMMON | GRID,
    "self_forcing_ode": START
    | {
        "start.teacher": "bidirectional",  # Self Forcing, scripts/generate_ode_pairs.py
        "start.step_for": "block",  # Self Forcing, model/ode_regression.py: uniform_timestep False
        "optimisation.lr": 2e-6,  # Causal Forcing, configs/causal_ode_chunkwise.yaml: lr
        "optimisation.betas": (0.9, 0.999),  # the same: beta1, beta2
        "optimisation.batch": 64,  # Self Forcing, README.md: 64 GPUs with a clip each
    },
    "causal_forcing_ode": START
    | {
        "start.teacher": "causal",  # Causal Forcing, get_causal_ode_data_chunkwise.py: is_causal=True
        "start.history": "real",  # the same: clean_x is the data set's clean_latent
        "start.step_for": "clip",  # Causal Forcing, model/ode_regression.py: uniform_timestep = True
        "start.clips": 6000,  # Causal Forcing, README.md: "a 6K toy dataset", ODE6KCausal_chunkwise
        "optimisation.lr": 2e-6,  # Causal Forcing, configs/causal_ode_chunkwise.yaml: lr
        "optimisation.betas": (0.9, 0.999),  # the same: beta1, beta2
        "optimisation.batch": 64,  # Causal Forcing, README.md: 64 GPUs with a clip each
    },
    "causal_forcing_cd": {  # Causal Forcing, configs/causal_cd_chunkwise.yaml
        "start.teacher": "causal",  # generator_ckpt ar_diffusion.pt
        "start.step_for": "clip",  # model/naive_consistency.py: one timestep_idx
        "start.teacher_steps": 48,  # discrete_cd_N
        "start.guidance": 2.0,  # guidance_scale 3.0, of uncond + g (cond - uncond)
        "optimisation.lr": 2e-6,  # lr
        "optimisation.betas": (0.0, 0.999),  # beta1, beta2
        "optimisation.ema": 0.99,  # ema_weight
        "optimisation.batch": 64,  # README.md: 64 GPUs with a clip each
    },
    "self_forcing_reward": {  # Reward Forcing (JaydenLyh/Reward-Forcing), configs/reward_forcing.yaml
        "loss.reward_beta": 2.0,  # beta
        "rollout.memory": "sink:3,window:9",  # sink_size, local_attn_size
        "optimisation.updates": 120,  # full_training_steps 601
    },
    "causal_forcing_tf": START
    | {
        "optimisation.lr": 2e-6,  # Causal Forcing, configs/ar_diffusion_tf_chunkwise.yaml: lr
        "optimisation.betas": (0.0, 0.999),  # the same: beta1, beta2
        "optimisation.batch": 64,  # Causal Forcing, README.md: 64 GPUs with a clip each
    },
}

# Numbers of ours, where no release states one or has no such run. In the recipes of the Shapes world all are.
OURS: dict[str, set[str]] = {
    "*": {"optimisation.micro_batch", "loss.align_start", "loss.noise_aligned", "optimisation.updates"}
    | {"loss.adversarial", "loss.adversarial_start", "loss.reward", "loss.reward_beta"},
    "causal_forcing_frame_salt": {"loss.align"},
    "causal_forcing_i2v_salt": {"loss.align"},
    "causal_forcing_cd": {"optimisation.ema_start"},
    "longlive2_salt": {"loss.align", "loss.align_block"},
    "longlive_windows": {"rollout.frames", "rollout.window", "rollout.long_tuning", "rollout.memory"},
    "relative_windows": {"rollout.frames", "rollout.window", "rollout.long_tuning", "rollout.memory"},
    "relative": {"rollout.memory"},
    "relative_sc": {"rollout.memory"},
    "relative_salt": {"rollout.memory", "loss.align"},
}
