"""
A stand-in for a replica: HTTP/1.1 on an inherited listening socket. `backend_process.py <fd> <name> <journal>`.

The query says what to do: `sleep=<s>`, `hold` (answer once there is a file `go` beside the journal), `status=<n>`,
`die`, `silent` (read, answer nothing), `refused` (say what only a door may say). Every request that was read is a line
in the journal: `<name> <request id>`.
"""

import asyncio
import json
import os
import socket
import sys
from urllib.parse import parse_qsl, urlsplit


async def main(fd: int, name: str, journal: str) -> None:
    log = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    go = os.path.join(os.path.dirname(journal), "go")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip().split("\r\n")
        method, target, _ = first.split(" ")
        headers = {k.lower(): v.strip() for k, v in (line.split(":", 1) for line in lines)}
        query = dict(parse_qsl(urlsplit(target).query, keep_blank_values=True))
        if headers.get("expect"):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await read_body(reader, headers)
        os.write(log, f"{name} {headers.get('x-request-id')}\n".encode())
        if "die" in query:
            os._exit(1)
        if "silent" in query:
            await asyncio.sleep(3600)
        await asyncio.sleep(float(query.get("sleep", 0)))
        while "hold" in query and not os.path.exists(go):
            await asyncio.sleep(0.01)
        facts = {"server": name, "pid": os.getpid(), "method": method, "target": target, "headers": headers}
        content = json.dumps({**facts, "length": len(body)}).encode()
        status = query.get("status", "200")
        feigned = "x-cortex-refused: 1\r\n" if "refused" in query else ""
        writer.write(
            f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nx-cortex-version: of-replica\r\n"
            f"{feigned}content-length: {len(content)}\r\n\r\n".encode()
            + (b"" if method == "HEAD" else content)
        )
        await writer.drain()

    listener = socket.socket(fileno=fd)
    server = await asyncio.start_unix_server(serve, sock=listener, limit=1 << 21)
    await server.serve_forever()


async def read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if "content-length" in headers:
        return await reader.readexactly(int(headers["content-length"]))
    body = b""
    while headers.get("transfer-encoding") == "chunked":
        size = int(await reader.readline(), 16)
        body += (await reader.readexactly(size + 2))[:-2]
        if size == 0:
            break
    return body


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], sys.argv[3]))
