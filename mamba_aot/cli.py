"""The command `mamba-aot`: parses, calls, prints. What the commands do lives in the modules they call."""

import json
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

app = typer.Typer(
    help="Mamba for PyTorch whose GPU kernels were compiled when the package was built.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def demo(
    device: Annotated[str, typer.Option(help='Where to train: "cpu" or "cuda".')] = "cpu",
    steps: Annotated[int, typer.Option(help="Optimizer steps.", min=1)] = 800,
    seed: Annotated[
        int, typer.Option(help="Seed of start, order of the text and sample.", min=0, max=2**32 - 1)
    ] = 0,
    text: Annotated[
        Path | None, typer.Option(help="Text to train on; default: Python's own reference.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Directory for checkpoint, loss curve and metrics.")] = Path(
        "demo-out"
    ),
) -> None:
    """Train a byte-level language model on real text, let it write, save model, curve and figures."""
    console = Console(stderr=True)
    try:
        from mamba_aot import demo as job
        from mamba_aot.devices import require_device
    except ImportError as error:
        _fail(error, 1)
    try:
        target, source = require_device(device, "demo"), job.read_text(text)
        job.require_directory(out)
    except ValueError as error:
        _fail(error, 2)
    try:
        job.run(source, target, steps, seed, out, console)
    except (RuntimeError, OSError) as error:
        _fail(error, 1)
    except KeyboardInterrupt:
        _fail("demo: stopped; nothing was written", 130)


@app.command()
def train(
    data: Annotated[Path, typer.Option(help="File to train on, byte by byte, or a directory of files.")],
    config: Annotated[
        Path | None, typer.Option(help="JSON of a run: model, training, precision and so on.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Directory of the run.")] = Path("train-out"),
    device: Annotated[str, typer.Option(help='Where to train: "cpu" or "cuda".')] = "cpu",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint in --out.")
    ] = False,
) -> None:
    """Train a byte-level language model; Ctrl-C saves, --resume goes on."""
    try:
        from mamba_aot import train_command as job
    except ImportError as error:
        _fail(error, 1)
    try:
        done = job.run(data, config, out, device, resume, lambda line: typer.echo(line, err=True))
    except ValueError as error:
        _fail(error, 2)
    except (RuntimeError, OSError) as error:
        _fail(error, 1)
    except KeyboardInterrupt:
        _fail("train: stopped at once; the last checkpoint is kept", 130)
    if not done:
        _fail("train: stopped and saved; go on with --resume", 130)


