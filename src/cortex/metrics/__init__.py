"""
Counters: what replicas and the ingress have counted, kept durably, added up, and shown.

`store` and `intake` do the I/O; `counts`, `slices`, `quantiles`, `summary` and `exposition` are pure. Used by the
control plane only.
"""
