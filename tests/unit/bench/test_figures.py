"""The report of `make bench`: medians, ratios, tables."""

from __future__ import annotations

from tests.bench.figures import (
    Sample,
    Section,
    Verdict,
    line_of,
    line_rows,
    report,
    section_text,
    table,
    verdict_rows,
)


def sample(wall: float, *, above: float | None = None) -> Sample:
    return Sample(
        wall_secs=wall, cpu_secs=2 * wall, peak_mib=50, above_idle_mib=above, downloaded=2_000_000
    )


def verdict(ours: float, theirs: float | None, limit: float, unit: str = "s") -> Verdict:
    return Verdict(
        work="install", figure="wall", ours=ours, theirs=theirs, beside="swupdate", limit=limit,
        unit=unit,
    )  # fmt: skip


def test_a_line_has_the_medians_and_the_range_of_the_walls() -> None:
    line = line_of("x", [sample(3.0), sample(1.0), sample(9.0)])
    assert line.median.wall_secs == 3.0
    assert line.median.cpu_secs == 6.0
    assert line.wall_range == (1.0, 9.0)


def test_what_was_not_measured_in_every_round_has_no_median() -> None:
    line = line_of("x", [sample(1.0, above=20.0), sample(1.0)])
    assert line.median.above_idle_mib is None
    assert line.median.written is None


def test_a_line_without_rounds_has_no_figures() -> None:
    line = line_of("x", [])
    assert line.wall_range is None
    assert line.median == Sample()


def test_ours_is_bold_and_what_is_unknown_is_a_dash() -> None:
    lines = [line_of("bascule", [sample(1.0, above=20.0)]), line_of("rauc", [sample(4.0)])]
    assert line_rows(lines) == [
        ["**bascule**", "1.00", "2.00", "50", "20.0", "2.0", "-"],
        ["rauc", "4.00", "8.00", "50", "-", "2.0", "-"],
    ]


def test_several_rounds_show_their_range() -> None:
    assert line_rows([line_of("x", [sample(1.0), sample(2.0)])])[0][1] == "1.50 (1.00-2.00)"


def test_a_ratio_is_ours_by_theirs_and_is_reached_up_to_its_limit() -> None:
    assert verdict(1.3, 2.0, 0.65).reached
    assert not verdict(1.4, 2.0, 0.65).reached
    assert verdict(1.4, 2.0, 0.65).ratio == 0.7


def test_a_figure_without_another_is_measured_by_its_limit_alone() -> None:
    alone = verdict(80.0, None, 64.0, "MiB")
    assert not alone.reached
    assert verdict_rows([Section(title="t", about="", verdicts=[alone])]) == [
        ["install", "wall", "**80.0 MiB**", "≤ 64.0 MiB", "no", "80.0 MiB", "swupdate"]
    ]


def test_the_first_table_has_ratio_limit_and_both_figures() -> None:
    rows = verdict_rows([Section(title="t", about="", verdicts=[verdict(1.0, 4.0, 0.3)])])
    assert rows == [["install", "wall", "**0.25**", "≤ 0.30", "yes", "1.00 s", "4.00 s swupdate"]]


def test_a_limit_near_one_shows_enough_digits_to_be_judged() -> None:
    row = verdict_rows([Section(title="t", about="", verdicts=[verdict(1.0008, 1.0, 1.001)])])[0]
    assert row[2:5] == ["**1.0008**", "≤ 1.0010", "yes"]


def test_a_table_is_markdown_with_figures_to_the_right() -> None:
    assert table(["a", "b"], [["c", "1"]]) == "| a | b |\n| :-- | --: |\n| c | 1 |"


def test_a_section_names_what_was_left_out_and_why() -> None:
    section = Section(
        title="Full install", about="How.", left_out={"rauc": "rauc not installed"},
        lines=[line_of("dd", [sample(1.0)], note="reads nothing back")],
    )  # fmt: skip
    text = section_text(section)
    assert text.startswith("## Full install\n\nHow.\n\n| ")
    assert "* dd: reads nothing back.\n* Left out: rauc: rauc not installed." in text


def test_the_report_has_the_ratios_before_the_sections() -> None:
    section = Section(title="Full install", about="How.", verdicts=[verdict(1.0, 4.0, 0.3)])
    text = report([section], head="# Performance")
    assert text.index("**0.25**") < text.index("## Full install")
    assert text.endswith("How.\n")


def test_beside_something_that_cost_nothing_no_ratio_is_reached() -> None:
    assert not verdict(0.4, 0.0, 1.3).reached
