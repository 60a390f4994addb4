"""What the documentation names exists."""

import re
from pathlib import Path

from avalanche_ntk import NTKPlugin, ntk_metrics
from avalanche_ntk.adapters.evaluation import EvaluationRecorder
from avalanche_ntk.reproduce.registry import STUDIES

DOCS = Path(__file__).parents[1] / "docs"


def test_every_metric_is_documented_and_every_documented_metric_exists():
    flags = ["spectrum", "linearisation", "forecast", "per_layer", "features", "class_blocks", "task_overlap"]
    every = ntk_metrics(
        NTKPlugin(), **dict.fromkeys([*flags, "regression", "neurons", "buffer_share", "kernel_image"], True)
    )
    names = {str(m) for m in every if not isinstance(m, EvaluationRecorder)}
    table = [line for line in (DOCS / "metrics.md").read_text().splitlines() if line.startswith("|")]
    documented = set(re.findall(r"`(NTK_\w+)", "\n".join(table)))
    assert documented == names


def test_links_between_documents_lead_somewhere():
    root = DOCS.parent
    for page in [root / "README.md", *DOCS.rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_result_stands_in_the_documentation():
    """With its command, its verdicts, its figures, and a page with every case."""
    page = (DOCS / "reproduction.md").read_text()
    for name in [*STUDIES, "reactivation@cifar10"]:
        [part] = re.findall(rf"<!-- results: {name} -->\n(.*?)<!-- end -->", page, re.DOTALL)
        assert part.startswith(f"```sh\navalanche-ntk reproduce {name.partition('@')[0]} --scale small --data "), name
        assert "--seeds 5 " in part, name
        assert "| statement | verdict |" in part, name
        assert f"](reproduction/{name}/" in part, name
        assert (DOCS / "reproduction" / f"{name}.md").is_file()
