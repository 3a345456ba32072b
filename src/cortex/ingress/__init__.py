"""
The HTTP door of a node: HAProxy, as pure decisions and text, and as processes.

Pure: `routes`, `peers`, `pool`, `configuration`, `convergence`, `generations`. What touches sockets, files or
processes: `runtime` (the admin socket), `handover` and `listeners`, `process`, `files`, `workers`, and `supervisor`,
which has them do what was decided. The agent uses `supervisor.Ingress` and the types of `routes`, `peers` and
`counters`.
"""
