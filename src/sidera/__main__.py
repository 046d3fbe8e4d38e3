"""``python -m sidera`` is the same as ``sidera``."""

import sys

from sidera.cli import main

sys.exit(main())
