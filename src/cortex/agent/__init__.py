"""
The agent: the one long-lived process of ours on a node. It turns leases into running replicas.

It decides nothing about how many of what: it carries out orders, keeps sockets, watches processes and reports.
"""
