"""Reading the settings for a command, with mistakes told in the words of whoever wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelport.cli.output import Failure

if TYPE_CHECKING:
    from modelport.settings import Settings

ConfigFile = Annotated[
    Path | None, typer.Option("--config", envvar="MODELPORT_CONFIG", help="A TOML file; none is read by default.")
]


class WrongSettings(Failure, ValueError):
    """The settings don't hold together; the message names each one."""


def read(config: Path | None, **flags: Any) -> Settings:
    """The settings in force. Raises: WrongSettings (exit code 2)."""
    import tomllib

    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from modelport.catalog.configured import check_models
    from modelport.settings import load

    try:
        settings = load(config, **flags)
    except FileNotFoundError as error:
        raise WrongSettings(str(error), exit_code=2) from error
    except tomllib.TOMLDecodeError as error:
        raise WrongSettings(f"{config} is no TOML: {error}", exit_code=2) from error
    except SettingsError as error:
        raise WrongSettings(f"a MODELPORT_… variable can't be read: {error}", exit_code=2) from error
    except ValidationError as error:
        lines = [
            f"  {'.'.join(str(part) for part in row['loc']) or 'settings'}: {row['msg']}" for row in error.errors()
        ]
        raise WrongSettings("these settings are not valid:\n" + "\n".join(lines), exit_code=2) from error
    try:
        check_models(settings)
    except ValueError as error:
        raise WrongSettings(f"these settings are not valid:\n  models: {error}", exit_code=2) from error
    return settings
