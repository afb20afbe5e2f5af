"""The floor for large requests: a frozen server that answers once the body was read. Argument: port."""

import asyncio
import sys

import uvloop

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


class Read(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.head, self.missing = transport, b"", 0

    def data_received(self, data):
        if self.missing == 0:
            head, end, body = (self.head + data).partition(b"\r\n\r\n")
            if not end:
                self.head = head
                return
            length = head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
            self.head, self.missing, data = b"", int(length), body
        self.missing -= len(data)
        if self.missing == 0:
            self.transport.write(ANSWER)


async def main():
    server = await asyncio.get_running_loop().create_server(Read, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