@app.command()
def generate(
    model: Annotated[str, typer.Option(help="Directory of a model, or its name on the Hugging Face hub.")],
    prompt: Annotated[str, typer.Option(help='Text to continue; "-" reads standard input.')],
    max_new_tokens: Annotated[int, typer.Option(help="The most tokens to draw.", min=0)] = 100,
    temperature: Annotated[float, typer.Option(help="0 takes the most probable token.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Draw from the k most probable tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from tokens that reach this probability.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Least share of the best token's probability.")] = None,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 makes seen tokens rarer.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Seed of the draws.")] = None,
    device: Annotated[str, typer.Option(help='Where to run: "cpu" or "cuda".')] = "cpu",
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; default: as saved.")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="tokenizer.json or a name on the hub.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
) -> None:
    """Continue a text: tokens to standard output as they come, everything else to standard error."""
    try:
        from mamba_aot import continuation as job
        from mamba_aot.devices import require_device
    except ImportError as error:
        _fail(error, 1)
    try:
        job.run(
            model,
            sys.stdin.read() if prompt == "-" else prompt,
            max_new_tokens,
            sys.stdout,
            lambda line: typer.echo(line, err=True),
            device=require_device(device, "generate"),
            dtype=dtype,
            tokenizer=tokenizer,
            revision=revision,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
    except ValueError as error:
        _fail(error, 2)
    except (ImportError, RuntimeError, OSError) as error:
        _fail(error, 1)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@app.command()
def export(
    model: Annotated[Path, typer.Option(help="Directory that save_pretrained wrote.")],
    out: Annotated[Path, typer.Option(help="The package to write.")] = Path("model.pt2"),
    device: Annotated[str, typer.Option(help='What it will run on: "cpu" or "cuda".')] = "cpu",
    max_length: Annotated[
        int | None, typer.Option(help="The most tokens of a sequence; a model with attention needs it.")
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(help="For so many sequences and no others, which makes steps of few faster on a GPU."),
    ] = None,
) -> None:
    """Compile a model into a package that runs without Python; examples/cpp_deploy does so from C++."""
    try:
        from mamba_aot import export as job
        from mamba_aot.checkpoint import from_pretrained
    except ImportError as error:
        _fail(error, 1)
    try:
        job.require_out(out)
        job.require_batch(batch)
        loaded = from_pretrained(model, device=job.require_device(device))
        job.StateLayout(loaded, max_length)
    except (ValueError, FileNotFoundError) as error:
        _fail(error, 2)
    try:
        job.write_package(loaded, out, max_length, batch)
    except (RuntimeError, OSError) as error:
        _fail(error, 1)
    typer.echo(f"wrote {out} ({out.stat().st_size / 2**20:.1f} MiB): prefill and step for {device}", err=True)


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what is installed: versions, library, GPU, and the kernels built for each architecture."""
    from mamba_aot import doctor

    facts = doctor.collect_facts()
    typer.echo(json.dumps(facts, indent=2) if as_json else doctor.format_facts(facts))


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run every op on every device against the reference; exit code 1 and the fix if something fails."""
    from mamba_aot import doctor as job

    facts, checks = job.collect_facts(), job.run_checks()
    if as_json:
        typer.echo(json.dumps({"facts": facts, "checks": [vars(check) for check in checks]}, indent=2))
    else:
        typer.echo(job.format_facts(facts))
        typer.echo(job.format_checks(checks))
    if not all(check.passed for check in checks):
        raise typer.Exit(1)


@app.command()
def bench(
    op: Annotated[
        list[str] | None,
        typer.Option(
            help="What to time: selective_scan, causal_conv1d, state_update, causal_conv1d_update, "
            "linear_recurrence, rms_norm, block, decode or prefill; may be repeated. Default: selective_scan."
        ),
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            help="kernels, models, sweep, cpu, or all of the device: what benchmarks/results records; may be "
            "repeated."
        ),
    ] = None,
    shape: Annotated[str, typer.Option(help='Sizes that differ from the default, as "B8 D1024 L2048".')] = "",
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    layout: Annotated[str, typer.Option(help='"seq" or "channel": what lies side by side.')] = "seq",
    is_complex: Annotated[bool, typer.Option("--complex", help="A scan of complex states.")] = False,
    half_states: Annotated[
        bool, typer.Option("--half-states", help="Decoding with states of --dtype, not float32.")
    ] = False,
    gated: Annotated[bool, typer.Option("--gated", help="A scan with a gate and zero-order hold.")] = False,
    device: Annotated[str, typer.Option(help='Where to run: "cpu" or "cuda".')] = "cuda",
    compare: Annotated[
        str, typer.Option(help="Comma-separated: mamba_ssm, causal_conv1d, eager, compile, one_thread.")
    ] = "",
    json_path: Annotated[
        Path | None, typer.Option("--json", help="File, or directory for SUITE.json, to write records to.")
    ] = None,
) -> None:
    """Time ops and models; what they compute is checked against float64 first, exit code 1 if it is wrong."""
    try:
        from mamba_aot.benchmark import command as job
        from mamba_aot.devices import require_device
    except ImportError as error:
        _fail(error, 1)
    try:
        request = job.make_request(
            op or [],
            suite or [],
            shape,
            dtype,
            layout,
            is_complex,
            half_states,
            gated,
            compare,
            json_path,
            device,
        )
        target = require_device(device, "bench")
    except ValueError as error:
        _fail(error, 2)
    try:
        complete = job.run(request, target, Console())
    except (RuntimeError, OSError) as error:
        _fail(error, 1)
    except KeyboardInterrupt:
        _fail("bench: stopped; no more was written", 130)
    if not complete:
        _fail("bench: the lines that begin with FAILED have no figures", 1)


def main() -> None:
    """Entry point of the command."""
    app(prog_name="mamba-aot")


def _fail(message: object, code: int) -> NoReturn:
    typer.echo(str(message), err=True)
    raise typer.Exit(code)
