"""
The commands that make a node of a bare machine with Ubuntu, over SSH: Python, Ray, and Ray's own start. Pure.

Nothing of ours is needed beforehand: our wheel is brought once Ray runs, by digest, and so are users' packages.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from cortex.cluster.loading import Cluster
from cortex.cluster.names import RAY_VERSION

ENV = "$HOME/.cortex-ray"
"""The folder of Ray's own packages, apart from what users' handlers get."""
RAY = f"{ENV}/bin/ray"
UV = "$HOME/.local/bin/uv"
TOKEN = ".ray/auth_token"
"""In a user's home: where Ray looks for its token."""
GCS_PORT, OBJECT_PORT = 6379, 8076
RECONNECT_S = 600
"""For how long raylets wait for a head that is away: less, and a head that is restarted would find no nodes."""

_ENVIRON = (
    f"export RAY_AUTH_MODE=token RAY_enable_autoscaler_v2=1 RAY_gcs_rpc_server_reconnect_timeout_s={RECONNECT_S};"
)
_ALREADY = "pgrep -x raylet >/dev/null"
_FLAGS = f"--object-manager-port={OBJECT_PORT} --disable-usage-stats"
_LIMIT = "ulimit -n 65536;"
_PROVIDERS = {
    "aws": ("boto3>=1.34",),
    "gcp": ("google-api-python-client>=2",),
    "azure": (
        *("azure-core==1.35.0", "azure-identity==1.23.1", "azure-common==1.1.28", "msrest==0.7.1"),
        *("azure-mgmt-compute==35.0.0", "azure-mgmt-network==29.0.0", "azure-mgmt-resource==24.0.0"),
        "msrestazure==0.6.4.post1",
    ),
}
"""
What Ray's autoscaler needs on the head.

Source:
    Ray 2.60, `autoscaler/azure/defaults.yaml`.
"""


def packages(cluster: Cluster) -> tuple[str, ...]:
    """What is installed on the head; workers need the first."""
    return (f"ray[default]=={RAY_VERSION}", *_PROVIDERS.get(cluster.spec.PROVIDER, ()))


def install(cluster: Cluster) -> tuple[str, ...]:
    """Python and Ray, in a folder of their own. Nothing of the system's is changed; done again it changes nothing."""
    index = f" --default-index {shlex.quote(cluster.index_url)}" if cluster.index_url else ""
    return (
        f"test -x {UV} || curl -LsSf https://astral.sh/uv/install.sh | env UV_NO_MODIFY_PATH=1 sh",
        f"test -x {ENV}/bin/python || {UV} venv --quiet --python {cluster.python} {ENV}",
        f"{UV} pip install --quiet --python {ENV}/bin/python{index} {shlex.join(packages(cluster)[:1])}",
    )


def install_on_head(cluster: Cluster) -> tuple[str, ...]:
    """What the head needs beyond that: the cloud's library, and a token, which nobody sees."""
    index = f" --default-index {shlex.quote(cluster.index_url)}" if cluster.index_url else ""
    further = packages(cluster)[1:]
    return (
        *((f"{UV} pip install --quiet --python {ENV}/bin/python{index} {shlex.join(further)}",) if further else ()),
        f"test -s $HOME/{TOKEN} || (umask 077; {RAY} get-auth-token --generate >/dev/null)",
    )


def install_for_gpus() -> tuple[str, ...]:
    """The driver, where the image has none."""
    return (
        "nvidia-smi >/dev/null 2>&1 || (sudo apt-get update -qq && sudo apt-get install -qq -y ubuntu-drivers-common "
        "&& sudo ubuntu-drivers install && sudo modprobe nvidia)",
    )


def start_head(extra: Sequence[str] = ()) -> str:
    flags = " ".join([f"--port={GCS_PORT}", _FLAGS, "--include-dashboard=false", *extra])
    return f"{_ENVIRON} {_ALREADY} || ({_LIMIT} {RAY} start --head {flags})"


def start_worker(address: str) -> str:
    """`address` is the head's, as a shell reads it."""
    return f"{_ENVIRON} {_ALREADY} || ({_LIMIT} {RAY} start --address={address}:{GCS_PORT} {_FLAGS})"
