"""The command line: one function per verb, which calls the driver or a command and prints.

Exit codes: 0 fine, 1 findings, 2 wrong usage, 70 a bug of ours, 130 interrupted.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO, cast, get_args

import typer

from tokdsl import __version__
from tokdsl.commands.fmt import Form
from tokdsl.commands.generate import Sampling
from tokdsl.commands.tune import Load
from tokdsl.diagnostics import Diagnostic, Report
from tokdsl.diagnostics.render import Format, count, render
from tokdsl.training.settings import Precision, TrainSettings

#: columns of text that does not go to a terminal
PIPE_WIDTH = 100
INTERNAL_ERROR = 70
INTERRUPTED = 130


class App(typer.Typer):
    """The commands, with a last line of defence around them."""

    verbose = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command line; a bug of ours ends in one line and exit code 70."""
        for stream in (sys.stdout, sys.stderr):
            if reconfigure := getattr(stream, "reconfigure", None):
                reconfigure(errors="backslashreplace")
        try:
            if "args" not in kwargs and not args:
                _check_plain_paths(sys.argv[1:])
            return super().__call__(*args, **kwargs)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except BrokenPipeError:  # nobody reads any more, as after `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except Exception as error:
            if self.verbose:
                import traceback

                traceback.print_exc()
            print(_apology(error, self.verbose), file=sys.stderr)
            sys.exit(INTERNAL_ERROR)


def _check_plain_paths(arguments: list[str]) -> None:
    """Run ``check PATH...`` at once when there are no options, and end.

    typer reads a command line by means of pydantic, whose import takes a quarter of the time of
    such a run; whatever is not this plain case is left to it.
    """
    verb, *paths = arguments or [""]
    if verb != "check" or not paths or any(path.startswith("-") for path in paths):
        return
    try:
        check([Path(path) for path in paths])
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except typer.BadParameter:
        return  # typer says it with the usage


def _apology(error: Exception, verbose: bool) -> str:
    summary = f"{type(error).__name__}: {error}".split("\n", 1)[0]
    more = "" if verbose else "; `tokdsl --verbose ...` shows where it happened"
    return f"internal error: please report it ({summary}){more}"


app = App(
    name="tokdsl",
    help="Write a token architecture the way the paper writes it; get a checked PyTorch module.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# --------------------------------------------------------------------------- what verbs share


def _examples(*commands: str) -> str:
    """Return the end of a help text; the control character keeps the lines as they are."""
    return "\n".join(
        ["\b", "Example:" if len(commands) == 1 else "Examples:", *(f"  {c}" for c in commands)]
    )


def _assignments(pairs: list[str] | None) -> dict[str, str]:
    """Return the parameters that ``--set`` gives.

    Raises:
        typer.BadParameter: a pair is not ``name=value``.
    """
    given: dict[str, str] = {}
    for pair in pairs or ():
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not (name.isidentifier() and equals and value):
            raise typer.BadParameter(f"`{pair}` is not name=value", param_hint="--set")
        if name in given:
            raise typer.BadParameter(f"`{name}` is given twice", param_hint="--set")
        given[name] = value
    return given


Spec = Annotated[Path, typer.Argument(help="A spec: .tok or .tok.yaml.", show_default=False)]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Set a parameter of the model; may be repeated."
    ),
]
FormatOption = Annotated[Format, typer.Option("--format", help="How findings are written.")]


def _wants_color(stream: TextIO) -> bool:
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or stream.isatty()


def _show(found: Iterable[Diagnostic], format: Format, stream: TextIO) -> None:
    """Write findings; text ends with how many there are."""
    found = list(found)
    width = shutil.get_terminal_size((PIPE_WIDTH, 24)).columns if stream.isatty() else PIPE_WIDTH
    text = render(found, format, color=_wants_color(stream), width=width)
    if format is Format.TEXT and found:
        text += f"\n{count(found)}\n"
    stream.write(text)


def _stop_on_errors(report: Report, format: Format) -> None:
    """Write the findings of a verb whose output is something else; end when they are errors.

    Raises:
        typer.Exit: with code 1 when there are errors.
    """
    machine = format in (Format.JSON, Format.SARIF)
    _show(report, format, sys.stdout if machine else sys.stderr)
    if report.has_errors:
        raise typer.Exit(1)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tokdsl {__version__}")
        raise typer.Exit


