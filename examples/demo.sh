#!/usr/bin/env bash
# Deploys the iris example, asks it something, and says what to try next. Run it with `make demo`.
# Home, ports and environment are those of any other cortex command: CORTEX_HOME and its kin are honoured.
set -euo pipefail
cd "$(dirname "$0")/.."

cortex=.venv/bin/cortex
if [ ! -x "$cortex" ]; then
    echo "error: $cortex is not installed; run: make demo" >&2
    exit 1
fi

run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

run "$cortex" deploy examples/iris
run "$cortex" predict iris/sklearn examples/iris/sample.json
run "$cortex" get

endpoint=$("$cortex" get iris/sklearn -o json |
    .venv/bin/python -c 'import json, sys; print(json.load(sys.stdin)["endpoint"])')

cat <<END

It runs, and goes on running. What to try next:

  over HTTP, and with most of the sample left out
    curl $endpoint -d @examples/iris/sample.json
    curl $endpoint -d '{"sepal_length": 5.2}'

  what an api has predicted, and what a handler has logged
    $cortex get iris/sklearn
    $cortex predict iris/pytorch examples/iris/sample.json
    $cortex logs iris/pytorch --no-follow

  a change: edit examples/iris/handlers/sklearn_iris.py and deploy again; requests are answered all the while
    $cortex deploy examples/iris

To stop everything:

    $cortex down
END
