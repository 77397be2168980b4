import pytest
import torch
from stand_in_hub import hub  # noqa: F401  # a fixture
from tiny_models import tiny_model, tiny_tokenizer


def pytest_runtest_setup(item):
    if "gpu" in item.keywords and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def model_path(tmp_path_factory) -> str:
    """A saved policy, as the scripts read it."""
    folder = tmp_path_factory.mktemp("tiny_qwen2")
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)
