"""``python -m xenemu``: the command."""

import sys

from xenemu.cli import main

sys.exit(main())
