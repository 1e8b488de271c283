"""What is installed runs where triton is not: a process in which importing it raises."""

import subprocess
import sys

BLOCKED = """
import sys

# Importing these raises; that torch may look whether there is a triton is its own affair.
sys.modules.update(dict.fromkeys(["triton", "tools", "csrc"]))
"""


def run(program: str) -> None:
    command = [sys.executable, "-W", "error", "-c", BLOCKED + program]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_forward_and_backward():
    run(
        """
import torch
import mamba_aot

model = mamba_aot.Mamba(mamba_aot.SSMConfig(d_model=16))
x = torch.randn(2, 7, 16, requires_grad=True)
model(x).square().sum().backward()
assert torch.isfinite(x.grad).all()
assert sys.modules["triton"] is None
"""
    )


def test_generate():
    run(
        """
import torch
import mamba_aot

config = mamba_aot.MambaLMConfig(n_layer=2, ssm=mamba_aot.SSMConfig(d_model=16))
tokens = mamba_aot.generate(mamba_aot.MambaLM(config), torch.arange(5), max_new_tokens=6, seed=0)
assert tokens.shape == (11,)
assert sys.modules["triton"] is None
"""
    )
