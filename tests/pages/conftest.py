"""The small log and the recommenders whose lists are known are those of the tests of evaluation."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "eval"))
