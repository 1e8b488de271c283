"""Loads the model that `mamba-aot demo` saved, and lets it continue a text.

mamba-aot demo --out demo-out
python examples/continue_text.py demo-out "The statement"
"""

import sys

import torch

from mamba_aot import from_pretrained, stream

model = from_pretrained(sys.argv[1])
prompt = sys.argv[2].encode()
sys.stdout.buffer.write(prompt)
for token in stream(model, torch.tensor(list(prompt)), 300, temperature=0.7, top_p=0.95, seed=0):
    sys.stdout.buffer.write(bytes(token.ids.tolist()))
    sys.stdout.buffer.flush()
sys.stdout.buffer.write(b"\n")
