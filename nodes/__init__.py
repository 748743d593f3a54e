"""Host 1, ComfyUI: the pack's nodes will live here. It holds none yet, and registers nothing."""
