"""A contract for import-linter: named packages import each other and an allow-list, and nothing else.

Its own `forbidden` contract works the other way round, and a list of everything that has an effect is never complete.
"""

from __future__ import annotations

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class PureContract(Contract):
    """Every import made in ``pure_packages`` leads into one of them, or to one of ``allowed_modules``.

    Direct imports are enough: what a pure package reaches through another pure package is checked there.
    ``allowed_modules`` are top-level names outside the checked root package. Raises ValueError on a pure package that
    does not exist, so that a renamed one is not left unchecked.
    """

    type_name = "pure"

    pure_packages = fields.SetField(subfield=fields.StringField())
    allowed_modules = fields.SetField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        packages = set(map(str, self.pure_packages))  # type: ignore[call-overload]
        allowed = set(map(str, self.allowed_modules))  # type: ignore[call-overload]
        missing = packages - graph.modules
        if missing:
            raise ValueError(f"pure_packages that do not exist: {', '.join(sorted(missing))}")
        modules = sorted(module for module in graph.modules if _is_within(module, packages))
        breaches = [
            f"{module} (line {line}): {imported}"
            for module in modules
            for imported in sorted(graph.find_modules_directly_imported_by(module))
            if imported not in allowed and not _is_within(imported, packages)
            for line in sorted(
                details["line_number"] for details in graph.get_import_details(importer=module, imported=imported)
            )
        ]
        output.verbose_print(verbose, f"{len(modules)} modules are to be pure.")
        return ContractCheck(kept=not breaches, metadata={"breaches": breaches})

    def render_broken_contract(self, check: ContractCheck) -> None:
        output.print_error("These imports are not allowed in a pure package:")
        for breach in check.metadata["breaches"]:
            output.print_error(f"-   {breach}", bold=False)
        output.new_line()


def _is_within(module: str, packages: set[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)
