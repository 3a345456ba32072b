"""`python -m cortex.agent`: started by the control plane, and by hand only to look for a fault."""

import sys

from cortex.agent.app import main

sys.exit(main())
