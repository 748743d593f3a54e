"""The door ComfyUI knocks on: nothing but registration."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./nodes/web"
__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
