"""What `cortex.cluster.loading` says about wrong files: the whole text, for each mistake that people make."""

# ruff: noqa: E501 - the expected texts are as wide as users see them

from collections.abc import Mapping
from textwrap import dedent
from typing import NamedTuple

import pytest

from cortex.cluster.loading import load
from cortex.cluster.problems import REFERENCES
from cortex.errors import Problems
from cortex.spec.problems import REFERENCES as OF_ANY_FILE
from cortex.spec.problems import render


class Case(NamedTuple):
    """A wrong cluster.yaml and everything that is printed about it."""

    mistake: str
    text: str
    rendered: str
    environ: Mapping[str, str] = {}
    flags: tuple[int | None, int | None] = (None, None)


CASES = [
    Case(
        "an empty file",
        "",
        """
        error: empty-file
          cluster.yaml:1:1
          the file has no fields
          hint: the smallest cluster.yaml is, for example
                name: prod
                provider: aws
                region: eu-central-1
                storage: s3://my-bucket/cortex
        """,
    ),
    Case(
        "nothing but comments",
        """
        # a cluster
        """,
        """
        error: empty-file
          cluster.yaml:1:1
          the file has no fields
          hint: the smallest cluster.yaml is, for example
                name: prod
                provider: aws
                region: eu-central-1
                storage: s3://my-bucket/cortex
        """,
    ),
    Case(
        "a cortex.yaml",
        """
        - kind: api
          name: iris
          model: iris.onnx
        """,
        """
        error: not-a-cluster
          cluster.yaml:1:1
          this is a cortex.yaml: it says what is deployed, not where
          hint: the smallest cluster.yaml is, for example
                name: prod
                provider: aws
                region: eu-central-1
                storage: s3://my-bucket/cortex
        """,
    ),
    Case(
        "a list",
        """
        - name: prod
          provider: aws
        """,
        """
        error: not-a-cluster
          cluster.yaml:1:1
          expected the fields of a cluster, found a list
          hint: the smallest cluster.yaml is, for example
                name: prod
                provider: aws
                region: eu-central-1
                storage: s3://my-bucket/cortex
        """,
    ),
    Case(
        "one word",
        """
        aws
        """,
        """
        error: not-a-cluster
          cluster.yaml:1:1
          expected the fields of a cluster, found the string "aws"
          hint: the smallest cluster.yaml is, for example
                name: prod
                provider: aws
                region: eu-central-1
                storage: s3://my-bucket/cortex
        """,
    ),
    Case(
        "no fields that are required",
        """
        nodes_min: 1
        """,
        """
        error: missing-field
          cluster.yaml:1:1   cluster: provider
          "provider" is missing
          hint: one of ray, machines, aws, gcp, azure, kubernetes
        error: missing-field
          cluster.yaml:1:1   cluster: name
          "name" is missing
          hint: for example, name: prod
        error: missing-field
          cluster.yaml:1:1   cluster: storage
          "storage" is missing
          hint: for example, storage: s3://my-bucket/cortex
        """,
    ),
    Case(
        "no YAML",
        """
        name: [prod
        """,
        """
        error: yaml-syntax
          cluster.yaml:1:7
          the bracket that opens here is not closed: "]" is missing
          hint: add "]"
        """,
    ),
    Case(
        "two documents",
        """
        name: prod
        provider: aws
        region: eu-central-1
        storage: s3://models/cortex
        ---
        name: test
        """,
        """
        error: several-documents
          cluster.yaml:5:1
          a second YAML document begins here
          hint: keep one file to one document
        """,
    ),
    Case(
        "a key twice",
        """
        name: prod
        provider: aws
        region: eu-central-1
        storage: s3://models/cortex
        region: us-east-1
        """,
        """
        error: duplicate-key
          cluster.yaml:5:1   cluster "prod": region
          "region" stands here a second time; the first is at line 3, column 1
          hint: delete one of the two
        """,
    ),
    Case(
        "keys that are nearly fields, each told once",
        """
        nme: prod
        providr: aws
        strage: s3://models/cortex
        node-min: 2
        """,
        """
        error: unknown-field
          cluster.yaml:1:1   cluster: nme
          "nme" is not a field of a cluster
          hint: did you mean "name"?
        error: unknown-field
          cluster.yaml:2:1   cluster: providr
          "providr" is not a field of a cluster
          hint: did you mean "provider"?
        error: unknown-field
          cluster.yaml:3:1   cluster: strage
          "strage" is not a field of a cluster
          hint: did you mean "storage"?
        error: unknown-field
          cluster.yaml:4:1   cluster: node-min
          "node-min" is not a field of a cluster
          hint: did you mean "nodes_min"?
        """,
    ),
    Case(
        "a key that is no field at all",
        """
        name: prod
        provider: aws
        region: eu-central-1
        storage: s3://models/cortex
        colour: blue
        """,
        """
        error: unknown-field
          cluster.yaml:5:1   cluster "prod": colour
          "colour" is not a field of a cluster of provider aws
          hint: the fields are name, provider, nodes_min, nodes_max, storage, door, python, index_url, region, instance_type, gpu_instance_type, spot, disk, network
        """,
    ),
    Case(
        "keys of other tools",
        """
        name: prod
        provider: aws
        region: eu-central-1
        storage: s3://models/cortex
        min_workers: 1
        machines: [a]
        """,
        """
        error: unknown-field
          cluster.yaml:5:1   cluster "prod": min_workers
          "min_workers" is not a field of a cluster of provider aws
          hint: here it is "nodes_min"
        error: unknown-field
          cluster.yaml:6:1   cluster "prod": machines
          "machines" is not a field of a cluster of provider aws
          hint: `hosts` is for provider machines
        """,
    ),
    Case(
        "a provider that is misspelt",
        """
        name: prod
        provider: kubernets
        storage: s3://models/cortex
        namespace: x_y
        """,
        """
        error: unknown-value
          cluster.yaml:2:1   cluster "prod": provider
          expected "ray", "machines", "aws", "gcp", "azure" or "kubernetes", found the string "kubernets"
          hint: did you mean "kubernetes"?
        error: bad-name
          cluster.yaml:4:1   cluster "prod": namespace
          "x_y" is not the name of a namespace: lower-case letters, digits and dashes, at most 63, no dash at either end
          hint: such as namespace: models
        """,
    ),
    Case(
        "a provider by another name",
        """
        name: prod
        provider: gke
        storage: s3://models/cortex
        """,
        """
        error: missing-field
          cluster.yaml:1:1   cluster "prod": region
          "region" is missing
          hint: for example, region: europe-west4
        error: unknown-value
          cluster.yaml:2:1   cluster "prod": provider
          expected "ray", "machines", "aws", "gcp", "azure" or "kubernetes", found the string "gke"
          hint: did you mean "gcp"?
        """,
    ),
    Case(
        "a provider that there is none of",
        """
        name: prod
        provider: hetzner
        storage: s3://models/cortex
        region: fsn1
        """,
        """
        error: unknown-value
          cluster.yaml:2:1   cluster "prod": provider
          expected "ray", "machines", "aws", "gcp", "azure" or "kubernetes", found the string "hetzner"
          hint: for example, provider: aws
        """,
    ),
    Case(
        "a provider that is no word",
        """
        name: prod
        provider: 7
        storage: s3://models/cortex
        """,
        """
        error: unknown-value
          cluster.yaml:2:1   cluster "prod": provider
          expected "ray", "machines", "aws", "gcp", "azure" or "kubernetes", found the number 7
          hint: for example, provider: aws
        """,
    ),
    Case(
        "fields of other providers",
        """
        name: prod
        provider: aws
        region: eu-central-1
        storage: s3://models/cortex
        hosts: [10.0.0.5]
        namespace: models
        address: 10.0.0.5:6379
        """,
        """
        error: other-provider
          cluster.yaml:5:1   cluster "prod": hosts
          "hosts" is not a field of a cluster of provider aws
          hint: `hosts` is for provider machines: delete it, or say another provider
        error: other-provider
          cluster.yaml:6:1   cluster "prod": namespace
          "namespace" is not a field of a cluster of provider aws
          hint: `namespace` is for provider kubernetes: delete it, or say another provider
        error: other-provider
          cluster.yaml:7:1   cluster "prod": address
          "address" is not a field of a cluster of provider aws
          hint: `address` is for provider ray: delete it, or say another provider
        """,
    ),
    Case(
        "a field that is nearly one of another provider",
        """
        name: prod
        provider: aws
        region: eu-central-1
        storage: s3://models/cortex
        name_space: models
        """,
        """
        error: unknown-field
          cluster.yaml:5:1   cluster "prod": name_space
          "name_space" is not a field of a cluster of provider aws
          hint: did you mean "namespace"? `namespace` is for provider kubernetes
        """,
    ),
    Case(
        "a cloud's field for machines",
        """
        name: prod
        provider: machines
        storage: /mnt/cortex
        hosts: [a]
        region: eu-central-1
        spot: true
        """,
        """
        error: other-provider
          cluster.yaml:5:1   cluster "prod": region
          "region" is not a field of a cluster of provider machines
          hint: `region` is for provider aws, gcp or azure: delete it, or say another provider
        error: other-provider
          cluster.yaml:6:1   cluster "prod": spot
          "spot" is not a field of a cluster of provider machines
          hint: `spot` is for provider aws, gcp or azure: delete it, or say another provider
        """,
    ),
    Case(
        "fields outside of their block",
        """
        name: prod
        provider: aws
        region: eu-central-1
        storage: s3://models/cortex
        port: 9000
        cert: a.pem
        """,
        """
        error: misplaced-field
          cluster.yaml:5:1   cluster "prod": port
          "port" is not a field of a cluster of provider aws
          hint: `port` belongs under `door:`
        error: misplaced-field
          cluster.yaml:6:1   cluster "prod": cert
          "cert" is not a field of a cluster of provider aws
          hint: `cert` belongs under `door: tls:`
        """,
    ),
    Case(
        "a field inside of a block",
        """
        name: prod
        provider: aws
        region: eu-central-1
        storage: s3://models/cortex
        door:
          port: 9000
          region: eu-central-1
        """,
        """
        error: misplaced-field
          cluster.yaml:7:3   cluster "prod": door: region
          "region" is not a field of door
          hint: `region` belongs to the cluster itself, beside `door:`
        """,
    ),
    Case(
        "fields of another provider's network",
        """
        name: prod
        provider: aws
        region: eu-central-1
        storage: s3://models/cortex
        network: {zone: a, project: b, sub_net: subnet-0123abcd}
        """,
        """
        error: other-provider
          cluster.yaml:5:11   cluster "prod": network: zone
          "zone" is not a field of network
          hint: in `network:` it is for provider gcp: delete it
        error: other-provider
          cluster.yaml:5:20   cluster "prod": network: project
          "project" is not a field of network
          hint: in `network:` it is for provider gcp: delete it
        error: unknown-field
          cluster.yaml:5:32   cluster "prod": network: sub_net
          "sub_net" is not a field of network
          hint: did you mean "subnet"?
        """,
    ),
    Case(
        "a name that breaks the rule",
        """
        name: Prod_1
        provider: aws
        region: eu-central-1
        storage: s3://models/cortex
        """,
        """
        error: bad-name
          cluster.yaml:1:1   cluster "Prod_1": name
          "Prod_1" is not a name: a name has lower-case letters, digits and dashes, starts with a letter and does not end in a dash
          hint: did you mean "prod-1"?
        """,
    ),
    Case(
        "a name that is a number",
        """
        name: 7
        provider: aws
        region: eu-central-1
        storage: s3://models/cortex
        """,
        """
        error: wrong-type
          cluster.yaml:1:1   cluster: name
          expected a string, found the number 7
          hint: quoted it would be a string, but a name starts with a letter: "cluster-7"
        """,
    ),
    Case(
        "the name of what is there already",
        """
        name: local
        provider: aws
        region: eu-central-1
        storage: s3://models/cortex
        """,
        """
        error: reserved-name
          cluster.yaml:1:1   cluster "local": name
          no cluster can be named "local": that is the environment on this machine
          hint: choose another name, such as "local-cluster"
        """,
    ),
    Case(
        "a name that is too long for gcp",
        """
        name: a-name-of-thirty-three-characters
        provider: gcp
        region: europe-west4
        storage: gs://models/cortex
        """,
        """
        error: name-too-long
          cluster.yaml:1:1   cluster "a-name-of-thirty-three-characters": name
          on gcp a cluster's name has at most 28 characters, "a-name-of-thirty-three-characters" has 33
          hint: did you mean "a-name-of-thirty-three-chara"?
        """,
    ),
    Case(
        "a minimum above the maximum",
        """
        name: prod
        provider: aws
        region: eu-central-1
        storage: s3://models/cortex
        nodes_min: 6
        nodes_max: 3
        """,
        """
        error: node-bounds
          cluster.yaml:5:1   cluster "prod": nodes_min
          nodes_min 6 is more than nodes_max 3
          hint: raise nodes_max to 6 or more
        """,
    ),
    Case(
        "a minimum above the default maximum",
        """
        name: prod
        provider: aws
        region: eu-central-1
        storage: s3://models/cortex
        nodes_min: 6
        """,
        """
        error: node-bounds
          cluster.yaml:5:1   cluster "prod": nodes_min
          nodes_min 6 is more than nodes_max, which is 5 unless given
          hint: add nodes_max: 6
        """,
    ),
    Case(
        "a maximum below the minimum of a variable",
        """
        name: prod
        provider: aws
        region: eu-central-1
        storage: s3://models/cortex
        nodes_max: 3
        """,
        """
        error: node-bounds
          cluster.yaml:5:1   cluster "prod": nodes_max
          CORTEX_NODES_MIN 4 is more than nodes_max 3
          hint: raise nodes_max to 4 or more
        """,
        environ={"CORTEX_NODES_MIN": "4"},
    ),
    Case(
        "a flag below the file's minimum",
        """
        name: prod
        provider: aws
        region: eu-central-1
        storage: s3://models/cortex
        nodes_min: 4
        """,
        """
        error: node-bounds
          cluster.yaml:5:1   cluster "prod": nodes_min
          nodes_min 4 is more than --nodes-max 3
          hint: raise --nodes-max to 4 or more
        """,
        flags=(None, 3),
    ),
    Case(
        "a flag above another",
        """
        name: prod
        provider: aws
        region: eu-central-1
        storage: s3://models/cortex
        """,
        """
        error: node-bounds
          --nodes-min 4 is more than --nodes-max 3
          hint: raise --nodes-max to 4 or more
        """,
        flags=(4, 3),
    ),
    Case(
        "a variable that is no number",
        """
        name: prod
        provider: aws
        region: eu-central-1
        storage: s3://models/cortex
        """,
        """
        error: wrong-setting
          CORTEX_NODES_MIN: expected a number of nodes from 1, found "two"
          hint: such as CORTEX_NODES_MIN=3
        error: wrong-setting
          CORTEX_NODES_MAX: expected a number of nodes from 1, found "-1"
          hint: such as CORTEX_NODES_MAX=3
        """,
        environ={"CORTEX_NODES_MIN": "two", "CORTEX_NODES_MAX": "-1"},
    ),
    Case(
        "no nodes at all, and half of one",
        """
        name: prod
        provider: aws
        region: eu-central-1
        storage: s3://models/cortex
        nodes_min: 0
        nodes_max: 2.5
        """,
        """
        error: out-of-range
          cluster.yaml:5:1   cluster "prod": nodes_min
          expected at least 1, found the number 0
          hint: write, for example, nodes_min: 1
        error: wrong-type
          cluster.yaml:6:1   cluster "prod": nodes_max
          expected an integer, found the number 2.5
          hint: for example, nodes_max: 5
        """,
    ),
    Case(
        "numbers as text",
        """
        name: prod
        provider: aws
        region: eu-central-1
        storage: s3://models/cortex
        nodes_max: "5"
        """,
        """
        error: wrong-type
          cluster.yaml:5:1   cluster "prod": nodes_max
          expected an integer, found the string "5"
          hint: write nodes_max: 5
        """,
    ),
    Case(
        "a minimum above the number of hosts",
        """
        name: prod
        provider: machines
        storage: /mnt/cortex
        hosts: [a, b]
        nodes_min: 3
        """,
        """
        error: node-bounds
          cluster.yaml:5:1   cluster "prod": nodes_min
          nodes_min 3 is more than there are hosts, which is 2
          hint: name more hosts, or ask for fewer nodes
        """,
    ),
    Case(
        "no storage",
        """
        name: prod
        provider: aws
        region: eu-central-1
        """,
        """
        error: missing-field
          cluster.yaml:1:1   cluster "prod": storage
          "storage" is missing
          hint: for example, storage: s3://my-bucket/cortex
        """,
    ),
    Case(
        "storage of another kind",
        """
        name: prod
        provider: ray
        address: 10.0.0.5:6379
        storage: https://models.example.com/cortex
        """,
        """
        error: bad-storage
          cluster.yaml:4:1   cluster "prod": storage
          https:// is not supported: storage is s3://, gs:// or az:// with a bucket, or a directory that all nodes share
          hint: such as s3://my-bucket/cortex
        """,
    ),
    Case(
        "storage by another scheme",
        """
        name: prod
        provider: ray
        address: 10.0.0.5:6379
        storage: gcs://models/cortex
        """,
        """
        error: bad-storage
          cluster.yaml:4:1   cluster "prod": storage
          gcs:// is not supported: storage is s3://, gs:// or az:// with a bucket, or a directory that all nodes share
          hint: did you mean "gs://models/cortex"?
        """,
    ),
    Case(
        "storage with a scheme in capitals",
        """
        name: prod
        provider: ray
        address: 10.0.0.5:6379
        storage: S3://models/cortex
        """,
        """
        error: bad-storage
          cluster.yaml:4:1   cluster "prod": storage
          S3:// is not supported: storage is s3://, gs:// or az:// with a bucket, or a directory that all nodes share
          hint: did you mean "s3://models/cortex"?
        """,
    ),
    Case(
        "storage with one slash",
        """
        name: prod
        provider: ray
        address: 10.0.0.5:6379
        storage: s3:/models/cortex
        """,
        """
        error: bad-storage
          cluster.yaml:4:1   cluster "prod": storage
          s3: is not followed by two slashes
          hint: did you mean "s3://models/cortex"?
        """,
    ),
    Case(
        "storage without a bucket",
        """
        name: prod
        provider: ray
        address: 10.0.0.5:6379
        storage: s3:///cortex
        """,
        """
        error: bad-storage
          cluster.yaml:4:1   cluster "prod": storage
          "s3:///cortex" names no bucket
          hint: such as s3://my-bucket/cortex
        """,
    ),
    Case(
        "a bucket with a wrong name",
        """
        name: prod
        provider: ray
        address: 10.0.0.5:6379
        storage: s3://My_Bucket/cortex
        """,
        """
        error: bad-storage
          cluster.yaml:4:1   cluster "prod": storage
          "My_Bucket" is not the name of a bucket: lower-case letters, digits, dots, dashes and underscores, at least three
          hint: such as s3://my-bucket/cortex
        """,
    ),
    Case(
        "storage with credentials in it",
        """
        name: prod
        provider: ray
        address: 10.0.0.5:6379
        storage: s3://AKIA:secret@models/cortex
        """,
        """
        error: bad-storage
          cluster.yaml:4:1   cluster "prod": storage
          credentials do not belong into storage: they are those of the shell, and of the nodes
          hint: did you mean "s3://models/cortex"?
        """,
    ),
    Case(
        "storage with a query",
        """
        name: prod
        provider: ray
        address: 10.0.0.5:6379
        storage: s3://models/cortex?region=x
        """,
        """
        error: bad-storage
          cluster.yaml:4:1   cluster "prod": storage
          "cortex" is followed by a query, which a place in a bucket has none of
          hint: such as s3://my-bucket/cortex
        """,
    ),
    Case(
        "storage with dots in its path",
        """
        name: prod
        provider: ray
        address: 10.0.0.5:6379
        storage: gs://models/a//../b
        """,
        """
        error: bad-storage
          cluster.yaml:4:1   cluster "prod": storage
          "a//../b" has an empty part, . or .., and in a bucket these are names
          hint: did you mean "gs://models/a/b"?
        """,
    ),
    Case(
        "storage on a file URL",
        """
        name: prod
        provider: ray
        address: 10.0.0.5:6379
        storage: file:///mnt/cortex
        """,
        """
        error: bad-storage
          cluster.yaml:4:1   cluster "prod": storage
          storage is s3://, gs:// or az:// with a bucket, or a directory that all nodes share, without file://
          hint: did you mean "/mnt/cortex"?
        """,
    ),
    Case(
        "storage in a home",
        """
        name: prod
        provider: ray
        address: 10.0.0.5:6379
        storage: ~/cortex
        """,
        """
        error: bad-storage
          cluster.yaml:4:1   cluster "prod": storage
          "~/cortex": ~ is another folder on each node
          hint: write the path out
        """,
    ),
    Case(
        "storage that is relative",
        """
        name: prod
        provider: ray
        address: 10.0.0.5:6379
        storage: models/cortex
        """,
        """
        error: bad-storage
          cluster.yaml:4:1   cluster "prod": storage
          "models/cortex" is neither a bucket nor an absolute path: storage is s3://, gs:// or az:// with a bucket, or a directory that all nodes share
          hint: such as s3://models/cortex, or /mnt/cortex
        """,
    ),
    Case(
        "storage in the root",
        """
        name: prod
        provider: ray
        address: 10.0.0.5:6379
        storage: /
        """,
        """
        error: bad-storage
          cluster.yaml:4:1   cluster "prod": storage
          "/" is not the plain path of a directory
          hint: such as /mnt/cortex
        """,
    ),
    Case(
        "storage with a dot",
        """
        name: prod
        provider: ray
        address: 10.0.0.5:6379
        storage: /mnt/../cortex
        """,
        """
        error: bad-storage
          cluster.yaml:4:1   cluster "prod": storage
          "/mnt/../cortex" is not the plain path of a directory
          hint: such as /mnt/cortex
        """,
    ),
    Case(
        "storage with a space",
        """
        name: prod
        provider: ray
        address: 10.0.0.5:6379
        storage: "s3://models/cortex "
        """,
        """
        error: bad-storage
          cluster.yaml:4:1   cluster "prod": storage
          "s3://models/cortex " begins or ends with a space
          hint: delete the space
        """,
    ),
    Case(
        "a port that there is none of",
        """
        name: prod
        provider: ray
        address: 10.0.0.5:6379
        storage: /mnt/cortex
        door: {port: 70000}
        """,
        """
        error: bad-port
          cluster.yaml:5:8   cluster "prod": door: port
          a port is a number from 1 to 65535, found 70000
          hint: such as port: 8880
        """,
    ),
    Case(
        "a port of Ray's",
        """
        name: prod
        provider: aws
        region: eu-central-1
        storage: s3://models/cortex
        door: {port: 6379}
        """,
        """
        error: bad-port
          cluster.yaml:5:8   cluster "prod": door: port
          port 6379 is taken on each node: Ray has it for its GCS
          hint: such as port: 8880
        """,
    ),
    Case(
        "a port of Ray's workers",
        """
        name: prod
        provider: aws
        region: eu-central-1
        storage: s3://models/cortex
        door: {port: 12000}
        """,
        """
        error: bad-port
          cluster.yaml:5:8   cluster "prod": door: port
          port 12000 is taken on each node: Ray has it for its workers, 10002 to 19999
          hint: such as port: 8880
        """,
    ),
    Case(
        "a certificate without its key",
        """
        name: prod
        provider: aws
        region: eu-central-1
        storage: s3://models/cortex
        door: {tls: {cert: door.pem}}
        """,
        """
        error: missing-field
          cluster.yaml:5:8   cluster "prod": door: tls: key
          "key" is missing
          hint: for example, key: door.key
        """,
    ),
    Case(
        "a door that is a port",
        """
        name: prod
        provider: aws
        region: eu-central-1
        storage: s3://models/cortex
        door: 8880
        """,
        """
        error: wrong-type
          cluster.yaml:5:1   cluster "prod": door
          expected a mapping, found the number 8880
          hint: for example
                door:
                  port: 8880
        """,
    ),
    Case(
        "a Python that is too old",
        """
        name: prod
        provider: aws
        region: eu-central-1
        storage: s3://models/cortex
        python: 3.10
        """,
        """
        error: bad-python
          cluster.yaml:5:1   cluster "prod": python
          expected "3.11", "3.12" or "3.13", found "3.10"
          hint: such as python: 3.11
        """,
    ),
    Case(
        "a Python with all of its digits",
        """
        name: prod
        provider: aws
        region: eu-central-1
        storage: s3://models/cortex
        python: 3.11.7
        """,
        """
        error: bad-python
          cluster.yaml:5:1   cluster "prod": python
          "3.11.7" is more than a minor version: nodes get the latest 3.11
          hint: write python: 3.11
        """,
    ),
    Case(
        "an index that is no URL",
        """
        name: prod
        provider: aws
        region: eu-central-1
        storage: s3://models/cortex
        index_url: pypi.example.com/simple
        """,
        """
        error: bad-url
          cluster.yaml:5:1   cluster "prod": index_url
          "pypi.example.com/simple" is not the URL of a package index
          hint: such as https://pypi.example.com/simple
        """,
    ),
    Case(
        "an index with a password",
        """
        name: prod
        provider: aws
        region: eu-central-1
        storage: s3://models/cortex
        index_url: https://me:secret@pypi.example.com/simple
        """,
        """
        error: bad-url
          cluster.yaml:5:1   cluster "prod": index_url
          user name and password do not belong into this file
          hint: put the whole URL into PIP_INDEX_URL of the shell instead
        """,
    ),
    Case(
        "no address of Ray",
        """
        name: prod
        provider: ray
        storage: /mnt/cortex
        """,
        """
        error: missing-field
          cluster.yaml:1:1   cluster "prod": address
          "address" is missing, and RAY_ADDRESS is not set
          hint: for example, address: 10.0.0.5:6379
        """,
    ),
    Case(
        "a variable with a wrong address",
        """
        name: prod
        provider: ray
        storage: /mnt/cortex
        """,
        """
        error: bad-address
          RAY_ADDRESS: expected host:port of a Ray cluster, found "auto"
          hint: such as 10.0.0.5:6379
        """,
        environ={"RAY_ADDRESS": "auto"},
    ),
    Case(
        "the address of Ray's client",
        """
        name: prod
        provider: ray
        storage: /mnt/cortex
        address: ray://10.0.0.5:10001
        """,
        """
        error: bad-address
          cluster.yaml:4:1   cluster "prod": address
          "ray://10.0.0.5:10001" is not the address of a Ray cluster: ray:// is that of Ray's client
          hint: its GCS is meant, mostly at port 6379: 10.0.0.5:6379
        """,
    ),
    Case(
        "an address without a port",
        """
        name: prod
        provider: ray
        storage: /mnt/cortex
        address: 10.0.0.5
        """,
        """
        error: bad-address
          cluster.yaml:4:1   cluster "prod": address
          expected host:port of a Ray cluster, found "10.0.0.5"
          hint: did you mean "10.0.0.5:6379"?
        """,
    ),
    Case(
        "no hosts",
        """
        name: prod
        provider: machines
        storage: /mnt/cortex
        """,
        """
        error: missing-field
          cluster.yaml:1:1   cluster "prod": hosts
          "hosts" is missing
          hint: for example, hosts: [10.0.0.5, 10.0.0.6]
        """,
    ),
    Case(
        "an empty list of hosts",
        """
        name: prod
        provider: machines
        storage: /mnt/cortex
        hosts: []
        """,
        """
        error: bad-host
          cluster.yaml:4:1   cluster "prod": hosts
          expected at least one host, the first is the head
          hint: for example
                hosts: [10.0.0.5]
        """,
    ),
    Case(
        "one host that is no list",
        """
        name: prod
        provider: machines
        storage: /mnt/cortex
        hosts: 10.0.0.5
        """,
        """
        error: wrong-type
          cluster.yaml:4:1   cluster "prod": hosts
          expected a list, found the string "10.0.0.5"
          hint: for example, hosts: [10.0.0.5, 10.0.0.6]
        """,
    ),
    Case(
        "hosts that are none",
        """
        name: prod
        provider: machines
        storage: /mnt/cortex
        hosts: [10.0.0.5, 10.0.0.5, ubuntu@10.0.0.6, 10.0.0.7:22, -oProxyCommand=x, 10.0.0.300, 7]
        """,
        """
        error: bad-host
          cluster.yaml:4:19   cluster "prod": hosts: index 1
          "10.0.0.5" stands there twice
          hint: delete one of the two
        error: bad-host
          cluster.yaml:4:29   cluster "prod": hosts: index 2
          "ubuntu@10.0.0.6" has a user in it, and that is one for all hosts
          hint: write 10.0.0.6, and ssh_user: ubuntu beside `hosts:`
        error: bad-host
          cluster.yaml:4:46   cluster "prod": hosts: index 3
          "10.0.0.7:22" has a port in it
          hint: write 10.0.0.7, and `Port 22` for it into ~/.ssh/config
        error: bad-host
          cluster.yaml:4:59   cluster "prod": hosts: index 4
          "-oProxyCommand=x" is neither a name nor an address of a machine
          hint: such as 10.0.0.5
        error: bad-host
          cluster.yaml:4:77   cluster "prod": hosts: index 5
          "10.0.0.300" is neither a name nor an address of a machine
          hint: such as 10.0.0.5
        error: wrong-type
          cluster.yaml:4:89   cluster "prod": hosts: index 6
          expected a string, found the number 7
          hint: quote it: "7"
        """,
    ),
    Case(
        "a user that is none",
        """
        name: prod
        provider: machines
        storage: /mnt/cortex
        hosts: [a]
        ssh_user: '-l root'
        """,
        """
        error: bad-host
          cluster.yaml:5:1   cluster "prod": ssh_user
          "-l root" is not the name of a user
          hint: such as ssh_user: ubuntu
        """,
    ),
    Case(
        "no region",
        """
        name: prod
        provider: aws
        storage: s3://models/cortex
        """,
        """
        error: missing-field
          cluster.yaml:1:1   cluster "prod": region
          "region" is missing, and AWS_REGION is not set
          hint: for example, region: eu-central-1
        """,
    ),
    Case(
        "no region of another cloud",
        """
        name: prod
        provider: azure
        storage: az://models/cortex
        """,
        """
        error: missing-field
          cluster.yaml:1:1   cluster "prod": region
          "region" is missing
          hint: for example, region: westeurope
        """,
    ),
    Case(
        "a variable with a wrong region",
        """
        name: prod
        provider: aws
        storage: s3://models/cortex
        """,
        """
        error: bad-region
          AWS_REGION: "Frankfurt" is not a region of aws
          hint: such as region: eu-central-1
        """,
        environ={"AWS_REGION": "Frankfurt"},
    ),
    Case(
        "a zone for a region",
        """
        name: prod
        provider: aws
        region: eu-central-1a
        storage: s3://models/cortex
        """,
        """
        error: bad-region
          cluster.yaml:3:1   cluster "prod": region
          "eu-central-1a" is a zone, and nodes are made in a region
          hint: write region: eu-central-1
        """,
    ),
    Case(
        "a zone of gcp for a region",
        """
        name: prod
        provider: gcp
        region: europe-west4-b
        storage: gs://models/cortex
        """,
        """
        error: bad-region
          cluster.yaml:3:1   cluster "prod": region
          "europe-west4-b" is a zone, and nodes are made in a region
          hint: write region: europe-west4, and network: {zone: europe-west4-b}
        """,
    ),
    Case(
        "a region of another cloud",
        """
        name: prod
        provider: gcp
        region: eu-central-1
        storage: gs://models/cortex
        """,
        """
        error: bad-region
          cluster.yaml:3:1   cluster "prod": region
          "eu-central-1" is not a region of gcp, it looks like one of aws
          hint: such as region: europe-west4
        """,
    ),
    Case(
        "a region as people say it",
        """
        name: prod
        provider: azure
        region: West Europe
        storage: az://models/cortex
        """,
        """
        error: bad-region
          cluster.yaml:3:1   cluster "prod": region
          "West Europe" is not a region of azure
          hint: did you mean "westeurope"?
        """,
    ),
    Case(
        "a machine of another cloud",
        """
        name: prod
        provider: aws
        region: eu-central-1
        storage: s3://models/cortex
        instance_type: n2-standard-4
        """,
        """
        error: bad-instance-type
          cluster.yaml:5:1   cluster "prod": instance_type
          "n2-standard-4" is not a type of machine of aws, it looks like one of gcp
          hint: such as m5.xlarge
        """,
    ),
    Case(
        "a machine that is none",
        """
        name: prod
        provider: aws
        region: eu-central-1
        storage: s3://models/cortex
        instance_type: large
        """,
        """
        error: bad-instance-type
          cluster.yaml:5:1   cluster "prod": instance_type
          "large" is not a type of machine of aws
          hint: such as m5.xlarge
        """,
    ),
    Case(
        "machines of which nothing is known",
        """
        name: prod
        provider: gcp
        region: europe-west4
        storage: gs://models/cortex
        instance_type: z9-mega-4
        """,
        """
        error: bad-instance-type
          cluster.yaml:5:1   cluster "prod": instance_type
          what a z9-mega-4 has is not known here, and Ray adds no nodes of which it does not know that
          hint: such as n2-standard-4
        """,
    ),
    Case(
        "a machine without a GPU for GPUs",
        """
        name: prod
        provider: azure
        region: westeurope
        storage: az://models/cortex
        gpu_instance_type: Standard_D4s_v5
        """,
        """
        error: bad-instance-type
          cluster.yaml:5:1   cluster "prod": gpu_instance_type
          a Standard_D4s_v5 has no GPU
          hint: such as Standard_NC4as_T4_v3
        """,
    ),
    Case(
        "spot that is no boolean",
        """
        name: prod
        provider: aws
        region: eu-central-1
        storage: s3://models/cortex
        spot: maybe
        """,
        """
        error: wrong-type
          cluster.yaml:5:1   cluster "prod": spot
          expected true or false, found the string "maybe"
          hint: for example, spot: true
        """,
    ),
    Case(
        "a disk that is too small",
        """
        name: prod
        provider: aws
        region: eu-central-1
        storage: s3://models/cortex
        disk: 8Gi
        """,
        """
        error: bad-quantity
          cluster.yaml:5:1   cluster "prod": disk
          expected a disk from 30Gi to 16Ti, found 8Gi
          hint: such as disk: 50Gi, for the system, Ray, packages and models
        """,
    ),
    Case(
        "a disk that is no quantity",
        """
        name: prod
        provider: aws
        region: eu-central-1
        storage: s3://models/cortex
        disk: 50GB
        """,
        """
        error: bad-quantity
          cluster.yaml:5:1   cluster "prod": disk
          "50GB" is not a quantity
          hint: did you mean "50G"?
        """,
    ),
    Case(
        "ids that are none",
        """
        name: prod
        provider: aws
        region: eu-central-1
        storage: s3://models/cortex
        network: {subnet: main, security_group: sg-XYZ, key: 'my key'}
        """,
        """
        error: bad-network
          cluster.yaml:5:11   cluster "prod": network: subnet
          "main" is not the id of a subnet
          hint: such as subnet-0123456789abcdef0
        error: bad-network
          cluster.yaml:5:25   cluster "prod": network: security_group
          "sg-XYZ" is not the id of a security group
          hint: such as sg-0123456789abcdef0
        error: bad-network
          cluster.yaml:5:49   cluster "prod": network: key
          "my key" has a space in it
          hint: delete it
        """,
    ),
    Case(
        "a namespace that is none",
        """
        name: prod
        provider: kubernetes
        storage: s3://models/cortex
        namespace: My_Models
        """,
        """
        error: bad-name
          cluster.yaml:4:1   cluster "prod": namespace
          "My_Models" is not the name of a namespace: lower-case letters, digits and dashes, at most 63, no dash at either end
          hint: such as namespace: models
        """,
    ),
    Case(
        "an image that is none",
        """
        name: prod
        provider: kubernetes
        storage: s3://models/cortex
        image: 'ray image'
        """,
        """
        error: bad-image
          cluster.yaml:4:1   cluster "prod": image
          "ray image" is not the name of a container image
          hint: such as rayproject/ray:2.60.0-py311; it needs Ray in it
        """,
    ),
    Case(
        "pods that are none",
        """
        name: prod
        provider: kubernetes
        storage: s3://models/cortex
        node: {cpu: 0, mem: 512Mi, gpu: -1, memory: 8Gi}
        """,
        """
        error: bad-quantity
          cluster.yaml:4:8   cluster "prod": node: cpu
          cpu has to be above 0, found 0
          hint: 200m is a fifth of a cpu
        error: bad-quantity
          cluster.yaml:4:16   cluster "prod": node: mem
          expected at least 1Gi, found 512Mi: Ray alone takes most of that
          hint: such as mem: 4Gi
        error: out-of-range
          cluster.yaml:4:28   cluster "prod": node: gpu
          expected at least 0, found the number -1
          hint: write, for example, gpu: 0
        error: unknown-field
          cluster.yaml:4:37   cluster "prod": node: memory
          "memory" is not a field of node
          hint: did you mean "mem"?
        """,
    ),
    Case(
        "a node that is a number",
        """
        name: prod
        provider: kubernetes
        storage: s3://models/cortex
        node: 4
        """,
        """
        error: wrong-type
          cluster.yaml:4:1   cluster "prod": node
          expected a mapping, found the number 4
          hint: for example
                node:
                  cpu: 4
                  mem: 8Gi
        """,
    ),
]


