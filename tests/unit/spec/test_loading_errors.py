"""
Tests of what `cortex.spec.loading` says about wrong files: the whole text, for each mistake that people make.
"""

# ruff: noqa: E501 - the expected texts are as wide as users see them

from textwrap import dedent
from typing import NamedTuple

import pytest

from cortex.errors import Problems
from cortex.spec.loading import load
from cortex.spec.problems import REFERENCES, render


class Case(NamedTuple):
    """A wrong cortex.yaml and everything that is printed about it."""

    mistake: str
    text: str
    rendered: str


CASES = [
    Case(
        "a key one letter off",
        """
        - kind: deployment
          name: iris

        - kind: api
          name: iris
          model: iris.onnx
          compute:
              max_replica: 3
        """,
        """
        error: unknown-field
          cortex.yaml:8:7   api "iris": compute: max_replica
          "max_replica" is not a field of compute
          hint: did you mean "max_replicas"?
        """,
    ),
    Case(
        "a key in camel case",
        """
        - kind: api
          name: iris
          model: iris.onnx
          requestHandler: handler.py
        """,
        """
        error: unknown-field
          cortex.yaml:4:3   api "iris": requestHandler
          "requestHandler" is not a field of an api
          hint: did you mean "request_handler"?
        """,
    ),
    Case(
        "a key with dashes",
        """
        - kind: api
          name: iris
          model: iris.onnx
          max-body: 1Mi
        """,
        """
        error: unknown-field
          cortex.yaml:4:3   api "iris": max-body
          "max-body" is not a field of an api
          hint: did you mean "max_body"?
        """,
    ),
    Case(
        "a key that is half of a field's name",
        """
        - kind: api
          name: iris
          model: iris.onnx
          handler: handler.py
        """,
        """
        error: unknown-field
          cortex.yaml:4:3   api "iris": handler
          "handler" is not a field of an api
          hint: did you mean "request_handler"?
        """,
    ),
    Case(
        "a key that is no field at all",
        """
        - kind: api
          name: iris
          model: iris.onnx
          colour: blue
        """,
        """
        error: unknown-field
          cortex.yaml:4:3   api "iris": colour
          "colour" is not a field of an api
          hint: the fields are kind, name, model, model_format, request_handler, tf_signature_key, tracker, compute, sample, retry, env, timeout, max_body, batching, rollout
        """,
    ),
    Case(
        "a key of version 0.8 that is gone",
        """
        - kind: api
          name: iris
          model: iris.onnx
          tags: {team: a}
        """,
        """
        error: unknown-field
          cortex.yaml:4:3   api "iris": tags
          "tags" is not a field of an api
          hint: tags never had an effect and are gone: delete them; docs/from-cortex-0.md has both side by side
        """,
    ),
    Case(
        "a misspelled required field is told once",
        """
        - kind: api
          nme: iris
          modle: iris.onnx
        """,
        """
        error: unknown-field
          cortex.yaml:2:3   api at index 0: nme
          "nme" is not a field of an api
          hint: did you mean "name"?
        error: unknown-field
          cortex.yaml:3:3   api at index 0: modle
          "modle" is not a field of an api
          hint: did you mean "model"?
        """,
    ),
    Case(
        "fields of blocks given both beside the name and in their block",
        """
        - kind: api
          name: iris
          model: iris.onnx
          compute: {cpu: 1, mem: 1Gi}
          cpu: 1
          mem: 2Gi
        """,
        """
        error: duplicate-key
          cortex.yaml:5:3   api "iris": cpu
          "cpu" stands here and under `compute:`, at line 4, column 13
          hint: delete one of the two
        error: duplicate-key
          cortex.yaml:6:3   api "iris": mem
          "mem" stands here and under `compute:`, at line 4, column 21
          hint: delete one of the two
        """,
    ),
    Case(
        "wrong values in the flat form, and a field that has one place only",
        """
        - kind: api
          name: iris
          model: iris.onnx
          tracker:
          key: class
          min_replicas: two
          concurrency: 4
        """,
        """
        error: missing-field
          cortex.yaml:4:3   api "iris": tracker: model_type
          "model_type" is missing
          hint: for example, model_type: classification
        error: wrong-type
          cortex.yaml:6:3   api "iris": compute: min_replicas
          expected an integer, found the string "two"
          hint: for example, min_replicas: 1
        error: misplaced-field
          cortex.yaml:7:3   api "iris": concurrency
          "concurrency" is not a field of an api
          hint: `concurrency` belongs under `compute:`
        """,
    ),
    Case(
        "the flat form beside a block that is none",
        """
        - kind: api
          name: iris
          model: iris.onnx
          compute: fast
          cpu: 1
        """,
        """
        error: wrong-type
          cortex.yaml:4:3   api "iris": compute
          expected a mapping, found the string "fast"
          hint: for example
                compute:
                  cpu: 200m
        error: misplaced-field
          cortex.yaml:5:3   api "iris": cpu
          "cpu" is not a field of an api
          hint: `cpu` belongs under `compute:`
        """,
    ),
    Case(
        "blocks of later versions of old",
        """
        - kind: api
          name: iris
          onnx:
            model: s3://bucket/iris.onnx
            request_handler: handler.py
        - kind: api
          name: rose
          predictor:
            type: python
            path: predictor.py
          autoscaling:
            min_replicas: 1
          monitoring:
            model_type: regression
          compute:
            workers_per_replica: 2
            threads_per_worker: 4
        """,
        """
        error: unknown-field
          cortex.yaml:3:3   api "iris": onnx
          "onnx" is not a field of an api
          hint: its fields stand beside `name:` here: `model: s3://bucket/iris.onnx` and `request_handler: handler.py`; docs/from-cortex-0.md has both side by side
        error: unknown-field
          cortex.yaml:8:3   api "rose": predictor
          "predictor" is not a field of an api
          hint: its fields stand beside `name:` here: `request_handler: predictor.py`, and a `model:`, a file of ONNX or a SavedModel, which Cortex runs itself; docs/from-cortex-0.md has both side by side
        error: unknown-field
          cortex.yaml:11:3   api "rose": autoscaling
          "autoscaling" is not a field of an api
          hint: its fields belong under `compute:`; docs/from-cortex-0.md has both side by side
        error: unknown-field
          cortex.yaml:13:3   api "rose": monitoring
          "monitoring" is not a field of an api
          hint: it is called `tracker:` here; docs/from-cortex-0.md has both side by side
        error: unknown-field
          cortex.yaml:16:5   api "rose": compute: workers_per_replica
          "workers_per_replica" is not a field of compute
          hint: here it is `min_replicas`: each replica is one process
        error: unknown-field
          cortex.yaml:17:5   api "rose": compute: threads_per_worker
          "threads_per_worker" is not a field of compute
          hint: here it is `concurrency`
        """,
    ),
    Case(
        "a resource of a later version of old without a kind",
        """
        - name: iris
          predictor:
            type: tensorflow
            path: predictor.py
            models: {path: s3://bucket/iris, signature_key: predict}
          networking: {}
          compute: {mem: 1}
        """,
        """
        error: missing-field
          cortex.yaml:1:3   resource "iris": kind
          "kind" is missing
          hint: add kind: api
        error: unknown-field
          cortex.yaml:2:3   resource "iris": predictor
          "predictor" is not a field of an api
          hint: its fields stand beside `name:` here: `model: s3://bucket/iris`, `request_handler: predictor.py` and `tf_signature_key: predict`; docs/from-cortex-0.md has both side by side
        error: unknown-field
          cortex.yaml:6:3   resource "iris": networking
          "networking" is not a field of an api
          hint: an api answers at /<deployment>/<name>: delete it; docs/from-cortex-0.md has both side by side
        error: bad-quantity
          cortex.yaml:7:13   resource "iris": compute: mem
          1 is a number of bytes, and nothing runs in less than a mebibyte
          hint: did you mean "1Gi"?
        """,
    ),
    Case(
        "a single resource of a later version of old without a kind or a list",
        """
        name: iris
        onnx: {model: iris.onnx}
        """,
        """
        error: not-a-list
          cortex.yaml:1:1
          expected a list of resources, found a mapping
          hint: put "- " in front of the first line and indent the others, such as
                - kind: api
                  name: iris
                  model: model.onnx
        error: missing-field
          cortex.yaml:1:1   resource "iris": kind
          "kind" is missing
          hint: add kind: api
        error: unknown-field
          cortex.yaml:2:1   resource "iris": onnx
          "onnx" is not a field of an api
          hint: its fields stand beside `name:` here: `model: iris.onnx`; docs/from-cortex-0.md has both side by side
        """,
    ),
    Case(
        "a resource without a kind whose fields are misspelt",
        """
        - name: iris
          modle: iris.onnx
        """,
        """
        error: missing-field
          cortex.yaml:1:3   resource "iris": kind
          "kind" is missing
          hint: add kind: api
        error: unknown-field
          cortex.yaml:2:3   resource "iris": modle
          "modle" is not a field of an api
          hint: did you mean "model"?
        """,
    ),
    Case(
        "a flat field that is also misspelled",
        """
        - kind: api
          name: iris
          model: iris.onnx
          memory: 1Gi
        """,
        """
        error: unknown-field
          cortex.yaml:4:3   api "iris": memory
          "memory" is not a field of an api
          hint: did you mean "mem"? `mem` belongs under `compute:`
        """,
    ),
    Case(
        "a field of the api inside compute",
        """
        - kind: api
          name: iris
          model: iris.onnx
          compute:
            cpu: 1
            timeout: 30s
        """,
        """
        error: misplaced-field
          cortex.yaml:6:5   api "iris": compute: timeout
          "timeout" is not a field of compute
          hint: `timeout` belongs to the api itself, beside `compute:`
        """,
    ),
    Case(
        "a field of compute inside tracker",
        """
        - kind: api
          name: iris
          model: iris.onnx
          tracker:
            model_type: regression
            gpu: 1
        """,
        """
        error: misplaced-field
          cortex.yaml:6:5   api "iris": tracker: gpu
          "gpu" is not a field of tracker
          hint: `gpu` belongs under `compute:` of an api
        """,
    ),
    Case(
        "a field of an api in a deployment",
        """
        - kind: deployment
          name: iris
          model: iris.onnx
          cpu: 2
        """,
        """
        error: misplaced-field
          cortex.yaml:3:3   deployment "iris": model
          "model" is not a field of a deployment
          hint: `model` belongs to an api: `- kind: api`
        error: misplaced-field
          cortex.yaml:4:3   deployment "iris": cpu
          "cpu" is not a field of a deployment
          hint: `cpu` belongs under `compute:` of an api
        """,
    ),
    Case(
        "a required field is missing",
        """
        - kind: api
          model: iris.onnx
        """,
        """
        error: missing-field
          cortex.yaml:1:3   api at index 0: name
          "name" is missing
          hint: for example, name: iris
        """,
    ),
    Case(
        "a required field is null",
        """
        - kind: api
          name: iris
          model:
        """,
        """
        error: missing-field
          cortex.yaml:3:3   api "iris": model
          "model" is missing
          hint: for example, model: model.onnx
        """,
    ),
    Case(
        "a tracker without its type",
        """
        - kind: api
          name: iris
          model: iris.onnx
          tracker:
            key: class
        """,
        """
        error: missing-field
          cortex.yaml:4:3   api "iris": tracker: model_type
          "model_type" is missing
          hint: for example, model_type: classification
        """,
    ),
    Case(
        "several problems at once in the order of the file",
        """
        - kind: api
          name: Iris_Classifier
          model: iris.onnx
          compute:
            max_replica: 3
            cpu: 2x
          timeout: never
        """,
        """
        error: bad-name
          cortex.yaml:2:3   api "Iris_Classifier": name
          "Iris_Classifier" is not a name: a name has lower-case letters, digits and dashes, starts with a letter and does not end in a dash
          hint: did you mean "iris-classifier"?
        error: unknown-field
          cortex.yaml:5:5   api "Iris_Classifier": compute: max_replica
          "max_replica" is not a field of compute
          hint: did you mean "max_replicas"?
        error: bad-quantity
          cortex.yaml:6:5   api "Iris_Classifier": compute: cpu
          "2x" is not a quantity
          hint: a quantity is a number with or without a suffix, such as 200m, 0.5, 2, 512Mi or 1e9
        error: bad-duration
          cortex.yaml:7:3   api "Iris_Classifier": timeout
          "never" is not a duration
          hint: a duration is such as 500ms, 30s, 10m or 1h30m; a plain number is seconds
        """,
    ),
    Case(
        "a name that YAML reads as a number",
        """
        - kind: api
          name: 123
          model: iris.onnx
        """,
        """
        error: wrong-type
          cortex.yaml:2:3   api at index 0: name
          expected a string, found the number 123
          hint: quoted it would be a string, but a name starts with a letter: "api-123"
        """,
    ),
    Case(
        "a name that YAML reads as a boolean",
        """
        - kind: api
          name: true
          model: iris.onnx
        """,
        """
        error: wrong-type
          cortex.yaml:2:3   api at index 0: name
          expected a string, found true
          hint: quote it: name: "true"
        """,
    ),
    Case(
        "a key to track that YAML reads as a number",
        """
        - kind: api
          name: iris
          model: iris.onnx
          tracker:
            key: 1e3
            model_type: regression
        """,
        """
        error: wrong-type
          cortex.yaml:5:5   api "iris": tracker: key
          expected a string, found the number 1e3
          hint: quote it: key: "1e3"
        """,
    ),
    Case(
        "a float for an integer",
        """
        - kind: api
          name: iris
          model: iris.onnx
          compute:
            min_replicas: 2.0
        """,
        """
        error: wrong-type
          cortex.yaml:5:5   api "iris": compute: min_replicas
          expected an integer, found the number 2.0
          hint: write min_replicas: 2
        """,
    ),
    Case(
        "a string for an integer",
        """
        - kind: api
          name: iris
          model: iris.onnx
          compute:
            gpu: "2"
        """,
        """
        error: wrong-type
          cortex.yaml:5:5   api "iris": compute: gpu
          expected an integer, found the string "2"
          hint: write gpu: 2
        """,
    ),
    Case(
        "a boolean for an integer",
        """
        - kind: api
          name: iris
          model: iris.onnx
          compute:
            min_replicas: true
        """,
        """
        error: wrong-type
          cortex.yaml:5:5   api "iris": compute: min_replicas
          expected an integer, found true
          hint: for example, min_replicas: 1
        """,
    ),
    Case(
        "a word for an integer",
        """
        - kind: api
          name: iris
          model: iris.onnx
          compute:
            gpu: yes
        """,
        """
        error: wrong-type
          cortex.yaml:5:5   api "iris": compute: gpu
          expected an integer, found the string "yes"
          hint: for example, gpu: 1
        """,
    ),
    Case(
        "an integer below its range",
        """
        - kind: api
          name: iris
          model: iris.onnx
          compute:
            concurrency: 0
            gpu: -1
        """,
        """
        error: out-of-range
          cortex.yaml:5:5   api "iris": compute: concurrency
          expected at least 1, found the number 0
          hint: write, for example, concurrency: 1
        error: out-of-range
          cortex.yaml:6:5   api "iris": compute: gpu
          expected at least 0, found the number -1
          hint: write, for example, gpu: 0
        """,
    ),
    Case(
        "a gpu of an api that may sleep",
        """
        - kind: api
          name: iris
          model: iris.onnx
          compute:
            min_replicas: 0
            gpu: 1
        """,
        """
        error: sleep-with-gpu
          cortex.yaml:6:5   api "iris": compute: gpu
          an api with a GPU cannot sleep: whoever wakes it may find the GPU taken
          hint: set min_replicas to 1 or more
        """,
    ),
    Case(
        "an integer above its range",
        """
        - kind: api
          name: iris
          model: iris.onnx
          compute:
            max_replicas: 10000000
        """,
        """
        error: out-of-range
          cortex.yaml:5:5   api "iris": compute: max_replicas
          expected at most 1000000, found the number 10000000
          hint: write, for example, max_replicas: 1000000
        """,
    ),
    Case(
        "a string for a mapping",
        """
        - kind: api
          name: iris
          model: iris.onnx
          compute: small
        """,
        """
        error: wrong-type
          cortex.yaml:4:3   api "iris": compute
          expected a mapping, found the string "small"
          hint: for example
                compute:
                  cpu: 200m
        """,
    ),
    Case(
        "a colon without a space in a block",
        """
        - kind: api
          name: iris
          model: iris.onnx
          tracker: model_type:regression
        """,
        """
        error: wrong-type
          cortex.yaml:4:3   api "iris": tracker
          expected a mapping, found the string "model_type:regression"
          hint: put a space after the colon
        """,
    ),
    Case(
        "a list for a mapping",
        """
        - kind: api
          name: iris
          model: iris.onnx
          env:
            - NAME: value
        """,
        """
        error: wrong-type
          cortex.yaml:4:3   api "iris": env
          expected a mapping, found a list
          hint: delete the "- " in front of its fields
        """,
    ),
    Case(
        "a mapping for a string",
        """
        - kind: api
          name: iris
          model: {path: iris.onnx}
        """,
        """
        error: wrong-type
          cortex.yaml:3:3   api "iris": model
          expected a string, found a mapping
          hint: for example, model: model.onnx
        """,
    ),
    Case(
        "a list for a quantity",
        """
        - kind: api
          name: iris
          model: iris.onnx
          compute:
            cpu: [1]
          timeout: true
        """,
        """
        error: wrong-type
          cortex.yaml:5:5   api "iris": compute: cpu
          expected a quantity, found a list
          hint: for example, cpu: 200m
        error: wrong-type
          cortex.yaml:6:3   api "iris": timeout
          expected a duration, found true
          hint: for example, timeout: 30s
        """,
    ),
    Case(
        "a word that is not offered",
        """
        - kind: api
          name: iris
          model: iris.onnx
          model_format: pytorch
        """,
        """
        error: unknown-value
          cortex.yaml:4:3   api "iris": model_format
          expected "onnx" or "tensorflow", found the string "pytorch"
          hint: for example, model_format: onnx
        """,
    ),
    Case(
        "a word with capitals",
        """
        - kind: api
          name: iris
          model: iris.onnx
          model_format: ONNX
        """,
        """
        error: unknown-value
          cortex.yaml:4:3   api "iris": model_format
          expected "onnx" or "tensorflow", found the string "ONNX"
          hint: did you mean "onnx"?
        """,
    ),
    Case(
        "a switch that is neither on nor off",
        """
        - kind: api
          name: iris
          model: iris.onnx
          retry: sometimes
        """,
        """
        error: unknown-value
          cortex.yaml:4:3   api "iris": retry
          expected "on" or "off", found the string "sometimes"
          hint: for example, retry: off
        """,
    ),
    Case(
        "a watch is at most an hour",
        """
        - kind: api
          name: iris
          model: iris.onnx
          rollout: {watch: 2h}
        """,
        """
        error: bad-duration
          cortex.yaml:4:13   api "iris": rollout: watch
          expected a duration up to 1h, or 0, found 2h
          hint: 2m unless given; 0 watches nothing
        """,
    ),
    Case(
        "batching is one of three words",
        """
        - kind: api
          name: iris
          model: iris.onnx
          batching: always
        """,
        """
        error: unknown-value
          cortex.yaml:4:3   api "iris": batching
          expected "auto", "on" or "off", found the string "always"
          hint: for example, batching: off
        """,
    ),
    Case(
        "a quantity with a suffix of memory sticks",
        """
        - kind: api
          name: iris
          model: iris.onnx
          compute:
            mem: 512MB
        """,
        """
        error: bad-quantity
          cortex.yaml:5:5   api "iris": compute: mem
          "512MB" is not a quantity
          hint: did you mean "512M"?
        """,
    ),
    Case(
        "a quantity with a space",
        """
        - kind: api
          name: iris
          model: iris.onnx
          compute:
            mem: 1 Gi
        """,
        """
        error: bad-quantity
          cortex.yaml:5:5   api "iris": compute: mem
          "1 Gi" is not a quantity
          hint: did you mean "1Gi"?
        """,
    ),
    Case(
        "a quantity that is none",
        """
        - kind: api
          name: iris
          model: iris.onnx
          compute:
            cpu: fast
            mem: .nan
        """,
        """
        error: bad-quantity
          cortex.yaml:5:5   api "iris": compute: cpu
          "fast" is not a quantity
          hint: a quantity is a number with or without a suffix, such as 200m, 0.5, 2, 512Mi or 1e9
        error: bad-quantity
          cortex.yaml:6:5   api "iris": compute: mem
          ".nan" is not a quantity
          hint: a quantity is a number with or without a suffix, such as 200m, 0.5, 2, 512Mi or 1e9
        """,
    ),
    Case(
        "a quantity of zero",
        """
        - kind: api
          name: iris
          model: iris.onnx
          compute:
            cpu: 0
            mem: -1Gi
        """,
        """
        error: bad-quantity
          cortex.yaml:5:5   api "iris": compute: cpu
          cpu has to be above 0, found 0
          hint: 200m is a fifth of a cpu
        error: bad-quantity
          cortex.yaml:6:5   api "iris": compute: mem
          a size has to be above 0, found -1Gi
          hint: 512Mi is 512 mebibytes
        """,
    ),
    Case(
        "memory in thousandths of bytes",
        """
        - kind: api
          name: iris
          model: iris.onnx
          compute:
            mem: 512m
        """,
        """
        error: bad-quantity
          cortex.yaml:5:5   api "iris": compute: mem
          512m is less than one byte: the suffix m stands for thousandths
          hint: did you mean "512M" or "512Mi"?
        """,
    ),
    Case(
        "memory without a suffix",
        """
        - kind: api
          name: iris
          model: iris.onnx
          mem: 512
        """,
        """
        error: bad-quantity
          cortex.yaml:4:3   api "iris": compute: mem
          512 is a number of bytes, and nothing runs in less than a mebibyte
          hint: did you mean "512Mi"?
        """,
    ),
    Case(
        "a quantity with a huge exponent",
        """
        - kind: api
          name: iris
          model: iris.onnx
          compute:
            mem: 1e999999999
        """,
        """
        error: bad-quantity
          cortex.yaml:5:5   api "iris": compute: mem
          "1e999999999" is out of range
          hint: a quantity is a number with or without a suffix, such as 200m, 0.5, 2, 512Mi or 1e9
        """,
    ),
    Case(
        "a duration that is none",
        """
        - kind: api
          name: iris
          model: iris.onnx
          timeout: soon
        """,
        """
        error: bad-duration
          cortex.yaml:4:3   api "iris": timeout
          "soon" is not a duration
          hint: a duration is such as 500ms, 30s, 10m or 1h30m; a plain number is seconds
        """,
    ),
    Case(
        "a duration with a long unit",
        """
        - kind: api
          name: iris
          model: iris.onnx
          timeout: 5 minutes
        """,
        """
        error: bad-duration
          cortex.yaml:4:3   api "iris": timeout
          "5 minutes" is not a duration
          hint: did you mean "5m"?
        """,
    ),
    Case(
        "a duration in days",
        """
        - kind: api
          name: iris
          model: iris.onnx
          timeout: 2d
        """,
        """
        error: bad-duration
          cortex.yaml:4:3   api "iris": timeout
          "2d" is not a duration
          hint: did you mean "48h"?
        """,
    ),
    Case(
        "a duration out of range",
        """
        - kind: api
          name: iris
          model: iris.onnx
          timeout: 1000h
        """,
        """
        error: bad-duration
          cortex.yaml:4:3   api "iris": timeout
          expected a duration from 1ms to 576h, found 1000h
          hint: a duration is such as 500ms, 30s, 10m or 1h30m; a plain number is seconds
        """,
    ),
    Case(
        "more minimum than the default maximum",
        """
        - kind: api
          name: iris
          model: iris.onnx
          compute:
            min_replicas: 150
        """,
        """
        error: replica-bounds
          cortex.yaml:5:5   api "iris": compute: min_replicas
          min_replicas 150 is more than max_replicas, which is 100 unless given
          hint: add max_replicas: 150
        """,
    ),
    Case(
        "more minimum than maximum",
        """
        - kind: api
          name: iris
          model: iris.onnx
          compute:
            min_replicas: 5
            max_replicas: 3
        """,
        """
        error: replica-bounds
          cortex.yaml:6:5   api "iris": compute: max_replicas
          max_replicas 3 is less than min_replicas 5
          hint: raise max_replicas to 5 or more
        """,
    ),
    Case(
        "fewer initial replicas than the minimum",
        """
        - kind: api
          name: iris
          model: iris.onnx
          compute:
            min_replicas: 2
            init_replicas: 1
        """,
        """
        error: replica-bounds
          cortex.yaml:6:5   api "iris": compute: init_replicas
          init_replicas 1 is less than min_replicas 2
          hint: leave init_replicas out to begin with min_replicas
        """,
    ),
    Case(
        "more initial replicas than the maximum",
        """
        - kind: api
          name: iris
          model: iris.onnx
          compute:
            max_replicas: 2
            init_replicas: 3
        """,
        """
        error: replica-bounds
          cortex.yaml:6:5   api "iris": compute: init_replicas
          init_replicas 3 is more than max_replicas 2
          hint: raise max_replicas to 3 or more
        """,
    ),
    Case(
        "a name with capitals and underscores",
        """
        - kind: api
          name: Iris_Classifier
          model: iris.onnx
        """,
        """
        error: bad-name
          cortex.yaml:2:3   api "Iris_Classifier": name
          "Iris_Classifier" is not a name: a name has lower-case letters, digits and dashes, starts with a letter and does not end in a dash
          hint: did you mean "iris-classifier"?
        """,
    ),
    Case(
        "a name that starts with a digit",
        """
        - kind: api
          name: 3d-model
          model: iris.onnx
        """,
        """
        error: bad-name
          cortex.yaml:2:3   api "3d-model": name
          "3d-model" is not a name: a name has lower-case letters, digits and dashes, starts with a letter and does not end in a dash
          hint: did you mean "api-3d-model"?
        """,
    ),
    Case(
        "a name that is too long",
        """
        - kind: api
          name: a-name-that-is-longer-than-names-may-be-in-cortex
          model: iris.onnx
        """,
        """
        error: bad-name
          cortex.yaml:2:3   api "a-name-that-is-longer-than-names-may-be-in-cortex": name
          a name has at most 42 characters, "a-name-that-is-longer-than-names-may-be-in-cortex" has 49
          hint: did you mean "a-name-that-is-longer-than-names-may-be-in"?
        """,
    ),
    Case(
        "a deployment's name with underscores",
        """
        - kind: deployment
          name: my_deployment
        """,
        """
        error: bad-name
          cortex.yaml:2:3   deployment "my_deployment": name
          "my_deployment" is not a name: a name has lower-case letters, digits and dashes, starts with a letter and does not end in a dash
          hint: did you mean "my-deployment"?
        """,
    ),
    Case(
        "a model from plain http",
        """
        - kind: api
          name: iris
          model: http://user:password@host/iris.onnx?token=secret
        """,
        """
        error: bad-model
          cortex.yaml:3:3   api "iris": model
          http:// is not supported: a model is a path, or begins with file://, s3://, gs://, az:// or https://
          hint: did you mean "https://host/iris.onnx?***"?
        """,
    ),
    Case(
        "a model from an unknown scheme",
        """
        - kind: api
          name: iris
          model: ftp://host/iris.onnx
        """,
        """
        error: bad-model
          cortex.yaml:3:3   api "iris": model
          ftp:// is not supported: a model is a path, or begins with file://, s3://, gs://, az:// or https://
          hint: for example, model: model.onnx
        """,
    ),
    Case(
        "a model with one slash too few",
        """
        - kind: api
          name: iris
          model: s3:/bucket/iris.onnx
        """,
        """
        error: bad-model
          cortex.yaml:3:3   api "iris": model
          s3: is not followed by two slashes
          hint: did you mean "s3://bucket/iris.onnx"?
        """,
    ),
    Case(
        "a model that is only a bucket",
        """
        - kind: api
          name: iris
          model: s3://bucket
        """,
        """
        error: bad-model
          cortex.yaml:3:3   api "iris": model
          "s3://bucket" names no file or folder
          hint: such as s3://my-bucket/model.onnx
        """,
    ),
    Case(
        "a model in the home folder",
        """
        - kind: api
          name: iris
          model: ~/iris.onnx
        """,
        """
        error: bad-model
          cortex.yaml:3:3   api "iris": model
          "~/iris.onnx": ~ has no meaning here
          hint: write the path out
        """,
    ),
    Case(
        "a file location with two slashes",
        """
        - kind: api
          name: iris
          model: file://models/iris.onnx
        """,
        """
        error: bad-model
          cortex.yaml:3:3   api "iris": model
          "file://models/iris.onnx" is not the location of a file: file:// is followed by an absolute path
          hint: with three slashes, such as file:///home/me/model.onnx
        """,
    ),
    Case(
        "an empty model",
        """
        - kind: api
          name: iris
          model: ''
        """,
        """
        error: bad-text
          cortex.yaml:3:3   api "iris": model
          expected a string that is not empty
          hint: for example, model: model.onnx
        """,
    ),
    Case(
        "a handler outside the project",
        """
        - kind: api
          name: iris
          model: iris.onnx
          request_handler: ../handler.py
        """,
        """
        error: bad-handler
          cortex.yaml:4:3   api "iris": request_handler
          "../handler.py" is outside the project, which is the folder of cortex.yaml
          hint: move the file into the project
        """,
    ),
    Case(
        "a handler with an absolute path",
        """
        - kind: api
          name: iris
          model: iris.onnx
          request_handler: /home/me/handler.py
        """,
        """
        error: bad-handler
          cortex.yaml:4:3   api "iris": request_handler
          "/home/me/handler.py" is not relative to the folder of cortex.yaml
          hint: such as "handler.py"
        """,
    ),
    Case(
        "a handler without ending",
        """
        - kind: api
          name: iris
          model: iris.onnx
          request_handler: handler
        """,
        """
        error: bad-handler
          cortex.yaml:4:3   api "iris": request_handler
          "handler" is not a Python file
          hint: did you mean "handler.py"?
        """,
    ),
    Case(
        "a handler as a module",
        """
        - kind: api
          name: iris
          model: iris.onnx
          request_handler: iris.handler
        """,
        """
        error: bad-handler
          cortex.yaml:4:3   api "iris": request_handler
          "iris.handler" is not a Python file
          hint: did you mean "iris/handler.py"?
        """,
    ),
    Case(
        "a handler with backslashes",
        """
        - kind: api
          name: iris
          model: iris.onnx
          request_handler: 'iris\\handler.py'
        """,
        """
        error: bad-handler
          cortex.yaml:4:3   api "iris": request_handler
          "iris\\handler.py" has backslashes
          hint: did you mean "iris/handler.py"?
        """,
    ),
    Case(
        "a signature key for a model that ends in .onnx",
        """
        - kind: api
          name: iris
          model: iris.onnx
          tf_signature_key: predict
        """,
        """
        error: signature-key-with-onnx
          cortex.yaml:4:3   api "iris": tf_signature_key
          tf_signature_key is for TensorFlow models, and this one is ONNX: the name of the model ends in .onnx
          hint: delete tf_signature_key
        """,
    ),
    Case(
        "a signature key for a model that is said to be ONNX",
        """
        - kind: api
          name: iris
          model: models/iris
          model_format: onnx
          tf_signature_key: predict
        """,
        """
        error: signature-key-with-onnx
          cortex.yaml:5:3   api "iris": tf_signature_key
          tf_signature_key is for TensorFlow models, and this one is ONNX: model_format says so
          hint: delete tf_signature_key
        """,
    ),
    Case(
        "an environment name with a dash",
        """
        - kind: api
          name: iris
          model: iris.onnx
          env:
            MY-NAME: 1
        """,
        """
        error: bad-env-name
          cortex.yaml:5:5   api "iris": env: MY-NAME
          "MY-NAME" is not the name of an environment variable: letters, digits and underscores, and no digit first
          hint: did you mean "MY_NAME"?
        """,
    ),
    Case(
        "an environment name that starts with a digit",
        """
        - kind: api
          name: iris
          model: iris.onnx
          env:
            2ND: 1
        """,
        """
        error: bad-env-name
          cortex.yaml:5:5   api "iris": env: 2ND
          "2ND" is not the name of an environment variable: letters, digits and underscores, and no digit first
          hint: did you mean "_2ND"?
        """,
    ),
    Case(
        "an environment name that Cortex sets",
        """
        - kind: api
          name: iris
          model: iris.onnx
          env:
            CORTEX_API: iris
        """,
        """
        error: reserved-env-name
          cortex.yaml:5:5   api "iris": env: CORTEX_API
          names that begin with CORTEX_ are set by Cortex
          hint: choose another name
        """,
    ),
    Case(
        "an environment value that is a list",
        """
        - kind: api
          name: iris
          model: iris.onnx
          env:
            NAMES: [a, b]
        """,
        """
        error: wrong-type
          cortex.yaml:5:5   api "iris": env: NAMES
          expected a string or {secret: <name>}, found a list
          hint: for example, NAMES: value
        """,
    ),
    Case(
        "a secret with a misspelled key",
        """
        - kind: api
          name: iris
          model: iris.onnx
          env:
            TOKEN: {secrets: token}
        """,
        """
        error: unknown-field
          cortex.yaml:5:13   api "iris": env: TOKEN: secrets
          "secrets" is not a field of a reference to a secret
          hint: did you mean "secret"?
        """,
    ),
    Case(
        "a secret without a name",
        """
        - kind: api
          name: iris
          model: iris.onnx
          env:
            TOKEN: {}
        """,
        """
        error: missing-field
          cortex.yaml:5:5   api "iris": env: TOKEN: secret
          "secret" is missing
          hint: for example, secret: token
        """,
    ),
    Case(
        "a secret's name with a slash",
        """
        - kind: api
          name: iris
          model: iris.onnx
          env:
            TOKEN: {secret: team/token}
        """,
        """
        error: bad-name
          cortex.yaml:5:13   api "iris": env: TOKEN: secret
          "team/token" is not the name of a secret: letters, digits, dots, dashes and underscores, at most 128
          hint: the NAME of: cortex secret set NAME
        """,
    ),
    Case(
        "a sample with numbers that JSON does not have",
        """
        - kind: api
          name: iris
          model: iris.onnx
          sample:
            rows: [1, .nan, -.inf]
        """,
        """
        error: bad-sample
          cortex.yaml:5:15   api "iris": sample: rows: index 1
          JSON has only finite numbers
          hint: write null for a missing number
        error: bad-sample
          cortex.yaml:5:21   api "iris": sample: rows: index 2
          JSON has only finite numbers
          hint: write null for a missing number
        """,
    ),
    Case(
        "a sample with a key that is no string",
        """
        - kind: api
          name: iris
          model: iris.onnx
          sample: {1: one}
        """,
        """
        error: key-not-text
          cortex.yaml:4:12   api "iris": sample
          expected a string as key, found the number 1
          hint: quote it: "1"
        """,
    ),
    Case(
        "no kind",
        """
        - name: iris
          model: iris.onnx
          cpu: 1
        """,
        """
        error: missing-field
          cortex.yaml:1:3   resource "iris": kind
          "kind" is missing
          hint: add kind: api
        """,
    ),
    Case(
        "no kind and nothing that tells it",
        """
        - name: iris
        """,
        """
        error: missing-field
          cortex.yaml:1:3   resource "iris": kind
          "kind" is missing
          hint: add kind: api or kind: deployment
        """,
    ),
    Case(
        "a kind one letter off",
        """
        - kind: apis
          name: iris
          model: iris.onnx
        """,
        """
        error: unknown-kind
          cortex.yaml:1:3   resource "iris": kind
          expected "api" or "deployment", found the string "apis"
          hint: did you mean "api"?
        """,
    ),
    Case(
        "a kind of long ago",
        """
        - kind: environment
          name: dev
        """,
        """
        error: unknown-kind
          cortex.yaml:1:3   resource "dev": kind
          expected "api" or "deployment", found the string "environment"
          hint: write kind: api
        """,
    ),
    Case(
        "a kind that is no string",
        """
        - kind: 1
        """,
        """
        error: unknown-kind
          cortex.yaml:1:3   resource at index 0: kind
          expected "api" or "deployment", found the number 1
          hint: write kind: api
        """,
    ),
    Case(
        "two deployments",
        """
        - kind: deployment
          name: iris
        - kind: deployment
          name: flowers
        """,
        """
        error: several-deployments
          cortex.yaml:3:3   deployment "flowers"
          a file has at most one deployment; the first is at line 1
          hint: keep one file to one deployment
        """,
    ),
    Case(
        "two apis of one name",
        """
        - kind: api
          name: iris
          model: iris.onnx
        - kind: api
          name: iris
          model: iris.onnx
        """,
        """
        error: duplicate-name
          cortex.yaml:5:3   api "iris": name
          two apis are named "iris": at line 2 and at line 5
          hint: rename one of them
        """,
    ),
    Case(
        "names of paths that are taken",
        """
        - kind: deployment
          name: readyz
        - kind: api
          name: v2
          model: iris.onnx
        - kind: api
          name: healthz
          model: iris.onnx
        """,
        """
        error: reserved-name
          cortex.yaml:2:3   deployment "readyz": name
          no deployment can be named "readyz" here: /readyz belongs to the ingress itself
          hint: choose another name, such as "readyz-deployment"
        error: reserved-name
          cortex.yaml:4:3   api "v2": name
          no api can be named "v2" here: <endpoint>/v2 belongs to the Open Inference Protocol
          hint: choose another name, such as "v2-api"
        """,
    ),
    Case(
        "names of paths that are taken without a deployment",
        """
        - kind: api
          name: v2
          model: iris.onnx
        - kind: api
          name: healthz
          model: iris.onnx
        """,
        """
        error: reserved-name
          cortex.yaml:5:3   api "healthz": name
          no api can be named "healthz" here: /healthz belongs to the ingress itself
          hint: choose another name, such as "healthz-api"
        """,
    ),
    Case(
        "an empty resource",
        """
        - kind: api
          name: iris
          model: iris.onnx
        -
        """,
        """
        error: wrong-type
          cortex.yaml:4:2   resource at index 1
          expected a mapping, found nothing
          hint: a resource is such as
                - kind: api
                  name: iris
                  model: model.onnx
        """,
    ),
    Case(
        "a resource without a space after its colon",
        """
        - kind:api
        """,
        """
        error: wrong-type
          cortex.yaml:1:3   resource at index 0
          expected a mapping, found the string "kind:api"
          hint: put a space after the colon
        """,
    ),
    Case(
        "a mapping instead of a list",
        """
        kind: api
        name: Iris
        model: iris.onnx
        """,
        """
        error: not-a-list
          cortex.yaml:1:1
          expected a list of resources, found a mapping
          hint: put "- " in front of the first line and indent the others, such as
                - kind: api
                  name: iris
                  model: model.onnx
        error: bad-name
          cortex.yaml:2:1   api "Iris": name
          "Iris" is not a name: a name has lower-case letters, digits and dashes, starts with a letter and does not end in a dash
          hint: did you mean "iris"?
        """,
    ),
    Case(
        "a mapping without a kind",
        """
        apis:
          - name: iris
        """,
        """
        error: not-a-list
          cortex.yaml:1:1
          expected a list of resources, found a mapping
          hint: put "- " in front of the first line and indent the others, such as
                - kind: api
                  name: iris
                  model: model.onnx
        """,
    ),
    Case(
        "a string instead of a list",
        """
        iris
        """,
        """
        error: not-a-list
          cortex.yaml:1:1
          expected a list of resources, found the string "iris"
          hint: a cortex.yaml is a list, the smallest is
                - kind: api
                  name: iris
                  model: model.onnx
        """,
    ),
    Case(
        "an empty file",
        """
        """,
        """
        error: empty-file
          cortex.yaml:1:1
          the file has no resources
          hint: the smallest cortex.yaml is
                - kind: api
                  name: iris
                  model: model.onnx
        """,
    ),
    Case(
        "only comments",
        """
        # to do
        """,
        """
        error: empty-file
          cortex.yaml:1:1
          the file has no resources
          hint: the smallest cortex.yaml is
                - kind: api
                  name: iris
                  model: model.onnx
        """,
    ),
    Case(
        "an empty list",
        """
        []
        """,
        """
        error: empty-file
          cortex.yaml:1:1
          the file has no resources
          hint: the smallest cortex.yaml is
                - kind: api
                  name: iris
                  model: model.onnx
        """,
    ),
    Case(
        "a duplicate key",
        """
        - kind: api
          name: iris
          model: iris.onnx
          compute:
            cpu: 1
            mem: 1Gi
            cpu: 2
        """,
        """
        error: duplicate-key
          cortex.yaml:7:5   api "iris": compute: cpu
          "cpu" stands here a second time; the first is at line 5, column 5
          hint: delete one of the two
        """,
    ),
    Case(
        "keys that are no strings",
        """
        - kind: api
          name: iris
          model: iris.onnx
          1: one
          true: two
          : three
        """,
        """
        error: key-not-text
          cortex.yaml:4:3   api "iris"
          expected a string as key, found the number 1
          hint: quote it: "1"
        error: key-not-text
          cortex.yaml:5:3   api "iris"
          expected a string as key, found true
          hint: quote it: "true"
        error: key-not-text
          cortex.yaml:6:3   api "iris"
          expected a string as key, found nothing
          hint: write a key in front of the ":"
        """,
    ),
    Case(
        "a template that was not filled in",
        """
        - kind: api
          name: {{ name }}
          model: iris.onnx
        """,
        """
        error: key-not-text
          cortex.yaml:2:10   api at index 0: name
          expected a string as key, found a mapping
          hint: quote the whole value if it is text that begins with "{" or "["
        """,
    ),
    Case(
        "a tab in front of a key",
        """
        - kind: api
        \tname: iris
        """,
        """
        error: tab
          cortex.yaml:2:1
          a tab stands where YAML wants spaces
          hint: replace it by spaces
        """,
    ),
    Case(
        "a key indented too far",
        """
        - kind: api
            name: iris
        """,
        """
        error: yaml-syntax
          cortex.yaml:2:9
          a ":" is not expected here
          hint: check the indentation of this line and the one above, or quote the value if the colon is part of it
        """,
    ),
    Case(
        "a key indented too little",
        """
        - kind: api
          name: iris
         model: iris.onnx
        """,
        """
        error: yaml-syntax
          cortex.yaml:3:2
          the indentation of this line fits nothing in the block that began in line 1
          hint: indent with spaces: keys of one mapping, and the dashes of one list, stand exactly below each other
        """,
    ),
    Case(
        "a key in the column of the dash",
        """
        - kind: api
        name: iris
        """,
        """
        error: yaml-syntax
          cortex.yaml:2:1
          the fields of a resource are indented below its first one, and do not stand at the left edge
          hint: indent line 2 by two spaces:
                - kind: api
                  name: iris
        """,
    ),
    Case(
        "a paste that lost all indentation",
        """
        - kind: deployment
        name: flowers

        - kind: api
        name: iris
        model: iris.onnx

        # small
        compute:
        cpu: 100m
        env:
          LEVEL: debug

        - kind: api
          name: rose
          model: rose.onnx
        """,
        """
        error: yaml-syntax
          cortex.yaml:2:1
          the fields of a resource are indented below its first one, and do not stand at the left edge
          hint: indent lines 2 and 5 to 12 by two spaces:
                - kind: deployment
                  name: flowers

                - kind: api
                  name: iris
                  model: iris.onnx

                  # small
                  compute:
                  cpu: 100m
                  env:
                    LEVEL: debug

                - kind: api
                  name: rose
                  model: rose.onnx
        """,
    ),
    Case(
        "indentation that no shift to the right mends",
        """
        - kind: api
            name: iris
         model: iris.onnx
        """,
        """
        error: yaml-syntax
          cortex.yaml:2:9
          a ":" is not expected here
          hint: check the indentation of this line and the one above, or quote the value if the colon is part of it
        """,
    ),
    Case(
        "a dash among keys",
        """
        - kind: api
          - name: iris
        """,
        """
        error: yaml-syntax
          cortex.yaml:2:3
          a "- " is not expected here: the block that began in line 1 goes on with keys
          hint: indent with spaces: keys of one mapping, and the dashes of one list, stand exactly below each other
        """,
    ),
    Case(
        "a colon without a space",
        """
        - kind: api
          name:iris
          model: iris.onnx
        """,
        """
        error: yaml-syntax
          cortex.yaml:2:3
          a ":" is missing after this key
          hint: write "key: value", with a space after the colon
        """,
    ),
    Case(
        "a colon inside a value",
        """
        - kind: api
          name: iris: v2
        """,
        """
        error: yaml-syntax
          cortex.yaml:2:13
          a ":" is not expected here
          hint: check the indentation of this line and the one above, or quote the value if the colon is part of it
        """,
    ),
    Case(
        "an open quote",
        """
        - kind: api
          name: "iris
          model: iris.onnx
        """,
        """
        error: yaml-syntax
          cortex.yaml:2:9
          the quote that opens here is not closed
          hint: add the closing quote
        """,
    ),
    Case(
        "text after a quote",
        """
        - kind: api
          model: 'it's.onnx'
        """,
        """
        error: yaml-syntax
          cortex.yaml:2:14
          text follows after a value has ended
          hint: quote the whole value; inside single quotes a quote is written twice
        """,
    ),
    Case(
        "an unknown escape",
        """
        - kind: api
          model: "C:\\models"
        """,
        """
        error: yaml-syntax
          cortex.yaml:2:14
          a backslash before "m" has no meaning in double quotes
          hint: use single quotes, or write two backslashes for one
        """,
    ),
    Case(
        "a short escape",
        """
        - kind: api
          model: "\\x4"
        """,
        """
        error: yaml-syntax
          cortex.yaml:2:13
          this escape needs 2 hexadecimal digits
          hint: use single quotes, or write two backslashes for one
        """,
    ),
    Case(
        "an escape beyond Unicode",
        """
        - kind: api
          model: "\\U99999999"
        """,
        """
        error: yaml-syntax
          cortex.yaml:2:3
          what follows has an escape or a number that is out of range
          hint: use single quotes, or write two backslashes for one
        """,
    ),
    Case(
        "half of a surrogate pair",
        """
        - kind: api
          name: iris
          model: iris.onnx
          sample: "\\ud83d"
        """,
        """
        error: bad-character
          cortex.yaml:4:11   api "iris": sample
          half of a surrogate pair is not a character
          hint: use single quotes, or write two backslashes for one
        """,
    ),
    Case(
        "an open brace",
        """
        - kind: api
          name: iris
          model: iris.onnx
          env: {NAME: value
        """,
        """
        error: yaml-syntax
          cortex.yaml:4:8
          the bracket that opens here is not closed: "}" is missing
          hint: add "}"
        """,
    ),
    Case(
        "a missing comma",
        """
        - kind: api
          name: iris
          model: iris.onnx
          sample: [1, 2
          retry: off
        """,
        """
        error: yaml-syntax
          cortex.yaml:5:8
          expected "," or "]" for the bracket that opens in line 4
          hint: add the comma or the "]", or quote the value
        """,
    ),
    Case(
        "a comma too many",
        """
        - kind: api
          name: iris
          model: iris.onnx
          sample: [1,, 2]
        """,
        """
        error: yaml-syntax
          cortex.yaml:4:14
          expected a value, found ","
          hint: quote it if it is text
        """,
    ),
    Case(
        "a value that begins with a reserved character",
        """
        - kind: api
          name: @iris
        """,
        """
        error: yaml-syntax
          cortex.yaml:2:9
          a value cannot begin with "@"
          hint: quote the value
        """,
    ),
    Case(
        "an alias without anchor",
        """
        - kind: api
          name: iris
          model: *modle
        - kind: api
          name: &model rose
          model: *modle
        """,
        """
        error: unknown-alias
          cortex.yaml:3:10   api "iris": model
          no anchor "&modle" stands above this alias
          hint: quote it if it is text: "*modle"
        error: unknown-alias
          cortex.yaml:6:10   api "rose": model
          no anchor "&modle" stands above this alias
          hint: did you mean "*model"?
        """,
    ),
    Case(
        "an alias inside of what it repeats",
        """
        - kind: api
          name: iris
          model: iris.onnx
          sample: &sample [*sample]
        """,
        """
        error: alias-loop
          cortex.yaml:4:20   resource at index 0: sample: index 0
          the alias "*sample" stands inside the value that it repeats
          hint: write the value out
        """,
    ),
    Case(
        "a merge of something else than a mapping",
        """
        - kind: api
          name: iris
          model: iris.onnx
          compute:
            <<: 200m
        """,
        """
        error: bad-merge
          cortex.yaml:5:9   api "iris": compute
          "<<" takes a mapping or a list of mappings
          hint: write, for example, <<: *defaults
        """,
    ),
    Case(
        "a tag of a programming language",
        """
        - kind: api
          name: iris
          model: iris.onnx
          sample: !!python/object:os.system {}
        """,
        """
        error: unsupported-tag
          cortex.yaml:4:11   api "iris": sample
          the tag "!!python/object:os.system" has no meaning here
          hint: remove the tag
        """,
    ),
    Case(
        "a tag that does not fit",
        """
        - kind: api
          name: iris
          model: iris.onnx
          sample: !!int one
        """,
        """
        error: unsupported-tag
          cortex.yaml:4:11   api "iris": sample
          "one" is not of type !!int
          hint: remove the tag
        """,
    ),
    Case(
        "an anchor without name",
        """
        - kind: api
          name: &
        """,
        """
        error: yaml-syntax
          cortex.yaml:2:10
          a name has to follow "&" and "*"
          hint: quote the value if it is text
        """,
    ),
    Case(
        "a bad block of text",
        """
        - kind: api
          name: |iris
        """,
        """
        error: yaml-syntax
          cortex.yaml:2:9
          the text of "|" or ">" begins on the next line, indented evenly
          hint: quote the value if it is not a block of text
        """,
    ),
    Case(
        "a directive",
        """
        %YAML 2.0
        ---
        - kind: api
        """,
        """
        error: yaml-syntax
          cortex.yaml:1:1
          YAML directives have no meaning here
          hint: delete the line that begins with "%"
        """,
    ),
    Case(
        "two documents",
        """
        - kind: api
          name: iris
          model: iris.onnx
        ---
        - kind: api
          name: iris
          model: iris.onnx
        """,
        """
        error: several-documents
          cortex.yaml:4:1
          a second YAML document begins here
          hint: keep one file to one document
        """,
    ),
    Case(
        "a control character",
        """
        - kind: api
          name: iris\x07
        """,
        """
        error: bad-character
          cortex.yaml:2:13
          the character U+0007 is not allowed in YAML
          hint: delete the character
        """,
    ),
    Case(
        "a number without end",
        """
        - kind: api
          name: iris
          model: iris.onnx
          sample: 11111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111
        """,
        """
        error: out-of-range
          cortex.yaml:4:11   api "iris": sample
          expected a number of at most 100 digits, found 101
          hint: quote it if it is text
        """,
    ),
]


