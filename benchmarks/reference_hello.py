"""The floor for small requests: a frozen hello-world server on the same transport. Argument: port."""

import asyncio
import sys

import httptools
import uvloop

ANSWER = b'{"model_name":"hello","outputs":[{"name":"label","datatype":"INT64","shape":[1],"data":[2]}]}'
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER)


class Hello(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.parser, self.body = transport, httptools.HttpRequestParser(self), b""

    def data_received(self, data):
        self.parser.feed_data(data)

    def on_body(self, data):
        self.body += data

    def on_message_complete(self):
        self.body = b""
        self.transport.write(HEAD + ANSWER)


async def main():
    server = await asyncio.get_running_loop().create_server(Hello, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
