"""What the tests of `cortex.cluster` share: files that are right, by provider."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from cortex.cluster.loading import Cluster, load

FILES: Mapping[str, str] = {
    "ray": "name: prod\nprovider: ray\naddress: 10.0.0.5:6379\nstorage: /mnt/cortex\n",
    "machines": "name: prod\nprovider: machines\nhosts: [10.0.0.5, 10.0.0.6]\nstorage: /mnt/cortex\n",
    "aws": "name: prod\nprovider: aws\nregion: eu-central-1\nstorage: s3://models/cortex\n",
    "gcp": "name: prod\nprovider: gcp\nregion: europe-west4\nstorage: gs://models/cortex\nnetwork: {project: shop}\n",
    "azure": "name: prod\nprovider: azure\nregion: westeurope\nstorage: az://models/cortex\n",
    "kubernetes": "name: prod\nprovider: kubernetes\nstorage: s3://models/cortex\n",
}
"""The smallest of each provider."""


@pytest.fixture
def described() -> Callable[..., Cluster]:
    """The cluster of the smallest file of a provider, with further lines."""

    def load_it(provider: str, *lines: str, **given: Any) -> Cluster:
        given = {"environ": {}, "python": "3.11", **given}
        text = FILES[provider] + "".join(f"{line}\n" for line in lines)
        return load(text, file="cluster.yaml", **given)

    return load_it


@pytest.fixture(params=list(FILES))
def provider(request: pytest.FixtureRequest) -> str:
    return str(request.param)