def problems_of(text: str | bytes) -> Problems:
    with pytest.raises(Problems) as caught:
        load(text, file="cortex.yaml")
    return caught.value


def rendered(text: str | bytes) -> str:
    return "\n".join(render(problem) for problem in problems_of(text).problems)


def plain(text: str) -> str:
    return dedent(text).removeprefix("\n")


@pytest.mark.parametrize("case", [pytest.param(case, id=case.mistake) for case in CASES])
def test_a_wrong_file_is_explained(case):
    assert rendered(plain(case.text)) == plain(case.rendered).rstrip("\n")


@pytest.mark.parametrize("case", [pytest.param(case, id=case.mistake) for case in CASES])
def test_every_problem_has_a_place_a_next_step_and_a_documented_reference(case):
    for problem in problems_of(plain(case.text)).problems:
        assert problem.where.startswith("cortex.yaml:")
        assert problem.hint
        assert problem.reference in REFERENCES


def test_every_documented_reference_is_given_for_some_file_or_elsewhere_in_the_tests():
    given = {problem.reference for case in CASES for problem in problems_of(plain(case.text)).problems}
    elsewhere = {"file-too-large", "flat-form", "not-in-effect", "not-utf8", "too-deep", "too-many-values"}
    assert given.isdisjoint(elsewhere)
    assert given | elsewhere == set(REFERENCES)