@app.callback()
def main(
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show the traceback of an internal error.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Write a token architecture the way the paper writes it; get a checked PyTorch module."""
    app.verbose = verbose


# --------------------------------------------------------------------------- specs


@app.command(epilog=_examples("tokdsl new my_model"))
def new(
    name: Annotated[Path, typer.Argument(help="The model's name; the file is NAME.tok.")],
) -> None:
    """Write a small working spec to start from."""
    from tokdsl.commands.new import new as write_starter

    try:
        path = write_starter(name)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error), param_hint="NAME") from None
    typer.echo(f"wrote {path}; next: tokdsl check {path}")


@app.command(
    epilog=_examples(
        "tokdsl check mixtral.tok",
        "tokdsl check models/ --format concise",
        "tokdsl check mixtral.tok --set d=512 --set layers=2",
    )
)
def check(
    paths: Annotated[
        list[Path], typer.Argument(help="Specs, or folders of specs.", show_default=False)
    ],
    sets: Sets = None,
    format: FormatOption = Format.TEXT,
) -> None:
    """Check specs: names, axes, clocks, causality, gradients, budgets."""
    from tokdsl import driver

    overrides = _assignments(sets)
    files = list(_specs(paths))
    if not files:
        raise typer.BadParameter("no .tok or .tok.yaml files there", param_hint="PATHS")
    found = Report()
    for path in files:
        found.extend(driver.check_file(path, overrides).report)
    _show(found, format, sys.stdout)
    if format is Format.TEXT and not len(found):
        typer.echo(f"no findings in {files[0] if len(files) == 1 else f'{len(files)} files'}")
    raise typer.Exit(1 if found.has_errors else 0)


def _specs(
    paths: Iterable[Path], patterns: Sequence[str] = ("*.tok", "*.tok.yaml")
) -> Iterator[Path]:
    """Yield the files named, and the specs in the folders named, in a fixed order."""
    for path in paths:
        if path.is_dir():
            yield from sorted(found for pattern in patterns for found in path.rglob(pattern))
        else:
            yield path


@app.command(
    epilog=_examples("tokdsl build mixtral.tok", "tokdsl build mixtral.tok -o build --set layers=2")
)
def build(
    spec: Spec,
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder of packages.")] = Path(
        "build"
    ),
    sets: Sets = None,
    explain_kernels: Annotated[
        bool,
        typer.Option("--explain-kernels", help="Say which equations are a kernel, or why not."),
    ] = False,
    format: FormatOption = Format.TEXT,
) -> None:
    """Write the PyTorch package of a spec to OUT/NAME; a failed build changes nothing."""
    from tokdsl import driver

    built = driver.build(spec, out, _assignments(sets))
    _stop_on_errors(built.report, format)
    if format in (Format.TEXT, Format.CONCISE):
        typer.echo(f"built {built.directory}")
        for line in built.explained() if explain_kernels else []:
            typer.echo(line)


@app.command(
    epilog=_examples(
        "tokdsl summary mixtral.tok --set layers=2", "tokdsl summary mixtral.tok --format json"
    )
)
def summary(spec: Spec, sets: Sets = None, format: FormatOption = Format.TEXT) -> None:
    """Show parameters, cost, cache and what was proved, stage by stage."""
    from tokdsl.commands.summary import print_rich
    from tokdsl.commands.summary import summary as run

    result = run(spec, _assignments(sets))
    if format is Format.JSON and not result.report.has_errors:
        typer.echo(result.as_json(), nl=False)
        return
    _stop_on_errors(result.report, format)
    if sys.stdout.isatty():
        print_rich(result)
    else:
        typer.echo(result.text, nl=False)


@app.command(
    epilog=_examples("tokdsl graph mixtral.tok", "tokdsl graph mixtral.tok -o figures/model.svg")
)
def graph(
    spec: Spec,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="A .svg or .mmd file; without it both are written."),
    ] = None,
    sets: Sets = None,
    format: FormatOption = Format.TEXT,
) -> None:
    """Draw a model: an SVG for a paper, a Mermaid chart for a page."""
    from tokdsl.commands.graph import graph as run

    try:
        drawn = run(spec, out, _assignments(sets))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--out") from None
    _stop_on_errors(drawn.report, format)
    if format in (Format.TEXT, Format.CONCISE):
        for file in drawn.files:
            typer.echo(f"wrote {file}")


@app.command(
    epilog=_examples(
        "tokdsl fmt models/",
        "tokdsl fmt --check mixtral.tok",
        "tokdsl fmt --to yaml mixtral.tok",
        "tokdsl fmt - < mixtral.tok",
    )
)
def fmt(
    paths: Annotated[
        list[Path], typer.Argument(help="Specs, folders of specs, or - for standard input.")
    ],
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit 1 if a file would change.")
    ] = False,
    to: Annotated[
        Form | None, typer.Option("--to", help="Write the other form beside the file.")
    ] = None,
) -> None:
    """Format specs in place, or convert between the two forms."""
    from tokdsl.commands.fmt import FormatError, convert, format_text, reformat

    if to is not None and check:
        raise typer.BadParameter("--check and --to exclude each other", param_hint="--check")
    changed, report = 0, Report()
    for path in _specs(paths, ("*.tok.yaml",) if to is Form.TOK else ("*.tok",)):
        try:
            if str(path) == "-":
                outcome = format_text(sys.stdin.read(), "<stdin>")
                typer.echo(outcome.text, nl=False)
            else:
                outcome = convert(path, to) if to else reformat(path, write=not check)
        except FormatError as error:
            raise typer.BadParameter(str(error), param_hint="PATHS") from None
        report.extend(outcome.report)
        changed += outcome.changed
        if outcome.changed and outcome.path:
            typer.echo(f"{'would change' if check else 'wrote'} {outcome.path}")
    _stop_on_errors(report, Format.TEXT)
    raise typer.Exit(1 if check and changed else 0)


@app.command(epilog=_examples("tokdsl explain TOK190", "tokdsl explain unused-allow"))
def explain(
    code: Annotated[
        str | None, typer.Argument(help="A code or a name; without it all are listed.")
    ] = None,
) -> None:
    """Explain a finding, with a wrong and a right example."""
    from tokdsl.diagnostics import explain as pages

    if code is None:
        for cls in pages.load_registry().values():
            typer.echo(f"{cls.code}  {cls.severity.value:<7}  {cls.name}: {cls.title()}")
        return
    text = pages.explain(code)
    if text is None:
        near = pages.nearest(code)
        hint = f"; {near}" if near else "; `tokdsl explain` lists all"
        raise typer.BadParameter(f"nothing is called `{code}`{hint}", param_hint="CODE")
    typer.echo(text, nl=False)


# --------------------------------------------------------------------------- built models

_TRAIN, _SAMPLE, _LOAD = TrainSettings(), Sampling(), Load()


@app.command(
    epilog=_examples(
        "tokdsl verify mixtral.tok",
        "tokdsl verify mixtral.tok --set layers=2 --set d=64 --compile",
    )
)
def verify(
    spec: Spec,
    sets: Sets = None,
    format: FormatOption = Format.TEXT,
    compile: Annotated[
        bool, typer.Option("--compile", help="Also trace the model as one graph; takes longer.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of weights and inputs.")] = 0,
) -> None:
    """Build a spec at a small size and test what was proved about it by running it.

    Causality by perturbation, padding, step equals forward, the state's verbs, gradients reach
    what the analysis says, parameters, work and cache equal what is measured, save and load,
    the same bytes from every build. Without --set small sizes are derived from the spec.
    """
    from tokdsl.commands.verify import verify as run

    result = run(spec, _assignments(sets), with_compile=compile, seed=seed)
    if format is Format.JSON and not result.report.has_errors:
        typer.echo(result.as_json(), nl=False)
    else:
        _stop_on_errors(result.report, format)
        typer.echo(result.text, nl=False)
    raise typer.Exit(0 if result.passed else 1)


@app.command(
    epilog=_examples(
        "tokdsl train first.tok --data corpus.txt -o run --steps 500",
        "tokdsl train build/first --data corpus.txt -o run --resume",
    )
)
def train(
    model: Annotated[Path, typer.Argument(help="A spec, or a package that was built.")],
    data: Annotated[Path, typer.Option("--data", help="A text file, or a folder of them.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder of the run.")] = Path("run"),
    sets: Sets = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = _TRAIN.steps,
    batch: Annotated[int, typer.Option(help="Windows per step.")] = _TRAIN.batch,
    length: Annotated[int, typer.Option(help="Tokens per window.")] = _TRAIN.length,
    accumulate: Annotated[int, typer.Option(help="Parts of a step.")] = _TRAIN.accumulate,
    lr: Annotated[float, typer.Option(help="The highest learning rate.")] = _TRAIN.lr,
    warmup: Annotated[int, typer.Option(help="Steps over which it rises.")] = _TRAIN.warmup,
    weight_decay: Annotated[
        float, typer.Option(help="Pulls matrices to zero.")
    ] = _TRAIN.weight_decay,
    clip: Annotated[float, typer.Option(help="The largest norm of the gradient.")] = _TRAIN.clip,
    held_out: Annotated[
        float, typer.Option(help="The share of the text, at its end, that is only measured.")
    ] = _TRAIN.held_out,
    seed: Annotated[int, typer.Option(help="Makes a run repeatable.")] = _TRAIN.seed,
    eval_every: Annotated[
        int, typer.Option(help="Steps between measurements; 0: at the end.")
    ] = _TRAIN.eval_every,
    save_every: Annotated[
        int, typer.Option(help="Steps between checkpoints; 0: at the end.")
    ] = _TRAIN.save_every,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = _TRAIN.threads,
    precision: Annotated[
        str, typer.Option(help="What products are computed in: no, bf16, fp16.")
    ] = _TRAIN.precision,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest save.")] = False,
) -> None:
    """Train a model on a text; a spec is built into the run's folder first."""
    from tokdsl.commands.train import TrainingError
    from tokdsl.commands.train import train as run

    if precision not in get_args(Precision):
        raise typer.BadParameter("give no, bf16 or fp16", param_hint="--precision")
    settings = TrainSettings(
        steps=steps,
        batch=batch,
        length=length,
        accumulate=accumulate,
        lr=lr,
        warmup=warmup,
        weight_decay=weight_decay,
        clip=clip,
        held_out=held_out,
        seed=seed,
        eval_every=eval_every,
        save_every=save_every,
        threads=threads,
        precision=cast(Precision, precision),
    )
    package = _package(model, out / "package", sets)
    try:
        run(package, data, out, settings, is_resumed=resume)
    except TrainingError as error:
        _fail(error)


@app.command(
    epilog=_examples(
        'tokdsl generate run --prompt "The " --temperature 0.7',
        "tokdsl generate run --package build/first --prompt-file start.txt",
    )
)
def generate(
    run: Annotated[Path, typer.Argument(help="A training run's folder, or one checkpoint.")],
    package: Annotated[
        Path | None, typer.Option("--package", help="The built package; else RUN/package/NAME.")
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="What to go on from.")] = None,
    prompt_file: Annotated[
        Path | None, typer.Option("--prompt-file", help="The same from a file; - is stdin.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="How many tokens at most.")] = _SAMPLE.max_new_tokens,
    temperature: Annotated[
        float, typer.Option(help="0 takes the likeliest token.")
    ] = _SAMPLE.temperature,
    top_k: Annotated[int | None, typer.Option(help="Choose among the K likeliest.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Choose among the likeliest P.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes the text repeatable.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", help="A token that ends the text; repeatable.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
) -> None:
    """Write text with a trained model, piece by piece as it comes."""
    from tokdsl.commands.generate import TrainingError, read_prompt
    from tokdsl.commands.generate import generate as write

    sampling = Sampling(tokens, temperature, top_k, top_p, seed, tuple(stop or ()))
    try:
        start = read_prompt(prompt, prompt_file)
        typer.echo(start, nl=False)
        where = package or _only_package(run)
        write(where, run, start, _show_piece, sampling, threads=threads)
    except TrainingError as error:
        _fail(error)
    typer.echo()


@app.command(epilog=_examples("tokdsl tune build/mixtral --batch 8 --length 4096"))
def tune(
    package: Annotated[Path, typer.Argument(help="A built package.")],
    batch: Annotated[int, typer.Option(help="Sequences at once.")] = _LOAD.batch,
    length: Annotated[int, typer.Option(help="Tokens of each.")] = _LOAD.length,
    steps: Annotated[int, typer.Option(help="Tokens decoded one by one.")] = _LOAD.steps,
) -> None:
    """Measure the configurations of a package's kernels on this GPU and keep the fastest.

    They are written to tuned.json in the package, by the name of the device.
    """
    from tokdsl.commands.tune import TrainingError
    from tokdsl.commands.tune import tune as run

    try:
        typer.echo(f"wrote {run(package, Load(batch, length, steps), typer.echo)}")
    except TrainingError as error:
        _fail(error)


def _show_piece(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()


def _only_package(run: Path) -> Path:
    """Return the package that `train` built into a run's folder.

    Raises:
        typer.BadParameter: the run was trained from a package that lies elsewhere.
    """
    found = sorted(path.parent for path in run.glob("package/*/manifest.json"))
    if len(found) != 1:
        raise typer.BadParameter(
            f"{run}/package holds none; name the package it was trained from",
            param_hint="--package",
        )
    return found[0]


def _package(model: Path, out: Path, sets: list[str] | None) -> Path:
    """Return a built package; a spec is built under ``out`` first."""
    if model.is_dir():
        if sets:
            raise typer.BadParameter("a built package has its sizes already", param_hint="--set")
        return model
    from tokdsl import driver

    built = driver.build(model, out, _assignments(sets))
    _stop_on_errors(built.report, Format.TEXT)
    directory: Path | None = built.directory
    if directory is None:
        raise typer.Exit(1)
    return directory


def _fail(error: Exception) -> NoReturn:
    """Say what the user can repair and end with code 1."""
    typer.echo(f"error: {error}", err=True)
    raise typer.Exit(1)
