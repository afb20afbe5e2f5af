"""Runs in LitServe's environment. Arguments: port, model file."""

import sys

import joblib
import litserve
import numpy as np


class Iris(litserve.LitAPI):
    def setup(self, device):
        self.model = joblib.load(sys.argv[2])

    def decode_request(self, request):
        return np.asarray(request["row"], dtype=np.float32)

    def batch(self, inputs):
        return np.stack(inputs)

    def predict(self, rows):
        return self.model.predict(rows)

    def unbatch(self, output):
        return list(output)

    def encode_response(self, output):
        return {"label": int(output)}


if __name__ == "__main__":
    server = litserve.LitServer(
        Iris(max_batch_size=64, batch_timeout=0.001), accelerator="cpu", workers_per_device=1
    )
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
