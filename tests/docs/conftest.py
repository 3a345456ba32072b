from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
for folder in (Path(__file__).parent, ROOT / "tests" / "e2e", ROOT / "docs"):
    sys.path.insert(0, str(folder))
