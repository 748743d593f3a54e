"""Everything that speaks with ComfyUI and is not a node: models, samplers, previews, caches."""
