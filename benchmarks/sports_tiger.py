"""Claim `sports_tiger`: TIGER on Amazon Sports as `beauty_tiger` says. Reported, no bar.

python benchmarks/sports_tiger.py [--quick] [--minutes 120] [--epochs N]
"""

from __future__ import annotations

from beauty_tiger import run_tiger

if __name__ == "__main__":
    run_tiger("sports_tiger", "Amazon Sports: TIGER", "amazon2014_sports", "sports/tiger.toml", {}, __doc__)
