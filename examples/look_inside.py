"""The pieces of a Mamba block, one by one: how long it remembers, and how the gate shortens that.

python examples/look_inside.py
"""

import torch
import torch.nn.functional as F

from mamba_aot import Mamba, SSMConfig

torch.manual_seed(0)
mamba = Mamba(SSMConfig(d_model=64, d_state=8))
inputs = torch.randn(1, 50, 64)

with torch.no_grad():
    x, z = mamba.in_proj(inputs).chunk(2, dim=-1)
    x = mamba.conv1d(x)
    delta, A_mod, B_mod, C_mod = mamba.s_proj(x)
    A_disc, B_disc = mamba.discretization(delta, A_mod, B_mod)  # [B, L, D, N]
    y = mamba.selective_scan(x, delta, A_disc, B_disc, mamba.C0 + C_mod)
    output = mamba.out_proj(y * F.silu(z))
    ungated, _ = mamba.discretization(delta)

print("difference to the fused forward:", f"{(output - mamba(inputs)).abs().max().item():.1e}")
for name, decay in (("without the gate", ungated), ("with the gate", A_disc)):
    half_life = torch.log(torch.tensor(0.5)) / decay.abs().log()
    print(f"median half-life of a state, {name}: {half_life.median().item():.0f} steps")
print("frequencies of the states, radians a step:", [round(w, 3) for w in A_disc[0, 0, 0].angle().tolist()])
