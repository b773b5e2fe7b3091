"""The command line: one module per command.

Exit codes: 0 all held; 1 something did not (a discrepancy, a failed or blocked migration); 2 the command was
used wrongly; 130 interrupted.
"""

from __future__ import annotations

import sys

import click

from vmsim.cli.common import report_error
from vmsim.cli.migrate import migrate
from vmsim.cli.restore import restore
from vmsim.cli.shell import shell
from vmsim.errors import UsageError, VmsimError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="vmsim")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """A virtual machine with a complete virtio-fs device and its stateful migration, in one process.

    \b
    Try:
      vmsim migrate                 a machine on a small directory migrates while it works, and is checked
      vmsim migrate --read-only .   the same on this directory, changing nothing
      vmsim shell .                 look around in a guest; type "help"
    """
    context.obj = debug


cli.add_command(migrate)
cli.add_command(restore)
cli.add_command(shell)


def main() -> None:
    """Run the command line and exit."""
    debug = "--debug" in sys.argv
    arguments = [word for word in sys.argv[1:] if word != "--debug"]
    try:
        status = cli.main(["--debug", *arguments] if debug else arguments, prog_name="vmsim", standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except UsageError as error:
        report_error(error, debug=debug)
        sys.exit(2)
    except (VmsimError, OSError) as error:
        report_error(error, debug=debug)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)
