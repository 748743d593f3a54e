"""Client of a running ComfyUI server: converts workflow files to prompts, runs prompts and downloads results."""