@pytest.mark.parametrize(
    ("data", "where", "message"),
    [
        (b"- kind: api\n  name: caf\xe9\n", "cortex.yaml:2:12", "the byte 0xE9 is not UTF-8"),
        (b"\xef\xbb\xbf- \xff", "cortex.yaml:1:3", "the byte 0xFF is not UTF-8"),
        ("- kind: api".encode("utf-16"), "cortex.yaml:1:1", "the file is UTF-16"),
    ],
)
def test_bytes_that_are_not_utf8_are_refused_where_they_stand(data, where, message):
    (problem,) = problems_of(data).problems
    assert (problem.reference, problem.where, problem.message) == ("not-utf8", where, message)


@pytest.mark.parametrize("text", ["#" * (1024 * 1024 + 1), b"#" * (1024 * 1024 + 1), "é" * (512 * 1024 + 1)])
def test_a_file_over_a_mebibyte_is_refused(text):
    (problem,) = problems_of(text).problems
    assert (problem.reference, problem.where) == ("file-too-large", "cortex.yaml:1:1")


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
def test_deep_nesting_is_refused_without_recursing(opening):
    assert problems_of(opening * 100_000).problems[-1].reference == "too-deep"


def test_nesting_that_aliases_add_up_is_refused():
    levels = ["- &a0 [x]", *(f"- &a{level + 1} [[[[[[[[*a{level}]]]]]]]]" for level in range(20))]
    assert problems_of("\n".join(levels)).problems[-1].reference == "too-deep"


