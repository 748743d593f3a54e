"""Video to video: latents of a source video, and how the blocks of a rollout start from them."""
