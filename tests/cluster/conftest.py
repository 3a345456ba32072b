from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from ray_fixtures import can_have_clusters, ray_calls, ray_cluster

__all__ = ["can_have_clusters", "ray_calls", "ray_cluster"]
