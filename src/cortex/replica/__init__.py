"""
The process that serves one version of an api, and the launcher that forks it.

Runs beside users' packages: imports only the standard library, numpy, orjson, httptools, uvloop, msgspec,
setproctitle, its backend, and from the package what is equally light. Only here does users' code run.
"""
