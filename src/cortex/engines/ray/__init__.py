"""
The engine of a cluster: nodes and leases are Ray's, everything else is ours.

| to see … | look in |
|---|---|
| what a lease is called and looks like in Ray; what a look at Ray says of it | `groups.py`, pure |
| who asks, waits and tells | `engine.py` |
| how Ray is asked, with deadlines | `calls.py`, which keeps a process: `driver.py` |
| what both say to each other | `messages.py` |
| what can be wrong with a cluster | `errors.py` |

`ray` is imported in `driver.py` alone, which nobody imports: its calls may hang for a minute, and end the process.
"""
