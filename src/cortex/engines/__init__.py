"""Who hands out room for replicas. An engine grants leases on nodes; it never starts a process of a user's."""
