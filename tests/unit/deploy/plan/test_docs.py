"""docs/planning.md shows what the planner prints."""

from docs.scaling import BLOCKS, PAGE, filled


def test_the_page_is_up_to_date() -> None:
    """``python -m docs.scaling`` writes it."""
    page = PAGE.read_text(encoding="utf-8")
    assert filled(page) == page
    assert all(page.count(f"<!-- {name} -->") == 1 for name in BLOCKS)
