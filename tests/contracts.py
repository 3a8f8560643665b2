"""One more contract for import-linter: packages that may import what is listed, and the standard library."""

import sys
from typing import TYPE_CHECKING

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class OnlyContract(Contract):
    """Every import in `source_modules` and beneath them leads to the standard library or to `allowed_modules`.

    A source module that is not there (yet) is passed over. `allowed_modules` allow what lies beneath them, too.
    """

    if TYPE_CHECKING:  # import-linter puts plain values where the fields stand
        source_modules: list[str]
        allowed_modules: list[str] | None
    else:
        source_modules = fields.ListField(subfield=fields.StringField())
        allowed_modules = fields.ListField(subfield=fields.StringField(), required=False)

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:  # noqa: ARG002  the caller passes it by name
        wrong = sorted(
            f"{module} imports {imported}"
            for source in self.source_modules
            for module in _with_descendants(graph, source)
            for imported in graph.find_modules_directly_imported_by(module)
            if not _within(imported, source) and not self._allows(imported)
        )
        return ContractCheck(kept=not wrong, metadata={"wrong": wrong})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for line in check.metadata["wrong"]:
            output.print_error(line, bold=False)
            output.new_line()

    def _allows(self, imported: str) -> bool:
        if imported.partition(".")[0] in sys.stdlib_module_names:
            return True
        return any(_within(imported, allowed) for allowed in self.allowed_modules or ())


def _with_descendants(graph: ImportGraph, module: str) -> set[str]:
    return {module, *graph.find_descendants(module)} if module in graph.modules else set()


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")
