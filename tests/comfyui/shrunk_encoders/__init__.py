"""A custom node pack for tests alone: Wan's text encoder and CLIP vision H with two thin layers, so that stand-ins for
their files are small. File names, loaders, tokenizer and the widths that the student sees stay as they are."""

import comfy.clip_model
import comfy.text_encoders.t5

NODE_CLASS_MAPPINGS = {}
TEXT = {"num_layers": 2, "d_ff": 64, "num_heads": 2, "vocab_size": 64}
VISION = {"num_hidden_layers": 2, "intermediate_size": 64}


def shrunk(kind, smaller):
    build = kind.__init__

    def init(self, config_dict, *args, **kwargs):
        build(self, {**config_dict, **smaller}, *args, **kwargs)

    kind.__init__ = init


shrunk(comfy.text_encoders.t5.T5, TEXT)
shrunk(comfy.clip_model.CLIPVision, VISION)
