"""Calls a server as a user of KServe's SDK does, and prints what came back.

Arguments: URL, model, input, rows of FP32 as JSON.

Runs in the SDK's own environment, so it imports nothing of ours; and nothing of the SDK at its top, because
the doctests of this folder are collected without it.
"""

import asyncio
import json
import sys
from typing import Any

import numpy as np


async def infer(
    client: Any, url: str, model: str, name: str, rows: list[list[float]], is_binary: bool
) -> dict[str, Any]:
    from kserve import InferInput, InferRequest

    array = np.array(rows, np.float32)
    tensor = InferInput(name, list(array.shape), "FP32")
    tensor.set_data_from_numpy(array, binary_data=is_binary)
    request = InferRequest(model, [tensor], request_id="mine", parameters={"binary_data_output": is_binary})
    response = await client.infer(url, request, model_name=model)
    return {
        "id": response.id,
        "model": response.model_name,
        "outputs": {output.name: output.as_numpy().tolist() for output in response.outputs},
    }


async def main(url: str, model: str, name: str, rows: list[list[float]]) -> None:
    from kserve import InferenceRESTClient, RESTConfig

    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
    try:
        found = {
            "live": await client.is_server_live(url),
            "ready": await client.is_server_ready(url),
            "model_ready": await client.is_model_ready(url, model),
            "missing_ready": await client.is_model_ready(url, "none"),
            "json": await infer(client, url, model, name, rows, is_binary=False),
            "binary": await infer(client, url, model, name, rows, is_binary=True),
        }
    finally:
        await client.close()
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])))
