"""What can be wrong with a cluster, in words of ours."""

from __future__ import annotations

from cortex.errors import CortexError


class ClusterError(CortexError):
    """Something is wrong with the cluster, or between it and us; says what."""

    reference = "cluster-error"


class RayMissing(ClusterError):
    """The packages of the cluster engine are not installed."""

    reference = "ray-missing"
    hint = "pip install 'cortex-serving[ray]'"

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(f"a cluster needs the package `ray`, which cannot be imported: {why}")


class ClusterUnreachable(ClusterError):
    """Nothing that can be talked to as a Ray cluster's head is at its address."""

    reference = "cluster-unreachable"
    hint = "start the cluster, or correct its address"

    def __init__(self, address: str, why: str) -> None:
        self.address, self.why = address, why
        super().__init__(f"the cluster's head at {address} cannot be reached: {why}")


class ClusterTokenRefused(ClusterError):
    """The cluster wants another token than the one that we have, or we have none."""

    reference = "cluster-token-refused"

    def __init__(self, address: str, token_file: str) -> None:
        self.address, self.token_file = address, token_file
        self.hint = "copy the token that its nodes have" if token_file else "say where the file with its token is"
        ours = f"the token in {token_file}" if token_file else "to be called without a token"
        super().__init__(f"the cluster at {address} refuses {ours}")


class ClusterVersionsDiffer(ClusterError):
    """The cluster runs another version of Python or of Ray than we do; both are named."""

    reference = "cluster-versions-differ"
    hint = "have both the same: Ray compares Python to the last digit"

    def __init__(self, address: str, *, ours: str, theirs: str) -> None:
        self.address, self.ours, self.theirs = address, ours, theirs
        super().__init__(f"the cluster at {address} runs {theirs}, and here is {ours}")


class NotOnTheCluster(ClusterError):
    """No node of the cluster runs on this machine: a control plane has to be beside one."""

    reference = "not-on-the-cluster"
    hint = "run the control plane on the cluster's head"

    def __init__(self, address: str, beside: str) -> None:
        self.address, self.beside = address, beside
        super().__init__(f"no node of the cluster at {address} has the address {beside}")
