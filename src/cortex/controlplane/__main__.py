"""`python -m cortex.controlplane`: started by the CLI and by the agent, detached from any terminal."""

import sys

from cortex.controlplane.app import main

sys.exit(main())
