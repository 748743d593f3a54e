"""Live sessions: an open-ended rollout that is steered while it plays. No server, no user interface and no ComfyUI."""
