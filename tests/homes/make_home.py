"""
Makes a home with the Cortex that is installed beside it, so that later ones are tested on what it stored. A file that
is here is never made again; it is named by the schema of its state.

    python tests/homes/make_home.py tests/homes/schema_N.tar.gz
"""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "e2e"))

from contract_harness import Home, rows_model, running_home, write_project

CONFIGURATION = """\
    - kind: deployment
      name: old

    - kind: api
      name: handled
      model: handled.onnx
      request_handler: handler.py
      sample: {row: [1, 2, 3, 4]}
      env: {GREETING: hello, TOKEN: {secret: api-token}}
      compute: {cpu: 10m}

    - kind: api
      name: plain
      model: plain.onnx
      compute: {cpu: 10m, init_replicas: 2}
    """
HANDLER = """\
    import os

    def pre_inference(sample, metadata):
        return [sample["row"]]

    def post_inference(prediction, metadata):
        return {"by": NUMBER, "score": prediction["score"][0][0], "says": os.environ["GREETING"], \
"token": os.environ["TOKEN"]}
    """
BROKEN = """\
    def pre_inference(sample, metadata):
        raise ValueError("of no use")
    """
CLOUD = {"AWS_DEFAULT_REGION": "eu-central-1"}
"""What deploys hand over, so that the handler's build is pinned to it."""
KEPT = ("state.db", "secrets", "artifacts")


def fill(home: Home, project: Path) -> None:
    """Of `handled` the first version was replaced, the second serves, the third failed; `plain` was rolled once."""
    write_project(
        project,
        {"cortex.yaml": CONFIGURATION, "handled.onnx": rows_model(1.0), "plain.onnx": rows_model(2.0)},
    )
    home.cortex("secret", "set", "api-token", stdin=b"the-value")
    write_project(project, {"handler.py": HANDLER.replace("NUMBER", "1")})
    home.deploy(project, **CLOUD)
    write_project(project, {"handler.py": HANDLER.replace("NUMBER", "2")})
    home.deploy(project, **CLOUD)
    write_project(
        project, {"handler.py": BROKEN, "cortex.yaml": CONFIGURATION.replace("cpu: 10m, init", "cpu: 20m, init")}
    )
    home.deploy(project, code=1, **CLOUD)
    write_project(project, {"handler.py": HANDLER.replace("NUMBER", "2")})


def main(file: Path) -> None:
    with running_home() as home:
        project = home.path.parent / "project"
        fill(home, project)
        print(home.cortex("history", "old/handled").out, home.cortex("history", "old/plain").out)
        home.cortex("down")
        with tarfile.open(file, "w:gz") as archive:
            for name in KEPT:
                archive.add(home.path / name, f"home/{name}")
            archive.add(project, "project")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
