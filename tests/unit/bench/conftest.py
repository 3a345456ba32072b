from __future__ import annotations

import sys
from pathlib import Path

# At the end: some scripts there are called as pages' scripts are that other tests import.
sys.path.append(str(Path(__file__).parents[3] / "bench"))
