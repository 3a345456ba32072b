"""
Cortex serves trained models as autoscaling HTTP APIs.

Handlers may import `RequestError` and `Response` from here; both are light. Nothing else is imported at
package level, so that `import cortex` costs a replica and the CLI nothing.
"""

from cortex.errors import RequestError, Response
from cortex.version import __version__

__all__ = ["RequestError", "Response", "__version__"]
