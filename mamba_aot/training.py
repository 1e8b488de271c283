"""Training of a `MambaLM` on a row of tokens: windows, schedule, optimizer, held-out bits per token."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mamba_aot.model import MambaLM


@dataclass(frozen=True)
class TrainingConfig:
    """How to train.

    Attributes:
        steps: Optimizer steps.
        batch: Windows per step.
        length: Tokens per window.
        learning_rate: Of AdamW, at its highest.
        weight_decay: Of the matrices of linear layers; everything else has none.
        warmup: Share of the steps over which the learning rate rises from 0; it then falls as a cosine to 5
            %.
        max_grad_norm: Norm that the gradient is clipped to.
        seed: Seed of the order of the windows.
    """

    steps: int
    batch: int = 8
    length: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    warmup: float = 0.05
    max_grad_norm: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "length"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"TrainingConfig: {name} must be an integer of at least 1, got {value!r}")
        for name, least, holds in (
            ("learning_rate", "above 0", self.learning_rate > 0),
            ("max_grad_norm", "above 0", self.max_grad_norm > 0),
            ("weight_decay", "at least 0", self.weight_decay >= 0),
            ("warmup", "from 0 to 1", 0 <= self.warmup <= 1),
        ):
            if not holds:
                raise ValueError(f"TrainingConfig: {name} must be {least}, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class TrainingStep:
    """What one step did: its number from 1, its loss in bits per token, seconds since training began."""

    step: int
    bits: float
    seconds: float


def train(model: MambaLM, tokens: Tensor, config: TrainingConfig) -> Iterator[TrainingStep]:
    """Trains `model` in place and yields after every step.

    Args:
        model: The model, on the device where it is to be trained.
        tokens: The text, integers [T], T greater than `config.length`.
        config: How to train.
    """
    optimizer = make_optimizer(model, config)
    model.train()
    begin = time.perf_counter()
    for step, window in zip(range(1, config.steps + 1), windows(tokens, config), strict=False):
        rate = config.learning_rate * schedule(step, config)
        for group in optimizer.param_groups:
            group["lr"] = rate
        window = window.to(model.embedding.weight.device)
        loss = model.loss(window[:, :-1], window[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        yield TrainingStep(step, loss.item() / math.log(2), time.perf_counter() - begin)


def windows(tokens: Tensor, config: TrainingConfig, start: int = 0) -> Iterator[Tensor]:
    """Endless batches, int64 [batch, length + 1]: each pass cuts the text at a new phase and shuffles.

    The first `start` batches are left out, so that a run goes on where it was.
    """
    generator = torch.Generator().manual_seed(config.seed)
    span = torch.arange(config.length + 1)
    queue = torch.empty(0, dtype=torch.int64)
    last = tokens.numel() - config.length - 1
    while True:
        while queue.numel() < config.batch:
            phase = torch.randint(0, min(config.length, last + 1), (), generator=generator)
            starts = torch.arange(int(phase), last + 1, config.length)
            queue = torch.cat([queue, starts[torch.randperm(starts.numel(), generator=generator)]])
        starts, queue = queue[: config.batch], queue[config.batch :]
        if start > 0:
            start -= 1
            continue
        yield tokens[starts[:, None] + span].long()


def schedule(step: int, config: TrainingConfig) -> float:
    """Factor on the learning rate at a step from 1: a linear rise, then a cosine down to 5 %."""
    warmup = max(1.0, config.warmup * config.steps)
    if step < warmup:
        return step / warmup
    progress = (step - warmup) / max(1.0, config.steps - warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(model: MambaLM, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW, with decay for the matrices of linear layers only: not A, B, C, D, norms, biases, embedding."""
    matrices = {module.weight for module in model.modules() if isinstance(module, nn.Linear)}
    matrices.discard(model.embedding.weight)
    rest = [parameter for parameter in model.parameters() if parameter not in matrices]
    groups = [
        {"params": [p for p in model.parameters() if p in matrices], "weight_decay": config.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)


@torch.inference_mode()
def bits_per_token(model: MambaLM, tokens: Tensor, length: int = 2048) -> float:
    """Mean bits that the model needs for each token of a text after the first.

    The text is read once, from its start to its end, the state carried along: every token is predicted from
    all that came before it. Attention would have to keep all of that, so a model with attention reads the
    text in windows of `length` instead and forgets between them.

    Args:
        model: The model.
        tokens: The text, integers [T], T at least 2.
        length: Tokens per call; it bounds the memory, and without attention does not change the result.
    """
    training = model.training
    model.eval()
    state = None if "a" in model.config.layers else model.allocate_state(1)
    device = model.embedding.weight.device
    nats = 0.0
    for start in range(0, tokens.numel() - 1, length):
        window = tokens[start : start + length + 1].long().to(device).unsqueeze(0)
        logprobs = model(window[:, :-1], state).float().log_softmax(-1)
        nats -= logprobs.gather(-1, window[:, 1:, None]).sum(dtype=torch.float64).item()
    model.train(training)
    return nats / math.log(2) / (tokens.numel() - 1)
