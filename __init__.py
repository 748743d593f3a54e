"""ComfyUI's entry point of the pack."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./nodes/web"
__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
