"""What is said of a cluster.yaml beyond what is said of any file."""

from __future__ import annotations

from collections.abc import Mapping

REFERENCES: Mapping[str, str] = {
    "bad-address": "`address` is not the `host:port` of a Ray cluster.",
    "bad-host": "A host of `hosts` is none, stands there twice, or has a user or port in it.",
    "bad-image": "`image` is not the name of a container image.",
    "bad-instance-type": "A type of machine that the provider cannot have, or whose size its name does not tell.",
    "bad-network": "What `network:` names is not of the form that the provider gives it.",
    "bad-port": "A port that does not exist, or that Ray uses on each node.",
    "bad-python": "`python` is not a minor version that Cortex and Ray run on.",
    "bad-region": "`region` is not one of the provider, as far as its form tells.",
    "bad-storage": "`storage` is neither `s3://`, `gs://`, `az://` with a bucket, nor a directory.",
    "bad-url": "`index_url` is not the URL of a package index.",
    "name-too-long": "A name that is too long for what the provider makes of it.",
    "node-bounds": "1 ≤ nodes_min ≤ nodes_max does not hold, or there are fewer `hosts`.",
    "not-a-cluster": "The file is not a mapping of a cluster's fields.",
    "other-provider": "A field that exists, but for another provider.",
    "storage-not-shared": "A note: `storage` is a directory, which new machines do not share by themselves.",
    "file-not-there": "A note: a file that cluster.yaml names is not there.",
    "project-left-open": "A note: on gcp no project is named, in the file or in GOOGLE_CLOUD_PROJECT.",
    "password-left-out": "A note: the password of a package index is not printed.",
}
"""Every reference that this package gives to a file, with its meaning in one sentence: the index of the docs."""
