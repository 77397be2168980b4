"""
What lets a real vLLM be tested without a GPU: nothing of this belongs into a run.

vLLM's CPU backend packs linear weights so that none can be loaded over them, and TRL sends weights to a server by NCCL
alone. Here the engine keeps its weights as they are, in the policy's dtype, and a server reads them from a file. All
else is theirs.
"""

import os
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the trainer is in the same process
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
}
MAX_LENGTH = 128


def keep_weights_loadable() -> None:
    """Before an engine starts: it computes with its weights as they were loaded, and so others can be loaded."""
    import vllm.model_executor.layers.utils as utils

    def keep(layer, remove_weight=False):
        layer.cpu_linear = torch.nn.functional.linear

    utils.dispatch_cpu_unquantized_gemm = keep


def compute_in_float32() -> None:
    """TRL names no dtype to an engine of its own, and vLLM takes 16 bits for a float32 policy."""
    from trl.generation import vllm_generation

    vllm_generation.LLM = partial(vllm_generation.LLM, dtype="float32")


# ---------------------------------------------------------------------- the server's side


def register_file_transfer() -> None:
    """A weight transfer engine of vLLM's called `file`: weights come in a safetensors file."""
    from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory

    @dataclass
    class Nothing:
        pass

    @dataclass
    class Where:
        path: str

    class FileTransfer(WeightTransferEngine):
        init_info_cls, update_info_cls = Nothing, Where

        def init_transfer_engine(self, init_info) -> None: ...

        def start_weight_update(self) -> None: ...

        def finish_weight_update(self) -> None: ...

        def shutdown(self) -> None: ...

        def receive_weights(self, update_info) -> None:
            self.model.load_weights(load_file(update_info.path).items())

    WeightTransferEngineFactory.register_engine("file", FileTransfer)


class WorkerExtension:
    """Adds nothing: a server's worker imports this module for it, before it makes its model."""


if os.environ.get("TESTS_VLLM_SERVER"):
    keep_weights_loadable()
    register_file_transfer()


@contextmanager
def server(model: str, port: int, log: Path):
    """vLLM's own server with the flags that TRL asks for, until the block ends. Gives its address."""
    folder = Path(__file__).parent
    environment = {**os.environ, **SETTINGS, "VLLM_SERVER_DEV_MODE": "1", "TESTS_VLLM_SERVER": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), str(folder.parent)])
    # The command `vllm serve` wants metadata called "vllm", which the package for CPUs has not.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--port", str(port), "--host", "127.0.0.1"]
    command += [
        "--weight-transfer-config",
        '{"backend": "file"}',
        "--worker-extension-cls",
        f"{__name__}.WorkerExtension",
    ]
    command += ["--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1"]
    command += ["--dtype", "float32", "--max-model-len", str(MAX_LENGTH), "--max-num-seqs", "16"]
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(process, f"{address}/health", log)
            yield address
        finally:
            process.terminate()
            process.wait(60)


def wait_for(process: subprocess.Popen, address: str, log: Path, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-4000:]
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise TimeoutError(log.read_text()[-4000:])


# ---------------------------------------------------------------------- the trainer's side


def send_weights_by_file(monkeypatch, folder: Path) -> None:
    """TRL's client, which gathers the weights and says what it sends, hands them over in a file."""
    from trl.generation.vllm_client import VLLMClient

    def init_communicator(client, device=0) -> None:
        assert client.get_server_info()["weight_transfer_config"]["backend"] == "file"
        client._post(f"{client.base_url}/init_weight_transfer_engine", json={"init_info": {}})

    def update_named_params(client, metadata, named_params) -> None:
        path = folder / "weights.safetensors"
        weights = {name: weight.detach().clone() for name, weight in named_params}
        assert [name for name, _, _ in metadata] == list(weights)
        save_file(weights, path)
        client._start_weight_update()
        client._post(f"{client.base_url}/update_weights", json={"update_info": {"path": str(path)}})
        client._finish_weight_update()

    monkeypatch.setattr(VLLMClient, "init_communicator", init_communicator)
    monkeypatch.setattr(VLLMClient, "update_named_params", update_named_params)
