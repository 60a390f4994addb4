"""Put results of `avalanche-ntk reproduce` into the documentation: `python docs/collect.py NAME=FOLDER …`.

`FOLDER/results.md` becomes `docs/reproduction/NAME.md`, its figures and `results.json`, which has every seed's numbers,
go to `docs/reproduction/NAME/`, and what stands between `<!-- results: NAME -->` and `<!-- end -->` in
`docs/reproduction.md` is written anew. NAME is the study's, or `STUDY@WHAT` for a second one, such as on other data.
"""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
PAGE = DOCS / "reproduction.md"


def summary(name: str, found: dict, figures: list[Path]) -> str:
    """Return command, verdicts and figures of a study."""
    lines = ["```sh", found["command"], "```", ""]
    lines += ["| statement | verdict |", "|---|---|"]
    lines += [f"| {claim['text']} | {claim['told']} |" for claim in found["claims"]]
    cases, seeds = f"reproduction/{name}.md", f"reproduction/{name}/results.json"
    lines += ["", f"[Every case with its numbers]({cases}); [those of every seed]({seeds})"]
    lines += [line for path in figures for line in ("", f"![{path.stem}](reproduction/{name}/{path.name})")]
    return "\n".join(lines)


def shortened(value: Any) -> Any:
    """Round numbers to six digits."""
    if isinstance(value, dict):
        return {key: shortened(v) for key, v in value.items()}
    if isinstance(value, list):
        return [shortened(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def collect(name: str, folder: Path) -> None:
    """Copy one study's results, and write its part of the page."""
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    page = (folder / "results.md").read_text(encoding="utf-8")
    order = re.findall(r"!\[[^]]*\]\(figures/([^)]+)\)", page)
    target = DOCS / "reproduction" / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    figures = [Path(shutil.copy(folder / "figures" / figure, target)) for figure in order]
    numbers = json.dumps(shortened(found), ensure_ascii=False, separators=(",", ":"))
    (target / "results.json").write_text(numbers.replace('{"key"', '\n{"key"') + "\n", encoding="utf-8")
    target.with_suffix(".md").write_text(page.replace("](figures/", f"]({name}/"), encoding="utf-8")
    text = PAGE.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- results: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"{PAGE} has no place for {name}: write <!-- results: {name} --> and <!-- end --> into it.")
    made = pattern.sub(lambda match: f"{match[1]}{summary(name, found, figures)}\n{match[2]}", text)
    PAGE.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        study, _, where = argument.partition("=")
        collect(study, Path(where))
