from __future__ import annotations

import sys
from pathlib import Path

# At the end: other tests import modules that are called as these are.
sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "e2e"))
