"""Client of a running ComfyUI server: workflow files to prompts, prompts to results."""
