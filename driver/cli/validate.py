"""`chv validate FILE…`: every complaint about job files and agent files, by the rules of the plugin itself."""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from driver.cli.common import add_common, load_config, print_json
from driver.cli.errors import UsageError
from driver.cli.validate_agent import check_agent
from driver.cli.validate_found import Report
from driver.cli.validate_job import check_hcl_job, check_json_job, is_hcl_job, is_json_job
from driver.config_plugin import PluginConfig


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "validate",
        help="check job files and agent files",
        description="Check job files (HCL2, or JSON as `nomad job run -output` prints it) and agent files: every"
        " complaint with file, line, key, value and what was expected. Of a job, tasks of this driver are looked at.",
        epilog="Exit codes: 0 fine; 1 there are complaints; 2 a file cannot be read.",
    )
    parser.add_argument("files", metavar="FILE", nargs="+", help="a file, a directory of agent files, or - for a job")
    add_common(parser, config_help="also check what depends on the node with this plugin block: images, networks, …")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    # The jobs of other nodes are checked here, too: only a config that somebody names is theirs.
    node = None if args.config is None else load_config(args)
    reports = [check(name, text, node) for file in args.files for name, text in _texts(file)]
    found = [one for report in reports for one in report.found]
    if args.json:
        print_json([asdict(one) for one in found])
    else:
        for report in reports:
            _show(report)
    return 1 if found else 0


def check(name: str, text: str, node: PluginConfig | None) -> Report:
    """One file, whatever it is."""
    if is_json_job(text):
        return check_json_job(text, name, node)
    if is_hcl_job(text):
        return check_hcl_job(text, name, node)
    return check_agent(text, name)


def _texts(file: str) -> Iterator[tuple[str, str]]:
    path = Path(file)
    try:
        if file == "-":
            if sys.stdin is None:
                raise UsageError("-: standard input is closed")
            yield "-", sys.stdin.read()
        elif path.is_dir():
            inside = sorted(one for one in path.iterdir() if one.suffix in (".hcl", ".json", ".nomad"))
            if not inside:
                raise UsageError(f"{file}: no .hcl, .nomad or .json file in this directory")
            for one in inside:
                yield str(one), one.read_text(encoding="utf-8")
        else:
            yield file, path.read_text(encoding="utf-8")
    except PermissionError:
        raise
    except OSError as exc:
        raise UsageError(f"{exc.filename or file}: {(exc.strerror or str(exc)).lower()}") from exc
    except UnicodeDecodeError as exc:
        raise UsageError(f"{file}: expected text in UTF-8") from exc


def _show(report: Report) -> None:
    for one in report.found:
        print(one)
    for note in report.notes:
        print(f"{report.file}: {note}", file=sys.stderr)
    if not report.found:
        print(f"{report.file}: fine, {report.what}")
