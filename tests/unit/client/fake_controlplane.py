"""
A process that behaves as a control plane does towards `client.local`. Standard library only, to start fast.

`FAKE=dies` writes to stderr and exits 1; `FAKE=silent` never says where it is.
"""

import json
import os
import signal
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

home = os.environ["CORTEX_HOME"]
port = int(os.environ["CORTEX_OPERATOR_PORT"])
mode = os.environ.get("FAKE", "")
handed_over = [socket.socket(fileno=int(number)) for number in sys.argv[1:]]
bound = {sock.getsockname()[1]: sock for sock in handed_over}

with open(os.path.join(home, "starts"), "a") as starts:
    facts = {
        "pid": os.getpid(),
        "session": os.getsid(0),
        "cwd": os.getcwd(),
        "port": os.environ["CORTEX_PORT"],
        "path": os.environ.get("PYTHONPATH"),
        "mine": os.environ.get("MINE"),
        "stdin": os.read(0, 1) == b"",
        "bound": sorted(bound),
    }
    starts.write(json.dumps(facts) + "\n")

if mode == "dies":
    print("working on it")
    sys.exit("there is no room for me\nanywhere")
if mode == "silent":
    signal.pause()

INFO = {
    "version": "0.1.0",
    "environment": "local",
    "home": home,
    "operator": "",
    "ingress": "",
    "pid": os.getpid(),
    "started": "",
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps(INFO).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.do_GET()
        threading.Thread(target=server.shutdown).start()

    def log_message(self, *args):
        pass


server = HTTPServer(("127.0.0.1", port), Handler, bind_and_activate=False)
server.socket.close()
server.socket = bound[port]


def write(name, text):
    temporary = os.path.join(home, name + ".new")
    with open(temporary, "w") as file:
        file.write(text)
    os.rename(temporary, os.path.join(home, name))


with open("/proc/self/stat", "rb") as stat:
    ticks = int(stat.read().rsplit(b")", 1)[1].split()[19])
with open("/proc/sys/kernel/random/boot_id") as boot:
    boot_id = boot.read().strip()
identity = {"pid": os.getpid(), "start_ticks": ticks, "boot_id": boot_id}
write("token", "secret\n")
write("controlplane.json", json.dumps({**identity, "operator_port": port, "port": 1, "host": "127.0.0.1"}))
server.serve_forever(0.01)
os.remove(os.path.join(home, "controlplane.json"))