@pytest.mark.parametrize(
    "bomb",
    [
        ["- &a0 lol", *(f"- &a{level + 1} [*a{level}, *a{level}]" for level in range(50))],
        ["- &a0 {k: v}", *(f"- &a{level + 1} {{x: *a{level}, y: *a{level}}}" for level in range(50))],
        ["- &a " + "x" * 100_000, "- [" + "*a, " * 10_000 + "*a]"],
    ],
    ids=["lists", "mappings", "one long text"],
)
def test_aliases_that_multiply_are_refused(bomb):
    assert problems_of("\n".join(bomb)).problems[-1].reference == "too-many-values"


def test_an_endless_tag_is_refused_at_once():
    assert rendered("- !" + "a" * 1_000_000).startswith("error: unsupported-tag")


def test_problems_are_sorted_by_line_and_then_by_column():
    text = "- {kind: api, name: B, model: ftp://b}\n- {kind: api, name: A, model: ftp://a}\n"
    assert [problem.where for problem in problems_of(text).problems] == [
        "cortex.yaml:1:15",
        "cortex.yaml:1:24",
        "cortex.yaml:2:15",
        "cortex.yaml:2:24",
    ]


def test_a_place_names_the_file_as_it_was_called():
    with pytest.raises(Problems) as caught:
        load("", file="apis/cortex.yaml")
    assert caught.value.problems[0].where == "apis/cortex.yaml:1:1"


