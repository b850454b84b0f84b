"""A Triton backend named ``onnxruntime``, in Python, for servers that come without NVIDIA's own.

It runs the models whose configuration says ``platform: "onnxruntime_onnx"``, so that one repository is served alike by
NVIDIA's container and by the server of a plain CPU machine. It is run by the server's Python, never imported here.

Every request is answered by itself, with its own batch. The implicit state of a sequence (``sequence_batching.state``) is
kept by correlation identity from the request that starts it to the one that ends it. As many sequences are kept as the
instance has slots: the server gives a slot to the next sequence when one has been idle for too long. A request of a
sequence that is not known here is refused, never answered from zeros.
"""

import collections
import json
import os

import numpy
import onnxruntime
import triton_python_backend_utils as triton

START, END = 1, 2  # TRITONSERVER_REQUEST_FLAG_SEQUENCE_START, _END


def slots(config):
    """Sequences that one instance serves at a time."""
    sequence = config.get("sequence_batching") or {}
    oldest = (sequence.get("oldest") or {}).get("max_candidate_sequences", 0)
    return max(1, int(oldest) or int(config.get("max_batch_size", 0)))


def providers(kind, device):
    """Execution providers for an instance's kind; a GPU instance is never moved to the CPU in silence."""
    if kind != "GPU":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise triton.TritonModelException(
            "the model asks for a GPU, but the server's onnxruntime has no CUDA; install the server's environment with --gpu"
        )
    return [("CUDAExecutionProvider", {"device_id": int(device)}), "CPUExecutionProvider"]


class TritonPythonModel:
    """One instance of one model."""

    @staticmethod
    def auto_complete_config(config):
        return config

    def initialize(self, args):
        if int(numpy.__version__.split(".")[0]) >= 2:
            raise triton.TritonModelException(f"the server's Python has numpy {numpy.__version__}, with which outputs are garbage")
        config = json.loads(args["model_config"])
        settings = {k: v["string_value"] for k, v in (config.get("parameters") or {}).items()}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(settings.get("intra_op_thread_count", 1))
        options.inter_op_num_threads = int(settings.get("inter_op_thread_count", 1))
        # idle threads that spin would take the cores of whatever else runs on the machine
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        file = os.path.join(args["model_repository"], args["model_version"], config.get("default_model_filename") or "model.onnx")
        chosen = providers(args["model_instance_kind"], args["model_instance_device_id"])
        self.session = onnxruntime.InferenceSession(file, options, providers=chosen)
        self.batched = int(config.get("max_batch_size", 0)) > 0
        self.inputs = [i["name"] for i in config["input"]]
        self.outputs = [o["name"] for o in config["output"]]
        self.states = (config.get("sequence_batching") or {}).get("state") or []
        self.kept = collections.OrderedDict()
        self.slots = slots(config)
        for state in self.states:
            for initial in state.get("initial_state") or []:
                if not initial.get("zero_data"):
                    raise triton.TritonModelException(f"initial state of {state['input_name']}: only zero_data is known to this backend")

    def zeros(self):
        """States of a sequence that starts."""
        lead = [1] if self.batched else []
        made = {}
        for state in self.states:
            initial = (state.get("initial_state") or [state])[0]
            shape = lead + [max(0, int(d)) for d in initial["dims"]]
            made[state["input_name"]] = numpy.zeros(shape, triton.triton_string_to_numpy(state["data_type"]))
        return made

    def answer(self, request):
        feed = {name: triton.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}
        if not self.states:
            found = self.session.run(self.outputs, feed)
        else:
            sequence, flags = request.correlation_id(), request.flags()
            if flags & START:
                self.kept[sequence] = self.zeros()
                self.kept.move_to_end(sequence)
                while len(self.kept) > self.slots:
                    self.kept.popitem(last=False)
            elif sequence not in self.kept:
                raise ValueError(f"sequence {sequence} has no state here; START is missing")
            else:
                # so that what a new one replaces is the sequence that has been silent longest
                self.kept.move_to_end(sequence)
            feed.update(self.kept[sequence])
            try:
                found = self.session.run(self.outputs + [s["output_name"] for s in self.states], feed)
            except Exception:
                # what follows would be answered from a state that lacks this request
                del self.kept[sequence]
                raise
            self.kept[sequence] = {s["input_name"]: v for s, v in zip(self.states, found[len(self.outputs) :], strict=True)}
            if flags & END:
                del self.kept[sequence]
        return triton.InferenceResponse([triton.Tensor(n, v) for n, v in zip(self.outputs, found)])  # noqa: B905 (states follow)

    def execute(self, requests):
        responses = []
        for request in requests:
            try:
                responses.append(self.answer(request))
            except Exception as e:
                responses.append(triton.InferenceResponse(error=triton.TritonError(f"{type(e).__name__}: {e}")))
        return responses
