"""ComfyUI's preview setting, of the server (`--preview-method`) and of a prompt, as it applies to rollouts."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from comfy.cli_args import LatentPreviewMethod

PreviewMethod = Literal["none", "latent2rgb", "best"]


def preview_method() -> PreviewMethod:
    """What previews the user wants: none, latent colours, or the best there are.

    A server that nobody has told anything has none of its own, which is meant for the steps of an image, while a
    rollout shows finished video: those are the best. `none` is what someone has chosen.
    """
    from comfy.cli_args import LatentPreviewMethod, args

    if args.preview_method == LatentPreviewMethod.Latent2RGB:
        return "latent2rgb"
    if args.preview_method != LatentPreviewMethod.NoPreviews:
        return "best"
    return "none" if prompt_setting() == "none" or command_line_setting() is not None else "best"


def prompt_setting() -> str:
    """The preview method in the data of the prompt that runs; empty where it has none (and outside a server)."""
    server = sys.modules.get("server")
    instance = getattr(getattr(server, "PromptServer", None), "instance", None)
    queue = getattr(instance, "prompt_queue", None)
    if queue is None:
        return ""
    return next((str(item[3].get("preview_method") or "") for item in queue.currently_running.values()), "")


def command_line_setting() -> LatentPreviewMethod | None:
    """The value of --preview-method on the server's command line; None where it is not there."""
    import comfy.options
    from comfy.cli_args import parser

    if not comfy.options.args_parsing:
        return None
    # A namespace that has a value keeps it where the command line has none.
    return parser.parse_known_args(sys.argv[1:], Namespace(preview_method=None))[0].preview_method
