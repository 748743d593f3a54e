"""Train salt-tiny, or one stage of it."""

import sys

from train.command_line import run_single_command
from train.experiments.tiny.command import add_arguments

if __name__ == "__main__":
    sys.exit(run_single_command("python -m train.experiments.tiny", __doc__, add_arguments))
