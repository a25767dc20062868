"""`fedrec`: one program, a command for each job.

Exit status: 0 done, 2 wrong use or bad input, 1 a failure of the program, 130 interrupted.
"""

from __future__ import annotations

import io
import sys

import typer

from fedrec.cli import data, deploy, explore, merchant, privacy, results, server, simulate
from fedrec.cli.adapt import adapt
from fedrec.cli.basket import basket
from fedrec.cli.explain import explain
from fedrec.cli.export import export
from fedrec.cli.predict import predict
from fedrec.cli.privacy_audit import audit
from fedrec.cli.privacy_report import report
from fedrec.cli.privacy_wire import wire
from fedrec.cli.recommend import recommend
from fedrec.cli.search import search
from fedrec.cli.serve import serve
from fedrec.cli.terminal import err, styled
from fedrec.errors import InputError
from fedrec.text import log_visibly

__all__ = ["app", "run"]

app = typer.Typer(
    name="fedrec",
    help="Merchants train one recommender together, none of them showing what its customers do.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(data.app, name="data")
app.add_typer(deploy.app, name="deploy")
app.add_typer(privacy.app, name="privacy")
app.add_typer(server.app, name="server")
app.add_typer(merchant.app, name="merchant")
app.add_typer(explore.app, name="explore")
privacy.app.command()(report)
privacy.app.command()(audit)
privacy.app.command()(wire)
app.command()(simulate.demo)
app.command()(adapt)
app.command("simulate")(simulate.simulate_command)
app.command()(results.evaluate)
app.command()(recommend)
app.command()(explain)
app.command()(search)
app.command()(basket)
app.command()(export)
app.command()(serve)
app.command()(predict)


@app.callback(invoke_without_command=True)
def main(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    """The program's own options."""
    if version:
        from fedrec import __version__

        typer.echo(__version__)
        raise typer.Exit


def run() -> None:
    """Entry point: errors as one line, interruptions as 130."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # of what the terminal's encoding lacks
    log_visibly()
    try:
        status = app(standalone_mode=False)
    except InputError as error:
        _say(str(error))
        status = 2
    except PermissionError as error:
        _say(f"{error.filename}: {error.strerror}; run this as its owner")
        status = 2
    except (typer.Abort, KeyboardInterrupt):
        err.print("interrupted")
        status = 130
    except Exception as error:
        # typer carries its own copy of click, so its usage errors are known by their shape.
        if not hasattr(error, "format_message"):
            raise
        if message := error.format_message():  # none where the help was asked for by giving no argument
            _say(" ".join(message.split()))
        status = getattr(error, "exit_code", 2)
    sys.exit(status if isinstance(status, int) else 0)


def _say(error: str) -> None:
    err.print(styled(("error", "bold red"), " ", error), soft_wrap=True)


if __name__ == "__main__":
    run()
