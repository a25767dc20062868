"""`fedrec serve`: lists, searches and reasons over HTTP, and feedback from the shop."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from fedrec.cli.terminal import out, quiet_models
from fedrec.errors import InputError

__all__ = ["serve"]


def serve(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A run folder, a merchant's folder, or a folder of these.")],
    host: Annotated[str, typer.Option(help="Address to listen on; any but this machine's own needs --key-file.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes, each with the model in memory.")] = 1,
    key_file: Annotated[Path | None, typer.Option(help="Keys of the shop and of the staff; made where it is not there.")] = None,
    onnx: Annotated[Path | None, typer.Option(help="Folder of an ONNX export of this model, which then reads words.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of limits and times.")] = None,
) -> None:
    """Serve recommendations over HTTP until stopped, and take feedback into the merchant's own folder."""
    quiet_models()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a list is too short a work to share, and sharing disturbs who waits
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
    except ImportError as error:
        raise InputError(f"{error.name} is not installed", where="fedrec serve", hint="pip install 'fedrec[serve]'") from None
    from fedrec.serve.settings import read_serve_settings

    settings, path = read_serve_settings(config), path.resolve()
    _share_cache(path)
    from fedrec.serve.app import check
    from fedrec.serve.keys import Keys
    from fedrec.serve.processes import listen
    from fedrec.serve.processes import serve as serve_on

    names, several = check(path, host, key_file)
    if onnx is not None:
        if several:
            raise InputError("is of one model, and there are several merchants", where="--onnx", expected="a single folder")
        from fedrec.serve.models import check_export

        onnx = onnx.resolve()
        check_export(path, onnx)
    if key_file is not None:
        key_file = key_file.resolve()
        Keys.open(key_file, names)
    bound = listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    out.print(f"http://{shown}:{bound.getsockname()[1]}: {', '.join(names)}", soft_wrap=True)
    if key_file is None:
        out.print("without keys: whoever can use this machine is staff", style="yellow", soft_wrap=True)
    serve_on(bound, path, host, key_file, settings, workers, onnx)


def _share_cache(path: Path) -> None:
    """A deployed merchant's node has a cache of encoders in its folder; this takes the same."""
    from fedrec.deploy.layout import MerchantFolder

    merchant = MerchantFolder(path)
    if merchant.state.is_dir():
        os.environ.setdefault("FEDREC_CACHE", str(merchant.cache))
