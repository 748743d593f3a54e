"""`python -m salt.cli`: the same as `salt`, for launchers (accelerate, torchrun) that want a module."""

import sys

from . import main

sys.exit(main())
