from argparse import ArgumentParser, Namespace
from enum import Enum

class LatentPreviewMethod(Enum):
    NoPreviews = ...
    Latent2RGB = ...

args: Namespace
parser: ArgumentParser
