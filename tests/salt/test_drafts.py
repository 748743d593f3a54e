"""A draft in two evaluations a block beside the clip in four: the template *draft, then final video* rests on it."""

from __future__ import annotations

import torch

from salt import SaltPipeline


def test_a_draft_looks_like_the_clip_of_its_own_seed():
    pipe = SaltPipeline.from_pretrained("salt-tiny")

    def clip(evaluations: int, seed: int) -> torch.Tensor:
        blocks = pipe.stream("a fast purple square moving up", num_frames=9, seed=seed, num_inference_steps=evaluations)
        return torch.cat([torch.as_tensor(block.frames[0]).float() for block in blocks])

    seeds = (11, 12, 13)
    drafts, finals = ([clip(evaluations, seed) for seed in seeds] for evaluations in (2, 4))
    apart = torch.tensor([[(draft - final).abs().mean() for final in finals] for draft in drafts])
    print(apart)
    assert apart.argmin(1).tolist() == [0, 1, 2]
    assert (apart.diagonal() < 0.8 * apart.masked_fill(torch.eye(3).bool(), torch.inf).amin(1)).all()
