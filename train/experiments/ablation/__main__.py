"""Train and score the arms of the ablation study, and write its tables."""

import sys

from train.command_line import run_single_command
from train.experiments.ablation.command import add_arguments

if __name__ == "__main__":
    sys.exit(run_single_command("python -m train.experiments.ablation", __doc__, add_arguments))
