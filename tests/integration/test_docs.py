"""What the documentation names exists; what it shows runs in `test_docs_run.py`."""

import ast
import configparser
import json
import pkgutil
import re
from pathlib import Path

from avalanche_ntk import NTKPlugin, ntk_metrics
from avalanche_ntk.adapters.evaluation import EvaluationRecorder
from avalanche_ntk.observables import table
from avalanche_ntk.reproduce.registry import STUDIES
from tests.support.places import ROOT

DOCS = ROOT / "docs"


def test_every_metric_is_documented_and_every_documented_metric_exists():
    """The table stands there as `python -m avalanche_ntk.observables.table docs/metrics.md` writes it."""
    page = (DOCS / "metrics.md").read_text()
    assert table.replaced(page) == page
    every = ntk_metrics(NTKPlugin(), **dict.fromkeys(table.own_families(), True))
    names = {str(m) for m in every if not isinstance(m, EvaluationRecorder)}
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert set(re.findall(r"`(NTK_\w+)", "\n".join(lines))) == names


def test_links_between_documents_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_result_stands_in_the_documentation():
    """With its command, its verdicts, its figures, and a page with every case."""
    page = (DOCS / "reproduction.md").read_text()
    for name in [*STUDIES, "reactivation@cifar10"]:
        [part] = re.findall(rf"<!-- results: {name} -->\n(.*?)<!-- end -->", page, re.DOTALL)
        assert part.startswith(f"```sh\navalanche-ntk reproduce {name.partition('@')[0]} --scale small --data "), name
        assert int(re.search(r"--seeds (\d+) ", part)[1]) >= 5, name
        assert "| statement | verdict |" in part, name
        assert f"](reproduction/{name}/" in part, name
        assert (DOCS / "reproduction" / f"{name}.md").is_file()


def blocks(page: Path, language: str) -> list[str]:
    """Return a page's blocks of code in a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_headline_figures_are_those_of_the_page_on_performance():
    """Change both, or the README's only: a row there is one row of the page, and its comparison another."""
    page = (DOCS / "performance.md").read_text().splitlines()
    table = (ROOT / "README.md").read_text().split("<!-- headline -->")[1].split("<!-- end -->")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[3:] if line.startswith("|")]
    assert rows
    for case, seconds, slower, error in rows:
        [at] = [i for i, line in enumerate(page) if line.startswith(f"| {case.removesuffix(' samples')} | **ours**")]
        ours, theirs = ([cell.strip() for cell in page[i].strip("|").split("|")] for i in (at, at + 1))
        assert [seconds, error] == [ours[2], ours[6]], case
        assert theirs[1] == "torch.func `vmap(jacrev)`"
        assert slower == f"{theirs[4]} times slower", case


def test_every_page_has_its_place_on_the_site():
    """A new page of `docs/` is listed in `mkdocs.yml`."""
    listed = set(re.findall(r"(\w[\w/-]*\.md)\s*$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert {page.name for page in DOCS.glob("*.md")} <= listed


def test_the_api_page_names_what_exists():
    names = re.findall(r"^::: (\S+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert "avalanche_ntk.NTKPlugin" in names
    for name in names:
        assert pkgutil.resolve_name(name)


def test_the_version_stands_in_one_place():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    version = config["metadata"]["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
    assert not re.search(r"^version:", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert version not in (ROOT / "pyproject.toml").read_text()


def messages() -> list[str]:
    """Return every text in the sources, with `…` where an f-string has a value."""
    found = []
    for path in [*(ROOT / "avalanche_ntk").rglob("*.py"), *(ROOT / "strategies").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def in_order(parts: list[str], text: str) -> bool:
    """Return whether a text holds these parts one after the other."""
    at = 0
    for part in parts:
        at = text.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return True


def test_every_message_that_troubleshooting_explains_is_in_the_sources():
    headings = re.findall(r"^### `(.+)`$", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(headings) > 15
    texts = messages()
    for heading in headings:
        assert any(in_order(heading.split("…"), text) for text in texts), heading


def test_the_tutorials_page_and_notebook_are_of_its_script():
    """`python docs/render.py` makes both."""
    cells = [part.partition("\n") for part in f"\n{(DOCS / 'tutorial.py').read_text()}".split("\n# %%")[1:]]
    code = [body.strip() for head, _, body in cells if head.strip() != "[markdown]"]
    assert [block.strip() for block in blocks(DOCS / "tutorial.md", "python")] == code
    notebook = json.loads((DOCS / "tutorial.ipynb").read_text())
    assert ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"] == code
    assert len(notebook["cells"]) == len(cells)


def test_every_figure_of_the_page_on_reading_has_its_command():
    shown = set(re.findall(r"\]\(assets/([\w-]+)\.svg\)", (DOCS / "reading.md").read_text()))
    made = set(re.findall(r'^    "([\w-]+)": \w+,$', (DOCS / "figures.py").read_text(), re.MULTILINE))
    assert shown == made
    for name in shown:
        assert (DOCS / "assets" / f"{name}.svg").is_file()
