"""
The HTTP door of a node: HAProxy, as pure text (`routes`, `slots`, `configuration`, `convergence`) and as processes.

Only `runtime`, `handover`, `process` and `supervisor` touch sockets, files or processes; the rest decides and does
no I/O. The agent uses `supervisor.Ingress` and the types of `routes`; nothing else needs to be known outside.
"""
