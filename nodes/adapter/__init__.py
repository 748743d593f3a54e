"""What connects the engine with ComfyUI and is no node: models, samplers, previews, caches, files."""