def test_a_problem_carries_its_path_with_indexes():
    (problem,) = problems_of("- kind: api\n  name: iris\n  model: m\n  compute: {cpu: x}\n").problems
    assert problem.path == (0, "compute", "cpu")


def test_a_third_api_of_one_name_points_at_the_first():
    text = "".join(f"- kind: api\n  name: iris\n  model: {model}\n" for model in "abc")
    assert [problem.message for problem in problems_of(text).problems] == [
        'two apis are named "iris": at line 2 and at line 5',
        'two apis are named "iris": at line 2 and at line 8',
    ]


def test_a_mistake_behind_an_alias_is_told_where_it_is_used():
    text = "- kind: api\n  name: a\n  model: m\n  env: {CPU: &cpu 2x}\n  compute:\n    cpu: *cpu\n"
    (problem,) = problems_of(text).problems
    assert problem.where == "cortex.yaml:6:5"


def test_thousands_of_unknown_keys_are_told_without_comparing_each():
    text = "- kind: api\n  name: a\n  model: m\n" + "".join(f"  comput{number}: 1\n" for number in range(1000))
    problems = problems_of(text).problems
    assert len(problems) == 1000
    assert problems[0].hint.startswith("the fields are")


def test_the_secret_parts_of_a_location_are_in_no_message():
    text = "- kind: api\n  name: a\n  model: https://me:password@host?signature=1\n"
    (problem,) = problems_of(text).problems
    assert "password" not in str(problem)
    assert "signature" not in str(problem)
