"""One of two processes that train together and sample with vLLM: `vllm_worker.py POLICY FOLDER [SERVER'S ADDRESS]`."""

import os
import sys
from pathlib import Path

import pytest
import torch
import vllm_on_cpu
from recording import RecordingTrainer, assert_right
from tiny_models import letters_reward, tiny_config, tiny_dataset, tiny_tokenizer


def main(policy: str, folder: str, address: str | None = None) -> None:
    os.environ.update(vllm_on_cpu.SETTINGS)
    settings = {"vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.1, "vllm_max_model_length": 128}
    if address is None:
        vllm_on_cpu.keep_weights_loadable()
        vllm_on_cpu.compute_in_float32()
    else:
        vllm_on_cpu.send_weights_by_file(pytest.MonkeyPatch(), Path(folder))
        settings = {"vllm_mode": "server", "vllm_server_base_url": address}
    trainer = RecordingTrainer(
        policy,
        letters_reward,
        tiny_config(folder, use_vllm=True, learning_rate=1e-3, per_device_train_batch_size=4, **settings),
        train_dataset=tiny_dataset(),
        processing_class=tiny_tokenizer(),
    )
    assert trainer.accelerator.num_processes == 2 and torch.distributed.get_world_size() == 2
    trainer.train()
    assert trainer.states.mode == "fused" and len(trainer.records) == 3
    assert_right(trainer, 2e-5)
    differences = [row["sampling/sampling_logp_difference/max"] for row in trainer.state.log_history[:3]]
    assert max(differences) < 1e-3, differences
    mine = torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])
    others = [torch.empty_like(mine) for _ in range(2)]
    torch.distributed.all_gather(others, mine)
    assert torch.equal(*others)
    (Path(folder) / f"right_{trainer.accelerator.process_index}").touch()


if __name__ == "__main__":
    main(*sys.argv[1:])
