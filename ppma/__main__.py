"""Run `ppma` as `python -m ppma`."""

import sys

from ppma.cli import main

sys.exit(main())
