"""`ruvd doctor`: says what the settings of the store do to the daemon's promises."""

import asyncio
from typing import Annotated

from cyclopts import Parameter

from ruvd.cli.console import fail, out, printable
from ruvd.cli.setting_flags import ConfigFile
from ruvd.cli.settings import load_settings
from ruvd.core.errors import StoreUnavailable
from ruvd.server.store_diagnosis import diagnose


def doctor(
    *,
    store: Annotated[str | None, Parameter(help="Store, as for `ruvd serve`.")] = None,
    config: ConfigFile = None,
) -> int:
    """Runs `ruvd doctor`; returns its exit code."""
    settings = load_settings({"store": store}, config)
    try:
        found = asyncio.run(diagnose(settings))
    except (StoreUnavailable, OSError) as error:
        fail(str(error))
    except ImportError as error:
        fail(f"the store needs the package psycopg ({error}): install 'ruvd[postgres]'")
    for each in found:
        mark = "RISK" if each.is_risk else "ok"
        text = printable(f"{mark:<5}{each.name} = {each.value}: {each.meaning}")
        out.print(text, markup=False, style="red" if each.is_risk else "")
    return 1 if any(each.is_risk for each in found) else 0
