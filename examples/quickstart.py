"""A Mamba block over a sequence, the same token by token, and one gradient step.

python examples/quickstart.py
"""

import torch

from mamba_aot import Mamba, SSMConfig

torch.manual_seed(0)
mamba = Mamba(SSMConfig(d_model=256, d_state=16))
x = torch.randn(2, 300, 256)
y = mamba(x)
print("sequence:", tuple(y.shape))

state = mamba.allocate_state(batch=2)
mamba(x[:, :200], state)
steps = torch.stack([mamba.step(token, state) for token in x[:, 200:].unbind(1)], dim=1)
print("steps after a prompt differ from the sequence by", f"{(steps - y[:, 200:]).abs().max().item():.1e}")

optimizer = torch.optim.AdamW(mamba.parameters(), lr=1e-3)
target = torch.randn_like(y)
for _ in range(3):
    loss = (mamba(x) - target).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"loss {loss.item():.4f}")
