"""Tables and pictures of the documentation are what the code computes; ``make docs`` writes them."""

from docs.generate import ILLEGAL, PAGE, PICTURES, TABLES, filled, refusal
from pretrain.recipes.registry import recipe


def test_tables_are_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert all(f"<!-- table: {name} -->" in page for name in TABLES)
    assert filled(page) == page


def test_pictures_are_up_to_date() -> None:
    drawn = {name: PAGE.with_name(name).read_text(encoding="utf-8") for name in PICTURES}
    assert {name: draw() for name, draw in PICTURES.items()} == drawn


def test_what_the_page_calls_illegal_is_refused_with_a_way_out() -> None:
    for name, layout in ILLEGAL:
        reason = refusal(recipe(name), layout, 8)
        assert reason is not None and reason.startswith("parallel.")
        assert "nearest" in reason or "set it to" in reason
