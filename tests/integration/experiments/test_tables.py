"""The table of a comparison as text."""

import io

import pandas as pd
import pytest
from rich.console import Console

from avalanche_ntk.errors import RunFolderError
from avalanche_ntk.experiments import compare, tables
from tests.integration.experiments.test_comparison import make_run


@pytest.fixture
def found(tmp_path):
    for seed, moved in enumerate([0.1, 0.3]):
        make_run(tmp_path / f"a{seed}", label="strategy=EWC_online", seed=seed, moved=moved, norm_dip=None, ratio=None)
    make_run(tmp_path / "b", config={"epochs": 9}, label="a|b", moved=12345.6, norm_dip=None, ratio=None)
    return compare([tmp_path])


def test_csv_holds_the_whole_table(found):
    groups = pd.read_csv(io.StringIO(tables.to_csv(found)), dtype=found.groups.dtypes.to_dict())
    pd.testing.assert_frame_equal(groups, found.groups)
    runs = pd.read_csv(io.StringIO(tables.to_csv(found, each=True)), dtype=found.runs.dtypes.to_dict())
    pd.testing.assert_frame_equal(runs, found.runs)


def test_markdown(found):
    lines = tables.to_markdown(found).splitlines()
    assert lines[0] == (
        "| group | accuracy | forgetting | backward transfer | moved | spike | λ_max recovery | alignment drop | "
        "effective rank | linearisation error | measuring share |"
    )
    assert lines[1] == "| --- |" + " ---: |" * 10
    assert lines[2].startswith("| strategy=EWC_online (2 seeds) | 0.633 ± 0.000 |")
    # 12.706 · |0.3 − 0.1|/2, half of Student's interval of two numbers
    assert "| 0.2 ± 1.3 |" in lines[2]
    assert lines[3].startswith("| a\\|b (1 seed) | 0.633 |")
    assert "| 12300 |" in lines[3]
    assert lines[-1] == tables.NO_CORRELATION  # all three runs forgot the same
    assert "| measure | ρ | seeds | runs |" not in lines


def test_rank_correlations_stand_below_where_they_are_defined(tmp_path):
    for width, (last, moved) in enumerate([(0.7, 2.0), (0.5, 1.0), (0.3, 4.0)], start=8):  # ranks 1, 2, 3 and 2, 1, 3
        config, accuracy = {"model": {"width": width}}, {0: {0: 0.9}, 1: {0: last, 1: 1.0}}
        make_run(tmp_path / f"r{width}", config=config, accuracy=accuracy, moved=moved)
    lines = tables.to_markdown(compare([tmp_path])).splitlines()
    start = lines.index("| measure | ρ | seeds | runs |")
    assert lines[start + 2] == "| moved | 0.50 | 1 | 3 |"
    assert tables.NO_CORRELATION not in lines


def test_latex(found):
    lines = tables.to_latex(found).splitlines()
    assert lines[0] == r"\begin{tabular}{lrrrrrrrrrr}"
    assert r"& $\lambda_{\max}$ recovery &" in lines[2]
    assert lines[4].startswith(r"strategy=EWC\_online (2 seeds) & $0.633 \pm 0.000$ & ")
    assert r"& $0.2 \pm 1.3$ &" in lines[4]
    assert lines[4].endswith(r"\\")
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
    assert all(line.count("&") == 10 for line in lines[2:6] if "rule" not in line)


def test_a_table_of_runs_has_a_row_each(found):
    lines = tables.to_markdown(found, each=True).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| a0", "| a1", "| b"]


@pytest.mark.parametrize("width", [80, 100, 160, 240])
def test_the_terminal_holds_every_column_without_breaking_a_number(found, width):
    console = Console(width=width, file=io.StringIO())
    for table in tables.to_rich(found, width=width):
        console.print(table)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    for wanted in ("strategy=EWC_online (2 seeds)", "a|b (1 seed)", "0.2 ± 1.3",
                   "linearisation error", "λ_max recovery", "measuring share"):  # fmt: skip
        assert wanted in text
    assert "λ_max dip" not in text  # nothing was measured


def test_a_file_that_cannot_be_written(tmp_path):
    with pytest.raises(RunFolderError) as error:
        tables.write(tmp_path / "none" / "t.csv", "")
    assert str(error.value) == (
        f"{tmp_path / 'none' / 't.csv'} cannot be written (No such file or directory): expected a file in a folder "
        "that exists. Give another path."
    )
