"""`python -m ppma` is `ppma`."""

import sys

from ppma.cli import main

sys.exit(main())
