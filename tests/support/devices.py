"""Tests that run on a GPU, and on a CPU where somebody asks for the slow ones."""

import pytest
import torch

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CPU = pytest.param("cpu", marks=[pytest.mark.slow])
CUDA = pytest.param("cuda", marks=[pytest.mark.gpu, needs_cuda])
on_each_device = pytest.mark.parametrize("device", [CPU, CUDA], indirect=True)
"""The test takes `device` (`torch.device`), which an engine of the process trains on."""