def problems_of(case: Case) -> Problems:
    with pytest.raises(Problems) as caught:
        load(plain(case.text), file="cluster.yaml", environ=case.environ, python="3.11", flags=case.flags)
    return caught.value


def plain(text: str) -> str:
    return dedent(text).removeprefix("\n")


@pytest.mark.parametrize("case", [pytest.param(case, id=case.mistake) for case in CASES])
def test_a_wrong_file_is_explained(case: Case) -> None:
    told = "\n".join(render(problem) for problem in problems_of(case).problems)
    assert told == plain(case.rendered).rstrip("\n")


@pytest.mark.parametrize("case", [pytest.param(case, id=case.mistake) for case in CASES])
def test_every_problem_has_a_place_or_a_variable_a_next_step_and_a_documented_reference(case: Case) -> None:
    for problem in problems_of(case).problems:
        assert problem.where.startswith("cluster.yaml:") or problem.message.startswith(("--", *case.environ))
        assert problem.hint
        assert problem.reference in {**REFERENCES, **OF_ANY_FILE, "wrong-setting": ""}


def test_every_reference_of_a_wrong_cluster_is_given_for_some_file() -> None:
    given = {problem.reference for case in CASES for problem in problems_of(case).problems}
    notes = {name for name, meaning in REFERENCES.items() if meaning.startswith("A note:")}
    assert given.isdisjoint(notes)
    assert set(REFERENCES) - notes <= given


def test_no_password_is_repeated() -> None:
    told = "\n".join(render(problem) for case in CASES for problem in problems_of(case).problems)
    assert "secret" not in told
