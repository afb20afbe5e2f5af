"""Runs inside Triton's Python backend: one ONNX Runtime call for all requests of a batch."""

import os

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = os.path.join(args["model_repository"], args["model_version"], "iris.onnx")
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        rows = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        labels, probabilities = self.session.run(
            ["label", "probabilities"], {"x": rows[0] if len(rows) == 1 else np.concatenate(rows)}
        )
        labels = labels.reshape(-1, 1)
        responses, start = [], 0
        for row in rows:
            end = start + len(row)
            responses.append(
                pb_utils.InferenceResponse(
                    [
                        pb_utils.Tensor("label", labels[start:end]),
                        pb_utils.Tensor("probabilities", probabilities[start:end]),
                    ]
                )
            )
            start = end
        return responses
